package provision

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/pki"
	"muster/provision/observed"
)

// expire lets time pass for a cluster: every leaf, and the CA too if told so,
// is replaced, here and on the hosts, by one of the same name and key that
// expired an hour ago. Then the members are started anew.
func (l *lab) expire(withCA bool) {
	l.t.Helper()
	dir := l.cluster.PKI.Dir
	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		l.t.Fatal(err)
	}
	aged := func(name string) []byte {
		l.t.Helper()
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			l.t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		old, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			l.t.Fatal(err)
		}
		template := *old
		template.NotBefore, template.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
		template.SignatureAlgorithm, template.AuthorityKeyId = x509.UnknownSignatureAlgorithm, nil
		der, err := x509.CreateCertificate(rand.Reader, &template, ca.Leaf, old.PublicKey, ca.PrivateKey)
		if err != nil {
			l.t.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			l.t.Fatal(err)
		}
		return text
	}
	client := aged("healthcheck-client.crt")
	aged("apiserver-etcd-client.crt")
	put := func(host int, path string, text []byte) {
		l.sh(host, "cat > "+path+" <<'END'\n"+strings.TrimSpace(string(text))+"\nEND\n")
	}
	for i, h := range l.cluster.Hosts {
		put(i, "/etc/muster/pki/healthcheck-client.crt", client)
		for _, name := range []string{"server.crt", "peer.crt"} {
			put(i, "/etc/muster/pki/"+name, aged(filepath.Join("hosts", h.Name, name)))
		}
	}
	if withCA {
		text := aged("ca.crt")
		block, _ := pem.Decode(text)
		sum := sha256.Sum256(block.Bytes)
		for i := range l.cluster.Hosts {
			var record observed.Record
			if err := json.Unmarshal([]byte(l.sh(i, "cat "+"/etc/muster/cluster.json")), &record); err != nil {
				l.t.Fatal(err)
			}
			record.CA = hex.EncodeToString(sum[:])
			line, err := json.Marshal(record)
			if err != nil {
				l.t.Fatal(err)
			}
			put(i, "/etc/muster/cluster.json", line)
			put(i, "/etc/muster/pki/ca.crt", text)
		}
	}
	for i := range l.cluster.Hosts {
		l.sh(i, "systemctl stop musterd; systemctl start --no-block musterd")
	}
	c := l.checkCertificates()
	for _, f := range c.Certificates {
		if f.Role != pki.CA && len(f.Problems) == 0 {
			l.t.Errorf("%s on %s has not expired: %+v", f.Path, f.On, f)
		}
	}
}

// A year has passed and nobody has looked: every certificate has expired, no
// member admits another one. One command brings the cluster back, with its
// data.
func TestExpiredCertificatesAreRenewed(t *testing.T) {
	l := newLab(t, 3)
	id := l.mustApply().Status.ClusterID
	l.expire(false)
	report, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{})
	if err != nil {
		l.fatal(err)
	}
	if !report.Status.Healthy || report.Status.ClusterID != id {
		t.Errorf("%+v, the cluster was %s", report.Status, id)
	}
	if c := l.checkCertificates(); !c.OK {
		t.Errorf("in the end: %q", c.problems())
	}
	// Ten years have passed: the CA has expired too.
	l.expire(true)
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{}); err == nil || !strings.Contains(err.Error(), "it expired on") {
		t.Errorf("renew: %v", err)
	}
	if report := l.rotate(""); report.Phase != pki.Settled || !report.Status.Healthy || report.Status.ClusterID != id {
		t.Errorf("%+v, the cluster was %s", report, id)
	}
	if c := l.checkCertificates(); !c.OK {
		t.Errorf("in the end: %q", c.problems())
	}
	l.mustChangeNothing()
}

package provision

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/pki"
	"muster/provision/desired"
)

// corporate is a CA that muster never has the key of: a root and, below it, the
// one that signs.
type corporate struct {
	t       *testing.T
	root    *x509.Certificate
	issuer  *x509.Certificate
	key     *ecdsa.PrivateKey
	serials int64
}

func newCorporate(t *testing.T) *corporate {
	t.Helper()
	c := &corporate{t: t}
	rootKey := c.newKey()
	c.root = c.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "corporate root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, &rootKey.PublicKey, rootKey)
	c.key = c.newKey()
	c.issuer = c.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "corporate issuer"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, c.root, &c.key.PublicKey, rootKey)
	return c
}

func (c *corporate) newKey() *ecdsa.PrivateKey {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	return key
}

func (c *corporate) sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) *x509.Certificate {
	c.t.Helper()
	c.serials++
	template.SerialNumber = big.NewInt(c.serials)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if template.IsCA {
		template.NotAfter = time.Now().AddDate(10, 0, 0)
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

func text(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// answer signs every request below a directory and puts the certificate, with
// the intermediate CA, beside it.
func (c *corporate) answer(dir string) (answered int) {
	c.t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".csr" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(data)
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return err
		}
		usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if len(request.DNSNames) > 0 {
			usages = append(usages, x509.ExtKeyUsageServerAuth)
		}
		cert := c.sign(&x509.Certificate{
			Subject: request.Subject, DNSNames: request.DNSNames, IPAddresses: request.IPAddresses, ExtKeyUsage: usages, KeyUsage: x509.KeyUsageDigitalSignature,
		}, c.issuer, request.PublicKey, c.key)
		answered++
		return os.WriteFile(strings.TrimSuffix(path, ".csr")+".crt", text(cert, c.issuer), 0o600)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return answered
}

// A cluster whose certificates another CA signs: muster asks, checks, installs
// and has new ones taken up, and never needs that CA's key.
func TestExternalCA(t *testing.T) {
	l := newLab(t, 1)
	l.load("pki: {external: true}\n")
	dir, ca := l.cluster.PKI.Dir, newCorporate(t)
	if _, err := l.apply(); err == nil || !strings.Contains(err.Error(), "ca.crt is missing") {
		t.Fatalf("without a CA: %v", err)
	}
	store, spec := pki.Open(dir, pki.Keys{}), desired.Certificates(l.cluster)
	request := func(all bool) int {
		t.Helper()
		paths, err := store.Requests(t.Context(), spec, func(string, time.Time) bool { return all })
		if err != nil {
			t.Fatal(err)
		}
		return len(paths)
	}
	if n := request(false); n != 4 {
		t.Fatalf("%d requests", n)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), text(ca.root), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.apply(); err == nil || !strings.Contains(err.Error(), "hosts/controller-0/server.crt: missing") {
		t.Fatalf("before anything is signed: %v", err)
	}
	if n := ca.answer(dir); n != 4 {
		t.Fatalf("%d requests were answered", n)
	}
	l.mustApply()
	if c := l.checkCertificates(); !c.OK || c.CAKey != "external" {
		t.Errorf("a check says %q, %s", c.problems(), c.CAKey)
	}
	if _, err := RotateCA(l.context(), l.cluster, l.opts, ""); err == nil || !strings.Contains(err.Error(), "pki.external") {
		t.Errorf("rotate-ca: %v", err)
	}
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{All: true}); err == nil || !strings.Contains(err.Error(), "hosts/controller-0/peer.crt: to be renewed") {
		t.Errorf("renew --all: %v", err)
	}
	before := l.served(l.cluster.Hosts[0].ClientURL()).SerialNumber
	processes := l.processes()
	if n := request(true); n != 4 {
		t.Errorf("%d requests for another round", n)
	}
	ca.answer(dir)
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{}); err != nil {
		l.fatal(err)
	}
	if now := l.served(l.cluster.Hosts[0].ClientURL()).SerialNumber; now.Cmp(before) == 0 {
		t.Error("the new certificate is not served")
	}
	if now := l.processes(); now[0] != processes[0] {
		t.Errorf("the member was restarted: %q, then %q", processes, now)
	}
	l.mustChangeNothing()
}

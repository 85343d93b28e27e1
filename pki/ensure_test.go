package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	tenYears = 10 * 365 * 24 * time.Hour
	oneYear  = 365 * 24 * time.Hour
)

func threeHosts() Spec {
	return Spec{
		Algorithm: ECDSAP256, CALifetime: tenYears, LeafLifetime: oneYear,
		Hosts: []Host{
			{Name: "controller-0", SANs: []string{"10.240.0.10", "etcd.example.com"}},
			{Name: "controller-1", SANs: []string{"10.240.0.11"}},
			{Name: "controller-2", SANs: []string{"2001:db8::12", "10.240.0.12"}},
		},
	}
}

func mustEnsure(t *testing.T, dir string, spec Spec) (Bundle, []Change) {
	t.Helper()
	bundle, changes, err := Ensure(t.Context(), dir, spec)
	if err != nil {
		t.Fatal(err)
	}
	return bundle, changes
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(certPEM)
	if block == nil || len(rest) > 0 {
		t.Fatalf("not exactly one PEM block: %q", certPEM)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// criticalKeyUsage says whether the key usage extension is marked critical.
func criticalKeyUsage(cert *x509.Certificate) bool {
	return slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool {
		return e.Id.String() == "2.5.29.15" && e.Critical
	})
}

func TestCertificatesFieldByField(t *testing.T) {
	var printed bytes.Buffer
	log.SetOutput(&printed)
	defer log.SetOutput(os.Stderr)

	dir := filepath.Join(t.TempDir(), "pki")
	before := time.Now()
	bundle, changes := mustEnsure(t, dir, threeHosts())

	if printed.Len() > 0 {
		t.Errorf("cfssl printed %q", printed.String())
	}
	if len(changes) != 1+3*2+2 {
		t.Errorf("%d changes, want 9: %v", len(changes), changes)
	}

	ca := parse(t, bundle.CA)
	if ca.Subject.String() != "CN=etcd-ca" || !ca.IsCA || !ca.BasicConstraintsValid {
		t.Errorf("the CA is %q, IsCA %v", ca.Subject, ca.IsCA)
	}
	if ca.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageCertSign || len(ca.ExtKeyUsage) != 0 {
		t.Errorf("the CA may be used for %b, %v", ca.KeyUsage, ca.ExtKeyUsage)
	}
	if len(ca.DNSNames) != 1 || ca.DNSNames[0] != "etcd-ca" || len(ca.IPAddresses) != 0 {
		t.Errorf("the CA has names: %v %v", ca.DNSNames, ca.IPAddresses)
	}
	near(t, "the CA's NotBefore", ca.NotBefore, before.Add(-5*time.Minute))
	near(t, "the CA's NotAfter", ca.NotAfter, before.Add(tenYears))

	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, c := range []struct {
		what   string
		pair   Pair
		cn     string
		usages []x509.ExtKeyUsage
		dns    []string
		ips    []string
	}{
		{"server 0", bundle.Hosts["controller-0"].Server, "controller-0", both,
			[]string{"controller-0", "etcd.example.com", "localhost"}, []string{"10.240.0.10", "127.0.0.1", "::1"}},
		{"peer 0", bundle.Hosts["controller-0"].Peer, "controller-0", both,
			[]string{"controller-0", "etcd.example.com", "localhost"}, []string{"10.240.0.10", "127.0.0.1", "::1"}},
		{"server 2", bundle.Hosts["controller-2"].Server, "controller-2", both,
			[]string{"controller-2", "localhost"}, []string{"10.240.0.12", "127.0.0.1", "2001:db8::12", "::1"}},
		{"peer 2", bundle.Hosts["controller-2"].Peer, "controller-2", both,
			[]string{"controller-2", "localhost"}, []string{"10.240.0.12", "127.0.0.1", "2001:db8::12", "::1"}},
		{"healthcheck client", bundle.HealthcheckClient, "kube-etcd-healthcheck-client", client, nil, nil},
		{"kube-apiserver's client", bundle.APIServerEtcdClient, "kube-apiserver-etcd-client", client, nil, nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			cert := parse(t, c.pair.Cert)
			if got := cert.Subject.String(); got != "CN="+c.cn {
				t.Errorf("subject %q, want CN=%s and no organization", got, c.cn)
			}
			if cert.IsCA {
				t.Error("it is a CA")
			}
			if want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment; cert.KeyUsage != want {
				t.Errorf("key usage %b, want %b", cert.KeyUsage, want)
			}
			if !criticalKeyUsage(cert) {
				t.Error("the key usage is not critical")
			}
			if !slices.Equal(cert.ExtKeyUsage, c.usages) {
				t.Errorf("usages %v, want %v", cert.ExtKeyUsage, c.usages)
			}
			if !slices.Equal(cert.DNSNames, c.dns) {
				t.Errorf("DNS names %v, want %v", cert.DNSNames, c.dns)
			}
			var ips []string
			for _, ip := range cert.IPAddresses {
				ips = append(ips, ip.String())
			}
			if !slices.Equal(ips, c.ips) {
				t.Errorf("IPs %v, want %v", ips, c.ips)
			}
			if len(cert.EmailAddresses)+len(cert.URIs) != 0 {
				t.Errorf("unexpected names %v %v", cert.EmailAddresses, cert.URIs)
			}
			near(t, "NotBefore", cert.NotBefore, before.Add(-5*time.Minute))
			near(t, "NotAfter", cert.NotAfter, before.Add(oneYear))
			if err := cert.CheckSignatureFrom(ca); err != nil {
				t.Errorf("not signed by the CA: %v", err)
			}
			if _, err := parseLeaf(c.pair); err != nil {
				t.Errorf("key: %v", err)
			}
			if k, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || k.Params().BitSize != 256 {
				t.Errorf("the key is a %T", cert.PublicKey)
			}
		})
	}
}

func near(t *testing.T, what string, got, want time.Time) {
	t.Helper()
	if d := got.Sub(want).Abs(); d > time.Minute {
		t.Errorf("%s is %s, want %s", what, got, want)
	}
}

func TestFilesAndModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	mustEnsure(t, dir, threeHosts())
	var got []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		got = append(got, info.Mode().String()+" "+rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `drwx------ .
-rw------- .lock
-rw-r--r-- apiserver-etcd-client.crt
-rw------- apiserver-etcd-client.key
-rw-r--r-- ca.crt
-rw------- ca.key
-rw-r--r-- healthcheck-client.crt
-rw------- healthcheck-client.key
drwx------ hosts
drwx------ hosts/controller-0
-rw-r--r-- hosts/controller-0/peer.crt
-rw------- hosts/controller-0/peer.key
-rw-r--r-- hosts/controller-0/server.crt
-rw------- hosts/controller-0/server.key
drwx------ hosts/controller-1
-rw-r--r-- hosts/controller-1/peer.crt
-rw------- hosts/controller-1/peer.key
-rw-r--r-- hosts/controller-1/server.crt
-rw------- hosts/controller-1/server.key
drwx------ hosts/controller-2
-rw-r--r-- hosts/controller-2/peer.crt
-rw------- hosts/controller-2/peer.key
-rw-r--r-- hosts/controller-2/server.crt
-rw------- hosts/controller-2/server.key`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("the directory holds\n%s\nwant\n%s", s, want)
	}
}

func TestSecondRunKeepsEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first, _ := mustEnsure(t, dir, threeHosts())
	second, changes := mustEnsure(t, dir, threeHosts())
	if len(changes) > 0 {
		t.Errorf("the second run made %v", changes)
	}
	if !sameBundle(first, second) {
		t.Error("the second run returned other certificates")
	}
}

func sameBundle(a, b Bundle) bool {
	same := bytes.Equal(a.CA, b.CA) && samePair(a.HealthcheckClient, b.HealthcheckClient) &&
		samePair(a.APIServerEtcdClient, b.APIServerEtcdClient) && len(a.Hosts) == len(b.Hosts)
	for name, h := range a.Hosts {
		same = same && samePair(h.Server, b.Hosts[name].Server) && samePair(h.Peer, b.Hosts[name].Peer)
	}
	return same
}

func samePair(a, b Pair) bool { return bytes.Equal(a.Cert, b.Cert) && bytes.Equal(a.Key, b.Key) }

func TestRSA(t *testing.T) {
	spec := threeHosts()
	spec.Algorithm, spec.Hosts = RSA2048, spec.Hosts[:1]
	bundle, _ := mustEnsure(t, filepath.Join(t.TempDir(), "pki"), spec)
	for _, c := range [][]byte{bundle.CA, bundle.Hosts["controller-0"].Peer.Cert} {
		if k, ok := parse(t, c).PublicKey.(*rsa.PublicKey); !ok || k.N.BitLen() != 2048 {
			t.Errorf("the key is a %T", parse(t, c).PublicKey)
		}
	}
}

// TestLeafIsReplaced lists what makes a leaf unfit; all others stay.
func TestLeafIsReplaced(t *testing.T) {
	const server0 = "hosts/controller-0/server.crt"
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, dir string, spec *Spec)
		later  time.Duration
		want   []string
		reason string
	}{
		{name: "a new address", want: []string{"hosts/controller-0/server.crt", "hosts/controller-0/peer.crt"}, reason: "its names have changed",
			spoil: func(_ *testing.T, _ string, s *Spec) { s.Hosts[0].SANs = []string{"10.240.0.99"} }},
		{name: "a lost key", want: []string{server0}, reason: "its key is missing",
			spoil: func(t *testing.T, dir string, _ *Spec) {
				must(t, os.Remove(filepath.Join(dir, "hosts/controller-0/server.key")))
			}},
		{name: "another's key", want: []string{server0}, reason: "certificate and key do not belong together",
			spoil: func(t *testing.T, dir string, _ *Spec) {
				copyFile(t, filepath.Join(dir, "hosts/controller-1/server.key"), filepath.Join(dir, "hosts/controller-0/server.key"))
			}},
		{name: "a torn certificate", want: []string{server0}, reason: "not a certificate",
			spoil: func(t *testing.T, dir string, _ *Spec) {
				must(t, os.WriteFile(filepath.Join(dir, server0), []byte("-----BEG"), 0o644))
			}},
		{name: "another host's pair", want: []string{server0}, reason: `made for "controller-1"`,
			spoil: func(t *testing.T, dir string, _ *Spec) {
				copyFile(t, filepath.Join(dir, "hosts/controller-1/server.key"), filepath.Join(dir, "hosts/controller-0/server.key"))
				copyFile(t, filepath.Join(dir, "hosts/controller-1/server.crt"), filepath.Join(dir, server0))
			}},
		{name: "a leaf of another CA", want: []string{server0}, reason: "signed by another CA",
			spoil: func(t *testing.T, dir string, s *Spec) {
				other := filepath.Join(t.TempDir(), "other")
				mustEnsure(t, other, *s)
				copyFile(t, filepath.Join(other, "hosts/controller-0/server.key"), filepath.Join(dir, "hosts/controller-0/server.key"))
				copyFile(t, filepath.Join(other, server0), filepath.Join(dir, server0))
			}},
		{name: "a third of the lifetime left and a bit", later: oneYear*2/3 - 24*time.Hour, want: nil},
		{name: "less than a third left", later: oneYear*2/3 + 24*time.Hour, want: everyLeaf(), reason: "expires on "},
		{name: "expired", later: oneYear + time.Hour, want: everyLeaf(), reason: "expired on "},
		{name: "another algorithm", want: everyLeaf(), reason: "its key is not rsa-2048",
			spoil: func(_ *testing.T, _ string, s *Spec) { s.Algorithm = RSA2048 }},
		{name: "another lifetime", want: nil,
			spoil: func(_ *testing.T, _ string, s *Spec) { s.LeafLifetime = oneYear / 2 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
			first, _ := mustEnsure(t, dir, spec)
			if c.spoil != nil {
				c.spoil(t, dir, &spec)
			}
			at := func() time.Time { return time.Now().Add(c.later) }
			second, changes, err := ensure(t.Context(), dir, spec, at, noCheckpoint)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, change := range changes {
				got = append(got, change.Path)
				if !strings.HasPrefix(change.Reason, c.reason) {
					t.Errorf("%s was made because %q, want %q", change.Path, change.Reason, c.reason)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("made %v, want %v", got, c.want)
			}
			if !bytes.Equal(first.CA, second.CA) {
				t.Error("the CA has changed")
			}
			if _, changes, err = ensure(t.Context(), dir, spec, at, noCheckpoint); err != nil || len(changes) > 0 {
				t.Errorf("one more run made %v, error %v", changes, err)
			}
		})
	}
}

func everyLeaf() []string {
	var paths []string
	for _, l := range threeHosts().leaves() {
		paths = append(paths, l.certPath())
	}
	return paths
}

func ensure(ctx context.Context, dir string, spec Spec, now func() time.Time, checkpoint func(string) error) (Bundle, []Change, error) {
	s := Open(dir, Keys{})
	s.now, s.checkpoint = now, checkpoint
	return s.Ensure(ctx, spec)
}

func noCheckpoint(string) error { return nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, text, 0o600))
}

func TestLeafNeverOutlivesTheCA(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	spec.CALifetime = 48 * time.Hour
	bundle, _ := mustEnsure(t, dir, spec)
	ca := parse(t, bundle.CA)
	if leaf := parse(t, bundle.HealthcheckClient.Cert); !leaf.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("the leaf ends %s, the CA %s", leaf.NotAfter, ca.NotAfter)
	}
	// Near its end a clamped leaf stays: another would end at the same time.
	late := func() time.Time { return ca.NotAfter.Add(-time.Hour) }
	if _, changes, err := ensure(t.Context(), dir, spec, late, noCheckpoint); err != nil || len(changes) > 0 {
		t.Errorf("made %v, error %v", changes, err)
	}
	expired := func() time.Time { return ca.NotAfter.Add(time.Hour) }
	_, _, err := ensure(t.Context(), dir, spec, expired, noCheckpoint)
	wantError(t, err, "it expired on "+ca.NotAfter.Format(time.DateOnly), "muster certs rotate-ca")
}

func wantError(t *testing.T, err error, text, hint string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Error(), text) || !strings.Contains(e.Hint(), hint) {
		t.Errorf("error %v\nwant one that says %q and hints at %q", err, text, hint)
	}
}

func TestForeignCA(t *testing.T) {
	dir, other := filepath.Join(t.TempDir(), "pki"), filepath.Join(t.TempDir(), "other")
	mustEnsure(t, dir, threeHosts())
	mustEnsure(t, other, threeHosts())
	key, err := os.ReadFile(filepath.Join(dir, caKey))
	must(t, err)

	copyFile(t, filepath.Join(other, caCert), filepath.Join(dir, caCert))
	_, _, err = Ensure(t.Context(), dir, threeHosts())
	wantError(t, err, "ca.crt and ca.key do not belong together", "put back")

	copyFile(t, filepath.Join(dir, "healthcheck-client.crt"), filepath.Join(dir, caCert))
	copyFile(t, filepath.Join(dir, "healthcheck-client.key"), filepath.Join(dir, caKey))
	_, _, err = Ensure(t.Context(), dir, threeHosts())
	wantError(t, err, "is not a CA", "put back")

	must(t, os.WriteFile(filepath.Join(dir, caCert), nil, 0o644))
	_, _, err = Ensure(t.Context(), dir, threeHosts())
	wantError(t, err, "holds no certificate", "put back")

	// The key alone is enough to go on with the same CA.
	must(t, os.WriteFile(filepath.Join(dir, caKey), key, 0o600))
	must(t, os.Remove(filepath.Join(dir, caCert)))
	bundle, changes := mustEnsure(t, dir, threeHosts())
	if len(changes) != 1 || changes[0].Path != caCert {
		t.Errorf("made %v, want the CA's certificate only", changes)
	}
	if err := parse(t, bundle.HealthcheckClient.Cert).CheckSignatureFrom(parse(t, bundle.CA)); err != nil {
		t.Errorf("a leaf from before is not signed by the CA any more: %v", err)
	}
}

func TestCAKeyAway(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	mustEnsure(t, dir, spec)
	must(t, os.Remove(filepath.Join(dir, caKey)))
	if _, changes := mustEnsure(t, dir, spec); len(changes) > 0 {
		t.Errorf("made %v without the CA's key", changes)
	}
	spec.Hosts = append(spec.Hosts, Host{Name: "controller-3"})
	_, _, err := Ensure(t.Context(), dir, spec)
	wantError(t, err, "ca.key is missing", "put the key back")
}

func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o644))
	_, _, err := Ensure(t.Context(), dir, threeHosts())
	wantError(t, err, "it holds thesis.tex and no CA", "pki.dir")
	info, err := os.Stat(dir)
	must(t, err)
	if info.Mode().Perm() != 0o755 {
		t.Errorf("its mode is now %v", info.Mode())
	}
}

func TestKeyIsClosedToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	mustEnsure(t, dir, threeHosts())
	for _, key := range []string{caKey, "hosts/controller-1/peer.key"} {
		must(t, os.Chmod(filepath.Join(dir, key), 0o644))
	}
	mustEnsure(t, dir, threeHosts())
	for _, key := range []string{caKey, "hosts/controller-1/peer.key"} {
		info, err := os.Stat(filepath.Join(dir, key))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", key, info.Mode())
		}
	}
}

func TestBadSpecs(t *testing.T) {
	for name, spoil := range map[string]func(*Spec){
		"unknown algorithm":  func(s *Spec) { s.Algorithm = "ed25519" },
		"no lifetime":        func(s *Spec) { s.LeafLifetime = 0 },
		"path as a name":     func(s *Spec) { s.Hosts[1].Name = "../../etc" },
		"nested path":        func(s *Spec) { s.Hosts[1].Name = "a/b" },
		"directory itself":   func(s *Spec) { s.Hosts[1].Name = "." },
		"the same host":      func(s *Spec) { s.Hosts[1].Name = "controller-0" },
		"host without name":  func(s *Spec) { s.Hosts[1].Name = "" },
		"negative lifetime":  func(s *Spec) { s.CALifetime = -1 },
		"parent of the root": func(s *Spec) { s.Hosts[1].Name = ".." },
	} {
		t.Run(name, func(t *testing.T) {
			dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
			spoil(&spec)
			if _, _, err := Ensure(t.Context(), dir, spec); err == nil {
				t.Error("accepted")
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Error("the directory was made")
			}
		})
	}
}

func TestOpenClient(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	_, _, err := OpenClient(dir)
	wantError(t, err, "read the certificates in "+dir, "muster apply")
	bundle, _ := mustEnsure(t, dir, threeHosts())
	ca, client, err := OpenClient(dir)
	must(t, err)
	if !bytes.Equal(ca, bundle.CA) || !samePair(client, bundle.HealthcheckClient) {
		t.Error("not the certificates that were made")
	}
}

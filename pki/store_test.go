package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sign is another CA: it signs a request for what it asks, changed by adjust.
func sign(t *testing.T, ca *Store, dir, path string, adjust func(*leaf)) {
	t.Helper()
	block, _ := pem.Decode(readFile(t, filepath.Join(dir, path+".csr")))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	must(t, err)
	must(t, request.CheckSignature())
	run := &issuing{}
	must(t, ca.locked(t.Context(), func(d directory) error {
		run.dir = d
		return run.loadCA()
	}))
	want := leaf{path: path, commonName: request.Subject.CommonName, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if len(request.DNSNames) > 0 {
		want.usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		want.sans = sansOf(&x509.Certificate{DNSNames: request.DNSNames, IPAddresses: request.IPAddresses})
	}
	adjust(&want)
	key := readFile(t, filepath.Join(dir, path+".key"))
	cert, err := run.ca.signRequest(pem.EncodeToMemory(block), want.usages, want.sans, ca.now(), oneYear)
	must(t, err)
	if _, err := parseLeaf(Pair{cert, key}); err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(filepath.Join(dir, path+".crt"), cert, 0o600))
}

// An external CA is asked by requests; what it returns is checked, everything
// at once.
func TestExternalCA(t *testing.T) {
	dir, other := filepath.Join(t.TempDir(), "pki"), filepath.Join(t.TempDir(), "corporate")
	mustEnsure(t, other, Spec{Algorithm: ECDSAP256, CALifetime: tenYears, LeafLifetime: oneYear})
	corporate := Open(other, Keys{})
	spec := threeHosts()
	spec.External, spec.Hosts = true, spec.Hosts[:1]
	s := Open(dir, Keys{})
	_, _, err := s.Ensure(t.Context(), spec)
	wantError(t, err, "ca.crt is missing", "pki.external")

	paths, err := s.Requests(t.Context(), spec, nil)
	must(t, err)
	if len(paths) != len(spec.leaves()) {
		t.Fatalf("requests %v", paths)
	}
	copyFile(t, filepath.Join(other, caCert), filepath.Join(dir, caCert))
	_, _, err = s.Ensure(t.Context(), spec)
	wantError(t, err, "hosts/controller-0/peer.crt: missing", "muster certs csr")

	before := readFile(t, filepath.Join(dir, "hosts/controller-0/server.csr"))
	_, err = s.Requests(t.Context(), spec, nil)
	must(t, err)
	if !bytes.Equal(before, readFile(t, filepath.Join(dir, "hosts/controller-0/server.csr"))) {
		t.Error("an unanswered request was changed")
	}

	sign(t, corporate, dir, "hosts/controller-0/server", func(l *leaf) { l.sans = l.sans[1:] })
	sign(t, corporate, dir, "hosts/controller-0/peer", func(l *leaf) { l.usages = l.usages[:1] })
	stranger := filepath.Join(t.TempDir(), "stranger")
	mustEnsure(t, stranger, Spec{Algorithm: ECDSAP256, CALifetime: tenYears, LeafLifetime: oneYear})
	sign(t, Open(stranger, Keys{}), dir, healthcheckClient, func(*leaf) {})
	copyFile(t, filepath.Join(dir, healthcheckClient+".crt"), filepath.Join(dir, apiserverEtcdClient+".crt"))
	_, _, err = s.Ensure(t.Context(), spec)
	for _, text := range []string{
		"hosts/controller-0/server.crt: it lacks the names 10.240.0.10",
		"hosts/controller-0/peer.crt: it is not for client auth",
		"healthcheck-client.crt: it was signed by \"CN=etcd-ca\", which does not lead to a CA in ca.crt",
		"apiserver-etcd-client.crt: certificate and key do not belong together",
	} {
		wantError(t, err, text, "muster certs csr")
	}
	for _, path := range []string{"hosts/controller-0/server", "hosts/controller-0/peer", healthcheckClient, apiserverEtcdClient} {
		sign(t, corporate, dir, path, func(*leaf) {})
	}
	bundle, changes, err := s.Ensure(t.Context(), spec)
	must(t, err)
	if len(changes) > 0 || !trusts(t, bundle.CA, bundle.HealthcheckClient) {
		t.Errorf("made %v", changes)
	}
	if _, err := os.Stat(filepath.Join(dir, caKey)); err == nil {
		t.Error("there is a CA's key")
	}
	paths, err = s.Requests(t.Context(), spec, nil)
	must(t, err)
	if len(paths) > 0 {
		t.Errorf("all is there, and yet requests were made: %v", paths)
	}
	_, _, err = s.Client(t.Context(), spec, "backup")
	wantError(t, err, "clients/backup.crt: missing", "clients/backup.csr signed")
}

func TestClient(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	mustEnsure(t, dir, spec)
	s := Open(dir, Keys{})
	pair, changes, err := s.Client(t.Context(), spec, "backup")
	must(t, err)
	if cert := parse(t, pair.Cert); cert.Subject.CommonName != "backup" || len(cert.ExtKeyUsage) != 1 || len(changes) != 1 {
		t.Errorf("made %v, subject %v for %v", changes, cert.Subject, cert.ExtKeyUsage)
	}
	again, changes, err := s.Client(t.Context(), spec, "backup")
	must(t, err)
	if !samePair(pair, again) || len(changes) > 0 {
		t.Errorf("made %v again", changes)
	}
	for _, name := range []string{"", "../ca", "a/b", ".hidden"} {
		_, _, err := s.Client(t.Context(), spec, name)
		wantError(t, err, "cannot name a client", "letters")
	}
	// It is renewed with the others.
	must(t, rotate(t, s, spec))
	bundle, _ := mustEnsure(t, dir, spec)
	if !trusts(t, bundle.CA, bundle.Clients["backup"]) || samePair(bundle.Clients["backup"], pair) {
		t.Error("a client's certificate is still the old CA's")
	}
}

// What the hosts have of a lost directory is put back; the rest is named.
func TestRestore(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	before, _ := mustEnsure(t, dir, spec)
	other := filepath.Join(t.TempDir(), "other")
	unused, _ := mustEnsure(t, other, spec)
	// The hosts were in the middle of a rotation whose new CA's key is lost.
	found := Found{CA: append(bytes.Clone(before.CA), unused.CA...), Hosts: before.Hosts, HealthcheckClient: before.HealthcheckClient}
	lost := filepath.Join(t.TempDir(), "pki")
	s := Open(lost, Keys{})
	changes, missing, err := s.Restore(t.Context(), spec, found)
	must(t, err)
	if len(changes) != 8 || len(missing) != 2 || missing[0] != "apiserver-etcd-client.crt (missing)" || missing[1] != caKey {
		t.Errorf("restored %v, missing %v", changes, missing)
	}
	must(t, os.Remove(filepath.Join(dir, "healthcheck-client.key")))
	must(t, os.Remove(filepath.Join(dir, caCert)))
	if _, missing, err = Open(dir, Keys{}).Restore(t.Context(), spec, found); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, error %v", missing, err)
	}
	if after, changes := mustEnsure(t, dir, spec); !sameBundle(before, after) || len(changes) > 0 {
		t.Errorf("made %v", changes)
	}
	// Then a new CA puts an end to the want.
	must(t, rotate(t, s, spec))
	after, _ := mustEnsure(t, lost, spec)
	checkWhole(t, lost, after, spec)

	if text := readFile(t, filepath.Join(lost, caCert)); bytes.Contains(text, bytes.TrimSpace(unused.CA)) {
		t.Error("a CA that has signed nothing was restored")
	}
	_, _, err = Open(other, Keys{}).Restore(t.Context(), spec, found)
	wantError(t, err, "the hosts trust another CA", "pki.dir")
	foreign := t.TempDir()
	must(t, os.WriteFile(filepath.Join(foreign, "thesis.tex"), nil, 0o600))
	_, _, err = Open(foreign, Keys{}).Restore(t.Context(), spec, found)
	wantError(t, err, "it holds thesis.tex", "pki.dir")
}

// Looking changes nothing, whatever there is to complain about.
func TestInspect(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	if in, err := Open(filepath.Join(dir, "nothing"), Keys{}).Inspect(spec); err != nil || in.CAKey != "missing" || in.Certificates[0].Problems[0] != "missing" {
		t.Errorf("nothing there: %+v, %v", in, err)
	}
	mustEnsure(t, dir, spec)
	in, err := Open(dir, Keys{}).Inspect(spec)
	must(t, err)
	for _, c := range in.Certificates {
		if len(c.Problems) > 0 {
			t.Errorf("%s: %v", c.Path, c.Problems)
		}
	}
	if len(in.Certificates) != 9 || in.CAKey != "in clear" || in.Phase != Settled {
		t.Errorf("%+v", in)
	}
	must(t, os.Remove(filepath.Join(dir, lockFile)))
	must(t, os.Remove(filepath.Join(dir, "hosts/controller-1/server.key")))
	must(t, os.Chmod(filepath.Join(dir, "hosts/controller-1/peer.key"), 0o644))
	must(t, os.Chmod(filepath.Join(dir, caKey), 0o640))
	must(t, os.WriteFile(filepath.Join(dir, "hosts/controller-2/peer.crt"), []byte("torn"), 0o600))
	spec.Hosts[0].SANs = []string{"10.9.9.9"}
	late := Open(dir, Keys{})
	late.now = func() time.Time { return time.Now().Add(tenYears - oneYear/2) }
	for _, c := range []struct {
		s    *Store
		path string
		want string
	}{
		{Open(dir, Keys{}), "hosts/controller-0/server.crt", "its names have changed"},
		{Open(dir, Keys{}), "hosts/controller-1/server.crt", "its key is missing"},
		{Open(dir, Keys{}), "hosts/controller-1/peer.crt", "others can read its key (mode 0644)"},
		{Open(dir, Keys{}), "hosts/controller-2/peer.crt", "not a certificate"},
		{Open(dir, Keys{}), caCert, "others can read its key (mode 0640)"},
		{late, caCert, "muster certs rotate-ca replaces it"},
		{late, "hosts/controller-2/server.crt", "expired on "},
	} {
		in, err := c.s.Inspect(spec)
		must(t, err)
		if got := problemsOf(in, c.path); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "hosts/controller-1/peer.key")); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the mode was changed: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, lockFile)); err == nil {
		t.Error("a lock was made")
	}
}

func problemsOf(in *Inspection, path string) string {
	for _, c := range in.Certificates {
		if c.Path == path {
			return strings.Join(c.Problems, "; ")
		}
	}
	return "not listed"
}

// An export is whole, is not repeated, follows a rotation, and leaves a CA of
// somebody else alone.
func TestExport(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	bundle, _ := mustEnsure(t, dir, spec)
	s, to := Open(dir, Keys{}), filepath.Join(t.TempDir(), "etcd")
	export := func(b Bundle, want int) {
		t.Helper()
		changed, err := s.Export(to, ExportOf(b.CA, APIServerName, b.APIServerEtcdClient))
		must(t, err)
		if len(changed) != want {
			t.Errorf("wrote %v, want %d files", changed, want)
		}
	}
	export(bundle, 3)
	must(t, os.Chmod(filepath.Join(to, "apiserver-etcd-client.key"), 0o644))
	export(bundle, 0)
	if info, err := os.Stat(filepath.Join(to, "apiserver-etcd-client.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v, %v", info.Mode(), err)
	}
	must(t, rotate(t, s, spec))
	bundle, _ = mustEnsure(t, dir, spec)
	export(bundle, 3) // the CA there is in the archive
	other, _ := mustEnsure(t, filepath.Join(t.TempDir(), "other"), spec)
	must(t, os.WriteFile(filepath.Join(to, caCert), other.CA, 0o600))
	must(t, os.Remove(filepath.Join(to, "apiserver-etcd-client.key")))
	_, err := s.Export(to, ExportOf(bundle.CA, APIServerName, bundle.APIServerEtcdClient))
	wantError(t, err, "is not of this cluster's CA", "another directory")
	if _, err := os.Stat(filepath.Join(to, "apiserver-etcd-client.key")); err == nil {
		t.Error("half of it was written")
	}
}

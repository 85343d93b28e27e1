package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rotate takes a rotation from wherever it is to its end, as certs rotate-ca
// does it.
func rotate(t *testing.T, s *Store, spec Spec) error {
	t.Helper()
	if _, err := s.StartRotation(t.Context(), spec); err != nil {
		return err
	}
	if err := s.SwitchCA(t.Context()); err != nil {
		return err
	}
	if _, _, err := s.Ensure(t.Context(), spec); err != nil {
		return err
	}
	if err := s.DropOldCA(t.Context()); err != nil {
		return err
	}
	_, err := s.EndRotation(t.Context())
	return err
}

func phase(t *testing.T, s *Store, want Phase) Rotation {
	t.Helper()
	r, err := s.Rotation(t.Context())
	must(t, err)
	if r.Phase != want {
		t.Fatalf("phase %s, want %s", r.Phase, want)
	}
	return r
}

// trusts reports whether a bundle is all that is needed to verify a client.
func trusts(t *testing.T, bundle []byte, client Pair) bool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		t.Fatalf("not a bundle:\n%s", bundle)
	}
	_, err := parse(t, client.Cert).Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

func TestRotationPhases(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	before, _ := mustEnsure(t, dir, spec)
	s := Open(dir, Keys{})
	phase(t, s, Settled)

	_, err := s.StartRotation(t.Context(), spec)
	must(t, err)
	r := phase(t, s, Trusting)
	during, changes := mustEnsure(t, dir, spec)
	if len(changes) > 0 {
		t.Errorf("while the old CA signs, these were made: %v", changes)
	}
	if !trusts(t, during.CA, before.HealthcheckClient) || !trusts(t, during.CA, r.NewClient) || trusts(t, before.CA, r.NewClient) {
		t.Error("the bundle does not trust both CAs")
	}
	if !bytes.HasPrefix(during.CA, before.CA) {
		t.Error("the CA that signs is not the first of the bundle")
	}

	must(t, s.SwitchCA(t.Context()))
	r = phase(t, s, Issuing)
	after, changes := mustEnsure(t, dir, spec)
	if len(changes) != len(spec.leaves()) {
		t.Errorf("after the switch these were made: %v", changes)
	}
	if !trusts(t, r.NewCA, after.Hosts["controller-1"].Peer) || trusts(t, r.OldCA, after.HealthcheckClient) {
		t.Error("the leaves are not the new CA's")
	}
	if !bytes.Equal(r.OldClient.Cert, before.HealthcheckClient.Cert) {
		t.Error("no client of the old CA is kept for its end")
	}

	must(t, s.DropOldCA(t.Context()))
	r = phase(t, s, Dropping)
	end, changes := mustEnsure(t, dir, spec)
	if len(changes) > 0 || trusts(t, end.CA, r.OldClient) || !bytes.Equal(end.CA, r.NewCA) {
		t.Errorf("the old CA is still trusted, or these were made: %v", changes)
	}

	_, err = s.EndRotation(t.Context())
	must(t, err)
	phase(t, s, Settled)
	checkRotated(t, dir, before.CA)
	if _, changes := mustEnsure(t, dir, spec); len(changes) > 0 {
		t.Errorf("afterwards these were made: %v", changes)
	}
}

// checkRotated fails unless the old CA is archived, its key is gone and no
// file of the rotation is left.
func checkRotated(t *testing.T, dir string, old []byte) {
	t.Helper()
	archived, err := filepath.Glob(filepath.Join(dir, archiveDir, "*"))
	must(t, err)
	if len(archived) != 1 {
		t.Fatalf("the archive holds %v", archived)
	}
	text, err := os.ReadFile(archived[0])
	must(t, err)
	if !bytes.Equal(bytes.TrimSpace(text), bytes.TrimSpace(old)) {
		t.Error("the archive holds another certificate than the old CA's")
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "next-") || strings.HasPrefix(e.Name(), "retired-") {
			t.Errorf("%s is left over", e.Name())
		}
	}
}

// TestRotationKilledAnywhere ends a rotation after each step that reaches the
// disk; run again, it goes on to the same end. In between, everything of the
// old CA works as long as members may serve it.
func TestRotationKilledAnywhere(t *testing.T) {
	spec := threeHosts()
	spec.Hosts = spec.Hosts[:1]
	first := filepath.Join(t.TempDir(), "pki")
	mustEnsure(t, first, spec)
	var steps []string
	count := Open(first, Keys{})
	count.checkpoint = func(step string) error {
		steps = append(steps, step)
		return nil
	}
	must(t, rotate(t, count, spec))
	killed := errors.New("killed")
	for kill, step := range steps {
		t.Run(step, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			before, _ := mustEnsure(t, dir, spec)
			s, n := Open(dir, Keys{}), 0
			s.checkpoint = func(string) error {
				if n++; n > kill {
					return killed
				}
				return nil
			}
			if err := rotate(t, s, spec); !errors.Is(err, killed) {
				t.Fatalf("error %v, want that of the kill", err)
			}
			r, err := Open(dir, Keys{}).Rotation(t.Context())
			must(t, err)
			between, _ := mustEnsure(t, dir, spec)
			checkWhole(t, dir, between, spec)
			if r.Phase == Trusting || r.Phase == Issuing {
				if !trusts(t, between.CA, before.HealthcheckClient) {
					t.Errorf("in phase %s the old CA is not trusted", r.Phase)
				}
			}
			if r.Phase == Settled {
				before = between
			}
			done := kill == len(steps)-1
			if !done {
				must(t, rotate(t, Open(dir, Keys{}), spec))
			}
			after, _ := mustEnsure(t, dir, spec)
			checkWhole(t, dir, after, spec)
			if !done {
				checkTidy(t, dir)
				checkRotated(t, dir, originalCA(before.CA, r))
			}
		})
	}
}

// originalCA is the CA that a rotation, in whatever phase, replaces.
func originalCA(bundle []byte, r Rotation) []byte {
	if r.OldCA != nil {
		return r.OldCA
	}
	return bundle
}

// A CA whose key is lost is replaced like any other.
func TestRotationWithoutTheKey(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	before, _ := mustEnsure(t, dir, spec)
	must(t, os.Remove(filepath.Join(dir, caKey)))
	must(t, os.Remove(filepath.Join(dir, "apiserver-etcd-client.key")))
	_, _, err := Ensure(t.Context(), dir, spec)
	wantError(t, err, "ca.key is missing", "muster certs rotate-ca")
	must(t, rotate(t, Open(dir, Keys{}), spec))
	after, changes := mustEnsure(t, dir, spec)
	checkWhole(t, dir, after, spec)
	checkRotated(t, dir, before.CA)
	if len(changes) > 0 {
		t.Errorf("afterwards these were made: %v", changes)
	}
}

func TestRotationOfAnExternalCA(t *testing.T) {
	spec := threeHosts()
	spec.External = true
	_, err := Open(filepath.Join(t.TempDir(), "pki"), Keys{}).StartRotation(t.Context(), spec)
	wantError(t, err, "pki.external", "put the old and the new CA's certificate into ca.crt")
}

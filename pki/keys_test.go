package pki

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"filippo.io/age"
)

// answers returns what somebody types, and counts how often they are asked.
func answers(text string, asked *int) func(string) ([]byte, error) {
	return func(string) ([]byte, error) {
		*asked++
		return []byte(text), nil
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return text
}

// A key under a passphrase is opened when something is signed, not before, and
// once; what replaces it is under the same one.
func TestKeyUnderAPassphrase(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	mustEnsure(t, dir, spec)
	inClear := readFile(t, filepath.Join(dir, caKey))
	var asked int
	must(t, Open(dir, Keys{workFactor: 10}).EncryptKey(t.Context(), nil, answers("correct horse", &asked)))
	sealed := readFile(t, filepath.Join(dir, caKey))
	if !isSealed(sealed) || !byPassphrase(sealed) || bytes.Contains(sealed, []byte("PRIVATE KEY")) || asked != 1 {
		t.Fatalf("asked %d times, the key is\n%s", asked, sealed)
	}
	if _, changes := mustEnsure(t, dir, spec); len(changes) > 0 {
		t.Errorf("made %v", changes)
	}
	spec.Hosts = append(spec.Hosts, Host{Name: "controller-3"})
	_, _, err := Ensure(t.Context(), dir, spec)
	wantError(t, err, "nobody can be asked", "MUSTER_CA_PASSPHRASE")
	_, _, err = Open(dir, Keys{Passphrase: answers("wrong", new(int))}).Ensure(t.Context(), spec)
	wantError(t, err, "the passphrase is wrong", "again")

	asked = 0
	s := Open(dir, Keys{Passphrase: answers("correct horse", &asked), workFactor: 10})
	bundle, changes, err := s.Ensure(t.Context(), spec)
	must(t, err)
	if len(changes) != 2 || asked != 1 {
		t.Errorf("made %v, asked %d times", changes, asked)
	}
	checkWhole(t, dir, bundle, spec)
	must(t, rotate(t, s, spec))
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	renewed := readFile(t, filepath.Join(dir, caKey))
	if !byPassphrase(renewed) || bytes.Equal(renewed, sealed) {
		t.Error("the new CA's key is not under the passphrase")
	}
	must(t, s.DecryptKey(t.Context()))
	if again := readFile(t, filepath.Join(dir, caKey)); isSealed(again) || bytes.Equal(again, inClear) {
		t.Error("the new CA's key is not in clear")
	}
	mustEnsure(t, dir, spec)
}

// A key for recipients needs none of them to be replaced.
func TestKeyForRecipients(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	mustEnsure(t, dir, spec)
	mine, other := identity(t), identity(t)
	err := Open(dir, Keys{}).EncryptKey(t.Context(), []string{"age1nonsense"}, nil)
	wantError(t, err, "encrypt the CA's key", "age1...")
	must(t, Open(dir, Keys{}).EncryptKey(t.Context(), []string{mine.Recipient().String()}, nil))

	spec.Hosts = append(spec.Hosts, Host{Name: "controller-3"})
	_, _, err = Ensure(t.Context(), dir, spec)
	wantError(t, err, "encrypted for an age identity", "MUSTER_CA_IDENTITY")
	_, _, err = Open(dir, Keys{IdentityFile: identityFile(t, other)}).Ensure(t.Context(), spec)
	wantError(t, err, "none of the identities", "--ca-identity")
	_, _, err = Open(dir, Keys{IdentityFile: filepath.Join(dir, caCert)}).Ensure(t.Context(), spec)
	wantError(t, err, "holds no age identity", "age-keygen")
	s := Open(dir, Keys{IdentityFile: identityFile(t, mine)})
	_, changes, err := s.Ensure(t.Context(), spec)
	must(t, err)
	if len(changes) != 2 {
		t.Errorf("made %v", changes)
	}

	_, err = Open(dir, Keys{}).StartRotation(t.Context(), spec)
	must(t, err)
	if key := readFile(t, filepath.Join(dir, nextKey)); !isSealed(key) || byPassphrase(key) {
		t.Errorf("the new CA's key is kept as\n%s", key)
	}
	must(t, rotate(t, s, spec))
}

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	i, err := age.GenerateX25519Identity()
	must(t, err)
	return i
}

func identityFile(t *testing.T, i *age.X25519Identity) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(path, []byte(i.String()+"\n"), 0o600))
	return path
}

// Two clusters with one CA use one Store at the same time: whoever is first asks
// for the passphrase, for as long as it takes to type it.
func TestOneStoreForTwoClusters(t *testing.T) {
	dir, specs := filepath.Join(t.TempDir(), "pki"), []Spec{threeHosts(), threeHosts()}
	for i := range specs[1].Hosts {
		specs[1].Hosts[i].Name = fmt.Sprintf("events-%d", i)
	}
	mustEnsure(t, dir, specs[0])
	var asked int
	must(t, Open(dir, Keys{workFactor: 10}).EncryptKey(t.Context(), nil, answers("correct horse", &asked)))
	must(t, os.RemoveAll(filepath.Join(dir, hostsDir)))

	asked = 0
	s := Open(dir, Keys{Passphrase: answers("correct horse", &asked), workFactor: 10})
	bundles, errs := make([]Bundle, 2), make([]error, 2)
	var both sync.WaitGroup
	for i, spec := range specs {
		both.Go(func() { bundles[i], _, errs[i] = s.Ensure(t.Context(), spec) })
	}
	both.Wait()
	must(t, errors.Join(errs...))
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	for i, spec := range specs {
		checkWhole(t, dir, bundles[i], spec)
	}
	if !bytes.Equal(bundles[0].APIServerEtcdClient.Cert, bundles[1].APIServerEtcdClient.Cert) {
		t.Error("the two have different clients")
	}
	waiting, cancel := context.WithCancel(t.Context())
	cancel()
	s.turn <- struct{}{}
	if _, _, err := s.Ensure(waiting, specs[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

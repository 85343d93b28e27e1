package pki

import (
	"bytes"
	"os"
	"path/filepath"
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

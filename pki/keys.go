package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// Keys says how to open the key of a CA that is kept encrypted. The zero
// value can use keys that are not.
type Keys struct {
	// Passphrase returns the passphrase. It is called once at most, and only
	// when something is to be signed; nil when nobody can be asked.
	Passphrase func(question string) ([]byte, error)
	// IdentityFile is a file of age identities; empty for none.
	IdentityFile string

	// workFactor is scrypt's, as a power of two; 0 for age's own choice.
	workFactor int
}

// isSealed reports whether a key is encrypted by age.
func isSealed(key []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(key), []byte(armor.Header))
}

// byPassphrase reports whether a sealed key is opened by a passphrase rather
// than by an identity.
func byPassphrase(sealed []byte) bool {
	header, err := io.ReadAll(io.LimitReader(armor.NewReader(bytes.NewReader(sealed)), 64))
	// age's format: a line with its version, then the first recipient.
	lines := strings.Split(string(header), "\n")
	return err == nil && len(lines) > 1 && strings.HasPrefix(lines[1], "-> scrypt ")
}

// vault opens and closes the keys of one directory, asking once.
type vault struct {
	keys       Keys
	passphrase string // empty until it was asked for
}

// open returns a key in PEM.
func (v *vault) open(name string, sealed []byte) ([]byte, error) {
	identities, err := v.identities(name, sealed)
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), identities...)
	var key []byte
	if err == nil {
		key, err = io.ReadAll(r)
	}
	if err == nil {
		return key, nil
	}
	v.passphrase = ""
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		if byPassphrase(sealed) {
			return nil, &Error{fmt.Errorf("open %s: the passphrase is wrong", name), "run the command again with the right one"}
		}
		return nil, &Error{fmt.Errorf("open %s: none of the identities in %s fits", name, v.keys.IdentityFile), "name the file of an identity that the key was encrypted for with --ca-identity"}
	}
	return nil, fmt.Errorf("open %s: %w", name, err)
}

func (v *vault) identities(name string, sealed []byte) ([]age.Identity, error) {
	if byPassphrase(sealed) {
		passphrase, err := v.ask("passphrase of the CA's key " + name)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		identity, err := age.NewScryptIdentity(passphrase)
		return []age.Identity{identity}, err
	}
	if v.keys.IdentityFile == "" {
		return nil, &Error{fmt.Errorf("open %s: it is encrypted for an age identity", name), "name the identity's file with --ca-identity or MUSTER_CA_IDENTITY"}
	}
	f, err := os.Open(v.keys.IdentityFile)
	if err != nil {
		return nil, fmt.Errorf("open %s: read the age identity: %w", name, err)
	}
	defer f.Close()
	identities, err := age.ParseIdentities(f)
	if err != nil {
		return nil, &Error{fmt.Errorf("open %s: %s holds no age identity: %w", name, v.keys.IdentityFile, err), "name a file as age-keygen writes it"}
	}
	return identities, nil
}

func (v *vault) ask(question string) (string, error) {
	if v.passphrase != "" {
		return v.passphrase, nil
	}
	if v.keys.Passphrase == nil {
		return "", &Error{errors.New("a passphrase is needed and nobody can be asked"), "run the command on a terminal, or set MUSTER_CA_PASSPHRASE"}
	}
	answer, err := v.keys.Passphrase(question)
	if err != nil {
		return "", err
	}
	if len(answer) == 0 {
		return "", &Error{errors.New("the passphrase is empty"), "run the command again and type it"}
	}
	v.passphrase = string(answer)
	return v.passphrase, nil
}

// seal encrypts a key for recipients.
func seal(key []byte, recipients ...age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, recipients...)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(key)
	if err = errors.Join(err, w.Close(), text.Close()); err != nil {
		return nil, err
	}
	return append(out.Bytes(), '\n'), nil
}

// like encrypts a new key the way the old one is: for the recipients that the
// directory lists, or by the same passphrase. A key whose predecessor is not
// encrypted, or is lost, stays as it is.
func (v *vault) like(d directory, key []byte) ([]byte, error) {
	text, err := d.read(caRecipients)
	if err == nil {
		recipients, err := age.ParseRecipients(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", d.path(caRecipients), err)
		}
		return seal(key, recipients...)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old, err := d.read(caKey)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !isSealed(old) {
		return key, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := v.open(caKey, old); err != nil { // a mistyped passphrase is noticed here
		return nil, err
	}
	recipient, err := v.keys.recipient(v.passphrase)
	if err != nil {
		return nil, err
	}
	return seal(key, recipient)
}

// recipient is whoever knows a passphrase.
func (k Keys) recipient(passphrase string) (age.Recipient, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err == nil && k.workFactor != 0 {
		r.SetWorkFactor(k.workFactor)
	}
	return r, err
}

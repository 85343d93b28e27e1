package pki

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"filippo.io/age"
)

// EncryptKey encrypts the key of the CA at rest: for age recipients
// ("age1..."), or, without any, by the passphrase that newPassphrase returns.
// A key that is encrypted already is opened and encrypted anew.
func (s *Store) EncryptKey(ctx context.Context, recipients []string, newPassphrase func(question string) ([]byte, error)) error {
	text := strings.Join(recipients, "\n") + "\n"
	var to []age.Recipient
	if len(recipients) > 0 {
		var err error
		if to, err = age.ParseRecipients(strings.NewReader(text)); err != nil {
			return &Error{fmt.Errorf("encrypt the CA's key: %w", err), "write recipients as age-keygen prints them: age1..."}
		}
	}
	return s.locked(ctx, func(d directory) error {
		keys, err := s.openKeys(d)
		if err != nil {
			return err
		}
		if to == nil {
			// Not the passphrase that may have opened the old one.
			v := vault{keys: Keys{Passphrase: newPassphrase}}
			passphrase, err := v.ask("new passphrase for the CA's key")
			if err != nil {
				return fmt.Errorf("encrypt the CA's key: %w", err)
			}
			recipient, err := s.vault.keys.recipient(passphrase)
			if err != nil {
				return err
			}
			to = []age.Recipient{recipient}
		} else if err := d.write(caRecipients, []byte(text), publicMode); err != nil {
			return err
		}
		for name, key := range keys {
			sealed, err := seal(key, to...)
			if err == nil {
				err = d.write(name, sealed, secretMode)
			}
			if err != nil {
				return fmt.Errorf("encrypt %s: %w", name, err)
			}
		}
		if len(recipients) == 0 {
			return d.remove(caRecipients)
		}
		return nil
	})
}

// DecryptKey keeps the key of the CA in clear from now on.
func (s *Store) DecryptKey(ctx context.Context) error {
	return s.locked(ctx, func(d directory) error {
		keys, err := s.openKeys(d)
		if err != nil {
			return err
		}
		if err := d.remove(caRecipients); err != nil {
			return err
		}
		for name, key := range keys {
			if err := d.write(name, key, secretMode); err != nil {
				return err
			}
		}
		return nil
	})
}

// openKeys returns the key of the CA, and those of a rotation, in clear.
func (s *Store) openKeys(d directory) (map[string][]byte, error) {
	keys := map[string][]byte{}
	for _, name := range []string{caKey, nextKey, retiredKey} {
		key, err := d.read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != caKey:
			continue
		case errors.Is(err, fs.ErrNotExist):
			return nil, &Error{fmt.Errorf("there is no key of a CA in %s", s.dir), "name the directory of the cluster's certificates as pki.dir"}
		case err == nil && isSealed(key):
			key, err = s.vault.open(name, key)
		}
		if err != nil {
			return nil, err
		}
		keys[name] = key
	}
	return keys, nil
}

package pki

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
)

// Import puts the CA of a cluster that somebody else has made into the
// directory, with its key in PEM. What is there already is kept; another CA is
// an error. Of several certificates the one that belongs to the key signs.
func (s *Store) Import(ctx context.Context, cert, key []byte) (changes []Change, err error) {
	bundle, err := signerFirst(cert, key)
	if err != nil {
		return nil, &Error{fmt.Errorf("take over the CA: %w", err), "the certificate and the key of the CA have to belong together"}
	}
	err = s.locked(ctx, func(d directory) error {
		have, err := d.read(caCert)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// Before its key: a key alone would be taken for that of a CA whose
			// certificate is still to be made.
			if err := d.write(caCert, bundle, publicMode); err != nil {
				return err
			}
			changes = append(changes, Change{caCert, reasonMissing})
		case err != nil:
			return err
		default:
			certs, err := parseCAs(have)
			if err != nil || !holds(certs, bundle) {
				return &Error{fmt.Errorf("%s is another CA than the one to take over", d.path(caCert)), "name another directory as pki.dir"}
			}
		}
		there, err := d.exists(caKey)
		if err != nil || there {
			return err
		}
		changes = append(changes, Change{caKey, reasonMissing})
		return d.write(caKey, key, secretMode)
	})
	return changes, err
}

// signerFirst returns the certificates of a bundle, the one of the key first.
func signerFirst(bundle, key []byte) ([]byte, error) {
	certs, err := parseCAs(bundle)
	if err != nil {
		return nil, err
	}
	failed := []error{}
	for i := range certs {
		certs[0], certs[i] = certs[i], certs[0]
		var text []byte
		for _, c := range certs {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		if _, err := parseAuthority(text, key); err != nil {
			failed = append(failed, err)
			continue
		}
		return text, nil
	}
	return nil, failed[0]
}

// HasKey says whether the directory holds the key of the CA, in clear or
// encrypted.
func (s *Store) HasKey() (bool, error) { return directory{root: s.dir}.exists(caKey) }

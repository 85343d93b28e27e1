package pki

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/cloudflare/cfssl/helpers"
)

// Files that exist while one CA replaces another. What phase a rotation is in
// follows from them and from ca.crt; nothing else records it.
const (
	nextCert      = "next-ca.crt" // the new CA, until it signs
	nextKey       = "next-ca.key"
	nextClient    = "next-client"    // signed by it, to ask members whether they trust it
	retiredCert   = "retired-ca.crt" // the old CA, from when it signs no more
	retiredKey    = "retired-ca.key"
	retiredClient = "retired-client" // signed by it, to ask members whether they still trust it
	archiveDir    = "archive"
)

// Phase is how far the replacement of a CA has come.
type Phase string

// The phases, in order. They appear in JSON output: do not rename.
const (
	// Settled is no rotation: one CA signs and is trusted.
	Settled Phase = "settled"
	// Trusting is when members learn to trust the new CA; the old one signs.
	Trusting Phase = "trusting"
	// Issuing is when leaves are replaced by ones of the new CA.
	Issuing Phase = "issuing"
	// Dropping is when members learn to trust the old CA no more.
	Dropping Phase = "dropping"
)

// Rotation is a replacement of the CA under way.
type Rotation struct {
	Phase Phase
	// NewCA and OldCA are certificates in PEM; empty when Settled.
	NewCA, OldCA []byte
	// Expired says that the old CA has expired, and its leaves with it: there is
	// no cluster at work that the rotation could disturb.
	Expired bool
	// NewClient is a client of the new CA, until that signs all clients.
	NewClient Pair
	// OldClient is a client of the old CA, from when that signs no more. It is
	// empty when there was none.
	OldClient Pair
}

// Rotation reads how far a rotation has come.
func (s *Store) Rotation(ctx context.Context) (Rotation, error) {
	var r Rotation
	err := s.locked(ctx, func(d directory) (err error) {
		r, err = d.rotation()
		return err
	})
	if old, bad := helpers.ParseCertificatePEM(r.OldCA); bad == nil {
		r.Expired = s.now().After(old.NotAfter)
	}
	return r, err
}

// StartRotation makes a new CA beside the present one, which goes on signing,
// and a bundle of both to trust. The present one's key is not needed. In a
// later phase it does nothing.
func (s *Store) StartRotation(ctx context.Context, spec Spec) ([]Change, error) {
	if spec.External {
		return nil, &Error{errors.New("the CA is not muster's to replace: the inventory says pki.external"),
			"put the old and the new CA's certificate into ca.crt and run muster apply; then leaves of the new CA, and apply; then only the new CA, and apply"}
	}
	if err := spec.check(); err != nil {
		return nil, err
	}
	var changes []Change
	err := s.locked(ctx, func(d directory) error {
		now, err := d.rotation()
		if err != nil || now.Phase != Settled {
			return err
		}
		bundle, err := d.read(caCert)
		if errors.Is(err, fs.ErrNotExist) {
			return &Error{fmt.Errorf("there is no CA in %s to replace", s.dir), "muster apply makes the first one; muster certs recover takes the certificate of one that exists from the hosts"}
		}
		if err != nil {
			return err
		}
		key, cert, err := s.nextCA(d, spec)
		if err != nil {
			return fmt.Errorf("make the new CA: %w", err)
		}
		if err := s.nextClient(d, spec, key, cert); err != nil {
			return fmt.Errorf("make a client of the new CA: %w", err)
		}
		changes = []Change{{nextCert, "a new CA"}, {caCert, "both are to be trusted"}}
		return d.write(caCert, slices.Concat(withNewline(bundle), cert), publicMode)
	})
	return changes, err
}

// nextCA returns the new CA's key in clear and its certificate, made when they
// are not there yet. The key is kept the way the present one is.
func (s *Store) nextCA(d directory, spec Spec) (key, cert []byte, err error) {
	key, err = d.read(nextKey)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if key, err = newKey(spec.Algorithm); err != nil {
			return nil, nil, err
		}
		kept, err := s.vault.like(d, key)
		if err != nil {
			return nil, nil, err
		}
		if err := d.write(nextKey, kept, secretMode); err != nil {
			return nil, nil, err
		}
	case err == nil && isSealed(key):
		key, err = s.vault.open(nextKey, key)
	}
	if err != nil {
		return nil, nil, err
	}
	cert, err = d.read(nextCert)
	if errors.Is(err, fs.ErrNotExist) {
		if cert, err = selfSign(key, spec.CALifetime); err == nil {
			err = d.write(nextCert, cert, publicMode)
		}
	}
	return key, cert, err
}

func (s *Store) nextClient(d directory, spec Spec, key, cert []byte) error {
	ca, err := parseAuthority(cert, key)
	if err != nil {
		return err
	}
	run := &issuing{dir: d, ca: ca}
	want := leaf{path: nextClient, role: Client, commonName: HealthcheckUser, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	pair, err := ca.issue(want, spec.Algorithm, s.now(), spec.LeafLifetime)
	if err != nil {
		return err
	}
	return run.keep(want, pair, "")
}

// SwitchCA lets the new CA sign from now on. Every member must trust it
// already. In another phase than Trusting it does nothing.
func (s *Store) SwitchCA(ctx context.Context) error {
	return s.locked(ctx, func(d directory) error {
		now, err := d.rotation()
		if err != nil || now.Phase != Trusting {
			return err
		}
		if err := d.write(retiredCert, now.OldCA, publicMode); err != nil {
			return err
		}
		for _, extension := range []string{".key", ".crt"} {
			text, err := d.read(healthcheckClient + extension)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = d.write(retiredClient+extension, text, secretMode)
			}
			if err != nil {
				return err
			}
		}
		bundle, err := d.read(caCert)
		if err != nil {
			return err
		}
		rest, err := without(bundle, now.NewCA)
		if err != nil {
			return err
		}
		if err := d.write(caCert, slices.Concat(withNewline(now.NewCA), rest), publicMode); err != nil {
			return err
		}
		return d.settle()
	})
}

// DropOldCA takes the old CA out of the bundle. No member may serve a leaf of
// it any more. In another phase than Issuing it does nothing.
func (s *Store) DropOldCA(ctx context.Context) error {
	return s.locked(ctx, func(d directory) error {
		now, err := d.rotation()
		if err != nil || now.Phase != Issuing {
			return err
		}
		bundle, err := d.read(caCert)
		if err != nil {
			return err
		}
		rest, err := without(bundle, now.OldCA)
		if err != nil {
			return err
		}
		return d.write(caCert, rest, publicMode)
	})
}

// EndRotation archives the old CA's certificate and removes its key, which
// signs nothing that anybody trusts. In another phase than Dropping it does
// nothing.
func (s *Store) EndRotation(ctx context.Context) ([]Change, error) {
	var changes []Change
	err := s.locked(ctx, func(d directory) error {
		now, err := d.rotation()
		if err != nil || now.Phase != Dropping {
			return err
		}
		old, err := helpers.ParseCertificatePEM(now.OldCA)
		if err != nil {
			return fmt.Errorf("read %s: %w", d.path(retiredCert), err)
		}
		name := fmt.Sprintf("%s/ca-%s-%.8x.crt", archiveDir, old.NotBefore.Format(time.DateOnly), sha256.Sum256(old.Raw))
		if err := d.write(name, now.OldCA, publicMode); err != nil {
			return err
		}
		changes = []Change{{name, "the old CA"}}
		for _, file := range []string{retiredKey, retiredClient + ".key", retiredClient + ".crt", retiredCert} {
			if err := d.remove(file); err != nil {
				return err
			}
		}
		return nil
	})
	return changes, err
}

// settle completes a SwitchCA that was killed after its decisive write, that of
// ca.crt. The new CA's certificate goes last: it is how this is recognized.
func (d directory) settle() error {
	next, err := d.read(nextCert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	bundle, err := d.read(caCert)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(bundle, bytes.TrimSpace(next)) {
		return nil
	}
	for _, move := range []struct{ from, to, unless string }{
		{caKey, retiredKey, ""}, // before the new key takes its name
		{nextKey, caKey, ""},
	} {
		waiting, err := d.exists(nextKey)
		if err != nil {
			return err
		}
		there, err := d.exists(move.from)
		if err != nil {
			return err
		}
		if waiting && there {
			if err := d.rename(move.from, move.to); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{nextClient + ".key", nextClient + ".crt", nextCert} {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (d directory) rotation() (Rotation, error) {
	r := Rotation{Phase: Settled}
	var texts [7][]byte
	for i, name := range []string{caCert, nextCert, retiredCert, nextClient + ".crt", nextClient + ".key", retiredClient + ".crt", retiredClient + ".key"} {
		var err error
		if texts[i], err = d.read(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	bundle, next, retired := texts[0], texts[1], texts[2]
	if bundle == nil {
		return r, nil
	}
	trusted, err := parseCAs(bundle)
	if err != nil {
		return r, fmt.Errorf("%s %w", d.path(caCert), err)
	}
	first := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trusted[0].Raw})
	switch {
	case next != nil && holds(trusted, next):
		r.Phase, r.NewCA, r.OldCA = Trusting, next, first
		r.NewClient = Pair{Cert: texts[3], Key: texts[4]}
	case next != nil || retired == nil: // nothing decisive has happened
	case holds(trusted, retired):
		r.Phase, r.NewCA, r.OldCA = Issuing, first, retired
	default:
		r.Phase, r.NewCA, r.OldCA = Dropping, first, retired
	}
	if r.Phase == Issuing || r.Phase == Dropping {
		r.OldClient = Pair{Cert: texts[5], Key: texts[6]}
	}
	return r, nil
}

func holds(certs []*x509.Certificate, text []byte) bool {
	block, _ := pem.Decode(text)
	return block != nil && slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, block.Bytes) })
}

// without returns a bundle without one of its certificates.
func without(bundle, gone []byte) ([]byte, error) {
	certs, err := parseCAs(bundle)
	if err != nil {
		return nil, err
	}
	var rest []byte
	for _, c := range certs {
		if !holds([]*x509.Certificate{c}, gone) {
			rest = append(rest, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
	}
	if rest == nil {
		return nil, errors.New("no CA would be left")
	}
	return rest, nil
}

func withNewline(text []byte) []byte {
	return append(bytes.TrimRight(bytes.Clone(text), "\n"), '\n')
}

package pki

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Change is one certificate that was made.
type Change struct {
	Path   string // of the certificate, relative to the directory
	Reason string // what was wrong with the one that was there
}

// Store is the directory of one cluster's certificates, or of several that have
// one CA. It may be used from several goroutines, which wait for each other for
// as long as it takes; other processes, and another Store, do for a few seconds.
type Store struct {
	dir   string
	turn  chan struct{} // holds one value while somebody is at work
	vault vault
	now   func() time.Time
	// checkpoint is called after each step that reaches the disk; its error
	// ends the run there, as a kill would.
	checkpoint func(step string) error
}

// Open returns the store in a directory, which need not exist yet.
func Open(dir string, keys Keys) *Store {
	return &Store{dir: dir, turn: make(chan struct{}, 1), vault: vault{keys: keys}, now: time.Now, checkpoint: func(string) error { return nil }}
}

// Ensure is the Ensure of a Store whose CA's key is not encrypted.
func Ensure(ctx context.Context, dir string, spec Spec) (Bundle, []Change, error) {
	return Open(dir, Keys{}).Ensure(ctx, spec)
}

// Ensure makes the directory hold every certificate of the spec and returns
// them, with the list of what it had to make: empty when all of it was there
// and fit.
//
// A CA that exists is always kept. A leaf is kept, byte by byte, as long as
// it is signed by the CA, belongs to its key, has the wanted algorithm, names
// and usages, and has more than a third of its lifetime left; a new
// LeafLifetime therefore takes effect at the next renewal. A run that is
// killed at any point leaves a directory which the next run completes with
// the same CA. Runs exclude each other; the second waits for the first for a
// few seconds.
func (s *Store) Ensure(ctx context.Context, spec Spec) (Bundle, []Change, error) {
	return s.issue(ctx, spec, nil)
}

// Renew is Ensure that also replaces the leaves for which due returns true.
// The path is relative and has no extension.
func (s *Store) Renew(ctx context.Context, spec Spec, due func(path string, expires time.Time) bool) (Bundle, []Change, error) {
	return s.issue(ctx, spec, due)
}

func (s *Store) issue(ctx context.Context, spec Spec, due func(string, time.Time) bool) (Bundle, []Change, error) {
	if err := spec.check(); err != nil {
		return Bundle{}, nil, err
	}
	run := &issuing{spec: spec, vault: &s.vault, due: due}
	var bundle Bundle
	err := s.locked(ctx, func(d directory) error {
		run.dir, run.now = d, s.now()
		if err := run.loadCA(); err != nil {
			return err
		}
		var err error
		bundle, err = run.leaves(ctx)
		return err
	})
	if err != nil {
		return Bundle{}, run.changes, err
	}
	return bundle, run.changes, nil
}

// locked opens the directory, excludes other runs from it, and completes what
// a killed run has begun.
func (s *Store) locked(ctx context.Context, do func(directory) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	d := directory{root: s.dir, checkpoint: s.checkpoint}
	if err := d.open(); err != nil {
		return err
	}
	unlock, err := lock(ctx, s.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.settle(); err != nil {
		return fmt.Errorf("complete the change of the CA in %s: %w", s.dir, err)
	}
	return do(d)
}

// issuing is one run of Ensure or Renew.
type issuing struct {
	spec    Spec
	dir     directory
	vault   *vault
	due     func(path string, expires time.Time) bool // nil for none
	now     time.Time
	ca      authority
	changes []Change
}

// leaves returns every leaf, made where it has to be.
func (r *issuing) leaves(ctx context.Context) (Bundle, error) {
	clients, err := r.dir.clients()
	if err != nil {
		return Bundle{}, err
	}
	bundle := Bundle{CA: r.ca.bundle, Hosts: map[string]HostPairs{}, Clients: map[string]Pair{}}
	var unfit []string
	for _, want := range append(r.spec.leaves(), clients...) {
		if err := ctx.Err(); err != nil {
			return Bundle{}, fmt.Errorf("make the certificate %s: %w", want.path, err)
		}
		pair, err := r.leaf(want)
		var misfit *unfitError
		if errors.As(err, &misfit) {
			unfit = append(unfit, misfit.Error())
			continue
		}
		if err != nil {
			return Bundle{}, err
		}
		want.store(&bundle, pair)
	}
	if len(unfit) > 0 {
		return Bundle{}, &Error{
			err:  fmt.Errorf("use the certificates in %s, which another CA has to sign:\n  %s", r.dir.root, strings.Join(unfit, "\n  ")),
			hint: "muster certs csr writes a request beside each; have them signed and put the certificates there",
		}
	}
	return bundle, nil
}

// loadCA reads the CA, completing or making it when it is not whole. The key
// is written first: a certificate can be made again from it, and no leaf is
// signed before both are on the disk.
func (r *issuing) loadCA() error {
	key, err := r.dir.read(caKey)
	noKey := errors.Is(err, fs.ErrNotExist)
	if err != nil && !noKey {
		return fmt.Errorf("read the key of the CA: %w", err)
	}
	cert, err := r.dir.read(caCert)
	noCert := errors.Is(err, fs.ErrNotExist)
	if err != nil && !noCert {
		return fmt.Errorf("read the certificate of the CA: %w", err)
	}
	if r.spec.External {
		if noCert {
			return r.noExternalCA()
		}
		key = nil // were it there, it would not be used
	}
	if noKey && noCert {
		if key, err = newKey(r.spec.Algorithm); err != nil {
			return fmt.Errorf("make the key of the CA: %w", err)
		}
		if err := r.dir.write(caKey, key, secretMode); err != nil {
			return fmt.Errorf("keep the key of the CA: %w", err)
		}
	}
	if noCert {
		if isSealed(key) {
			if key, err = r.vault.open(caKey, key); err != nil {
				return err
			}
		}
		if cert, err = selfSign(key, r.spec.CALifetime); err != nil {
			return fmt.Errorf("make the certificate of the CA from %s: %w", r.dir.path(caKey), err)
		}
		if err := r.dir.write(caCert, cert, publicMode); err != nil {
			return fmt.Errorf("keep the certificate of the CA: %w", err)
		}
		r.changes = append(r.changes, Change{Path: caCert, Reason: reasonMissing})
	}
	r.ca, err = parseAuthority(cert, key)
	if err != nil {
		return &Error{
			err:  fmt.Errorf("use the CA in %s: %w", r.dir.root, err),
			hint: "put back the ca.crt and ca.key that belong together, or name another directory as pki.dir",
		}
	}
	if r.now.After(r.ca.cert.NotAfter) {
		hint := "muster certs rotate-ca makes a new one; the cluster comes back once its certificates are installed"
		if r.spec.External {
			hint = "put the certificate of its successor into ca.crt, and certificates that it has signed beside the requests (muster certs csr)"
		}
		return &Error{fmt.Errorf("use the CA in %s: %w on %s", r.dir.root, ErrExpired, r.ca.cert.NotAfter.Format(time.DateOnly)), hint}
	}
	return nil
}

func (r *issuing) noExternalCA() error {
	return &Error{
		err:  fmt.Errorf("use the CA in %s: %s is missing", r.dir.root, caCert),
		hint: "the inventory says pki.external: put the certificate of the CA that signs for this cluster there",
	}
}

// leaf returns the pair that is there, or a new one when that does not fit.
func (r *issuing) leaf(want leaf) (Pair, error) {
	pair, reason, err := r.existing(want)
	if err != nil {
		return Pair{}, fmt.Errorf("read the certificate %s: %w", r.dir.path(want.certPath()), err)
	}
	if reason == "" {
		return pair, nil
	}
	if r.spec.External {
		return Pair{}, &unfitError{want.certPath() + ": " + reason}
	}
	if err := r.unlock(); err != nil {
		return Pair{}, fmt.Errorf("make the certificate %s (%s): %w", want.certPath(), reason, err)
	}
	pair, err = r.ca.issue(want, r.spec.Algorithm, r.now, r.spec.LeafLifetime)
	if err != nil {
		return Pair{}, fmt.Errorf("make the certificate %s: %w", want.certPath(), err)
	}
	return pair, r.keep(want, pair, reason)
}

// ErrKeyMissing is wrapped when something has to be signed and the directory
// does not hold the CA's key.
var ErrKeyMissing = errors.New("the CA's key is not there")

// ErrExpired is wrapped when the CA has expired.
var ErrExpired = errors.New("it expired")

// unlock makes the CA's key ready for use.
func (r *issuing) unlock() error {
	if r.ca.key != nil {
		return nil
	}
	if r.ca.sealed == nil {
		return &Error{
			err:  fmt.Errorf("%w: %s is missing", ErrKeyMissing, r.dir.path(caKey)),
			hint: "put the key back for the time of this run; if it is lost for good, muster certs rotate-ca makes a new CA without a pause",
		}
	}
	key, err := r.vault.open(caKey, r.ca.sealed)
	if err != nil {
		return err
	}
	return r.ca.setKey(key)
}

// keep puts a pair on the disk.
func (r *issuing) keep(want leaf, pair Pair, reason string) error {
	// Killed between the two writes, the pair does not match: the next run
	// sees that and makes another.
	if err := r.dir.write(want.keyPath(), pair.Key, secretMode); err != nil {
		return fmt.Errorf("keep the key %s: %w", want.keyPath(), err)
	}
	if err := r.dir.write(want.certPath(), pair.Cert, publicMode); err != nil {
		return fmt.Errorf("keep the certificate %s: %w", want.certPath(), err)
	}
	r.changes = append(r.changes, Change{Path: want.certPath(), Reason: reason})
	return nil
}

// existing reads a leaf and says why it has to be replaced, if it has to.
func (r *issuing) existing(want leaf) (pair Pair, reason string, err error) {
	pair.Cert, err = r.dir.read(want.certPath())
	if errors.Is(err, fs.ErrNotExist) {
		return Pair{}, reasonMissing, nil
	}
	if err != nil {
		return Pair{}, "", err
	}
	pair.Key, err = r.dir.read(want.keyPath())
	if errors.Is(err, fs.ErrNotExist) {
		return Pair{}, "its key is missing", nil
	}
	if err != nil {
		return Pair{}, "", err
	}
	judge := r.ca.misfit
	if r.spec.External {
		judge = r.ca.externalMisfit
	}
	reason = judge(pair, want, r.spec.Algorithm, r.now)
	if reason == "" && r.due != nil {
		cert, err := parseLeaf(pair)
		if err != nil {
			return Pair{}, "", err
		}
		if r.due(want.path, cert.NotAfter) {
			reason = "to be renewed"
		}
	}
	return pair, reason, nil
}

// unfitError is a leaf that somebody else has to replace.
type unfitError struct{ text string }

func (e *unfitError) Error() string { return e.text }

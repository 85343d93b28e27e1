package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// Files of a PKI directory. Operators copy them by these names.
const (
	caCert              = "ca.crt"
	caKey               = "ca.key"
	hostsDir            = "hosts"
	serverName          = "server"
	peerName            = "peer"
	healthcheckClient   = "healthcheck-client"
	apiserverEtcdClient = "apiserver-etcd-client"
)

// Change is one certificate that was made.
type Change struct {
	Path   string // of the certificate, relative to the directory
	Reason string // what was wrong with the one that was there
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
func Ensure(ctx context.Context, dir string, spec Spec) (Bundle, []Change, error) {
	return ensure(ctx, dir, spec, time.Now, func(string) error { return nil })
}

// ensure is Ensure at a given time. The checkpoint is called after each step
// that reaches the disk; its error ends the run there, as a kill would.
func ensure(ctx context.Context, dir string, spec Spec, now func() time.Time, checkpoint func(step string) error) (Bundle, []Change, error) {
	if err := spec.check(); err != nil {
		return Bundle{}, nil, err
	}
	d := directory{root: dir, checkpoint: checkpoint}
	if err := d.open(); err != nil {
		return Bundle{}, nil, err
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return Bundle{}, nil, err
	}
	defer unlock()

	run := &issuing{spec: spec, dir: d, now: now()}
	if err := run.loadCA(); err != nil {
		return Bundle{}, run.changes, err
	}
	bundle := Bundle{CA: run.ca.certPEM, Hosts: map[string]HostPairs{}}
	for _, want := range spec.leaves() {
		if err := ctx.Err(); err != nil {
			return Bundle{}, run.changes, fmt.Errorf("make the certificate %s: %w", want.path, err)
		}
		pair, err := run.leaf(want)
		if err != nil {
			return Bundle{}, run.changes, err
		}
		want.store(&bundle, pair)
	}
	return bundle, run.changes, nil
}

// issuing is one run of Ensure.
type issuing struct {
	spec    Spec
	dir     directory
	now     time.Time
	ca      authority
	changes []Change
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
	if noKey && noCert {
		if key, err = newKey(r.spec.Algorithm); err != nil {
			return fmt.Errorf("make the key of the CA: %w", err)
		}
		if err := r.dir.write(caKey, key, secretMode); err != nil {
			return fmt.Errorf("keep the key of the CA: %w", err)
		}
	}
	if noCert {
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
		return &Error{
			err:  fmt.Errorf("use the CA in %s: it expired on %s", r.dir.root, r.ca.cert.NotAfter.Format(time.DateOnly)),
			hint: "name a new directory as pki.dir to make a new CA; members must then be given certificates from it all at once",
		}
	}
	return nil
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
	if r.ca.key == nil {
		return Pair{}, &Error{
			err:  fmt.Errorf("make the certificate %s (%s): the CA's key %s is missing", want.certPath(), reason, r.dir.path(caKey)),
			hint: "put the key back for the time of this run",
		}
	}
	pair, err = r.ca.issue(want, r.spec.Algorithm, r.now, r.spec.LeafLifetime)
	if err != nil {
		return Pair{}, fmt.Errorf("make the certificate %s: %w", want.certPath(), err)
	}
	// Killed between the two writes, the pair does not match: the next run
	// sees that and makes another.
	if err := r.dir.write(want.keyPath(), pair.Key, secretMode); err != nil {
		return Pair{}, fmt.Errorf("keep the key %s: %w", want.keyPath(), err)
	}
	if err := r.dir.write(want.certPath(), pair.Cert, publicMode); err != nil {
		return Pair{}, fmt.Errorf("keep the certificate %s: %w", want.certPath(), err)
	}
	r.changes = append(r.changes, Change{Path: want.certPath(), Reason: reason})
	return pair, nil
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
	return pair, r.ca.misfit(pair, want, r.spec.Algorithm, r.now), nil
}

// leaf is one certificate to have.
type leaf struct {
	path       string // relative, without extension
	commonName string
	sans       []string // canonical, sorted, without repetition
	usages     []x509.ExtKeyUsage
	store      func(*Bundle, Pair)
}

func (l leaf) certPath() string { return l.path + ".crt" }
func (l leaf) keyPath() string  { return l.path + ".key" }

// leaves lists the certificates of the spec in the order they are made. The
// names and usages are those of kubeadm's etcd certificates.
func (s Spec) leaves() []leaf {
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	var all []leaf
	for _, h := range s.Hosts {
		dir := filepath.Join(hostsDir, h.Name)
		sans := h.sans()
		all = append(all,
			leaf{filepath.Join(dir, serverName), h.Name, sans, both, func(b *Bundle, p Pair) {
				pairs := b.Hosts[h.Name]
				pairs.Server = p
				b.Hosts[h.Name] = pairs
			}},
			leaf{filepath.Join(dir, peerName), h.Name, sans, both, func(b *Bundle, p Pair) {
				pairs := b.Hosts[h.Name]
				pairs.Peer = p
				b.Hosts[h.Name] = pairs
			}})
	}
	return append(all,
		leaf{healthcheckClient, "kube-etcd-healthcheck-client", nil, client, func(b *Bundle, p Pair) { b.HealthcheckClient = p }},
		leaf{apiserverEtcdClient, "kube-apiserver-etcd-client", nil, client, func(b *Bundle, p Pair) { b.APIServerEtcdClient = p }})
}

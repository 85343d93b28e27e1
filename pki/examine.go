package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Examine says what Ensure would make, and returns what there is meanwhile: a
// certificate that Ensure would make is empty in the Bundle. It writes nothing
// and needs no CA key; a directory that does not exist holds nothing.
func Examine(dir string, spec Spec) (Bundle, []Change, error) {
	return examine(dir, spec, time.Now())
}

func examine(dir string, spec Spec, now time.Time) (Bundle, []Change, error) {
	if err := spec.check(); err != nil {
		return Bundle{}, nil, err
	}
	run := &issuing{spec: spec, dir: directory{root: dir, lookOnly: true}, now: now}
	bundle := Bundle{Hosts: map[string]HostPairs{}, Clients: map[string]Pair{}}
	cert, err := run.dir.read(caCert)
	noCA := errors.Is(err, fs.ErrNotExist)
	if err != nil && !noCA {
		return Bundle{}, nil, fmt.Errorf("read the certificate of the CA: %w", err)
	}
	if noCA && spec.External {
		return Bundle{}, nil, run.noExternalCA()
	}
	if noCA {
		run.changes = append(run.changes, Change{Path: caCert, Reason: reasonMissing})
	} else {
		if run.ca, err = parseAuthority(cert, nil); err != nil {
			return Bundle{}, nil, &Error{
				err:  fmt.Errorf("use the CA in %s: %w", dir, err),
				hint: "put back the ca.crt and ca.key that belong together, or name another directory as pki.dir",
			}
		}
		bundle.CA = cert
	}
	clients, err := run.dir.clients()
	if err != nil {
		return Bundle{}, nil, err
	}
	for _, want := range append(spec.leaves(), clients...) {
		pair, reason, err := Pair{}, reasonMissing, error(nil)
		if !noCA {
			pair, reason, err = run.existing(want)
		}
		if err != nil {
			return Bundle{}, nil, fmt.Errorf("read the certificate %s: %w", run.dir.path(want.certPath()), err)
		}
		if reason != "" {
			pair = Pair{}
			run.changes = append(run.changes, Change{Path: want.certPath(), Reason: reason})
		}
		want.store(&bundle, pair)
	}
	return bundle, run.changes, nil
}

package pki

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Found is what the hosts of a cluster still have of its certificates.
type Found struct {
	CA                []byte // PEM
	Hosts             map[string]HostPairs
	HealthcheckClient Pair
	// APIServerEtcdClient may be that of another cluster: it counts only when
	// one of the CAs has signed it.
	APIServerEtcdClient Pair
}

// inUse returns the CAs that have signed what was found. In the middle of a
// rotation there is another one, whose key is lost with the directory.
func (f Found) inUse() ([]byte, error) {
	certs, err := parseCAs(f.CA)
	if err != nil {
		return nil, fmt.Errorf("the CA of the hosts %w", err)
	}
	pairs := []Pair{f.HealthcheckClient}
	for _, h := range f.Hosts {
		pairs = append(pairs, h.Server, h.Peer)
	}
	var bundle []byte
	for _, ca := range certs {
		for _, pair := range pairs {
			cert, err := parseLeaf(pair)
			if err == nil && cert.CheckSignatureFrom(ca) == nil {
				bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
				break
			}
		}
	}
	if bundle == nil {
		return nil, &Error{errors.New("the CA that the hosts trust has signed none of their certificates"), "muster certs check shows who signed them"}
	}
	return bundle, nil
}

// Restore writes what the hosts have, and the directory lacks, into the
// directory. What the directory has is never replaced. The CA's key and the
// certificates of further clients are on no host: what of the spec is still
// missing afterwards is returned, by path.
func (s *Store) Restore(ctx context.Context, spec Spec, found Found) (changes []Change, missing []string, err error) {
	if err := spec.check(); err != nil {
		return nil, nil, err
	}
	found.CA, err = found.inUse()
	if err != nil {
		return nil, nil, err
	}
	ca, err := parseAuthority(found.CA, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("use the CA of the hosts: %w", err)
	}
	d := directory{root: s.dir, checkpoint: s.checkpoint}
	if err := d.adopt(spec); err != nil {
		return nil, nil, err
	}
	unlock, err := lock(ctx, s.dir)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	// The CA comes first: a directory that has it is recognized as ours.
	have, err := d.read(caCert)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.write(caCert, found.CA, publicMode); err != nil {
			return nil, nil, err
		}
		changes = append(changes, Change{caCert, reasonMissing})
	case err != nil:
		return nil, nil, err
	default:
		certs, err := parseCAs(have)
		if err != nil || !holds(certs, found.CA) {
			return nil, nil, &Error{fmt.Errorf("the hosts trust another CA than %s", d.path(caCert)),
				"name another directory as pki.dir to rebuild this cluster's certificates there"}
		}
	}
	bundle := Bundle{Hosts: found.Hosts, HealthcheckClient: found.HealthcheckClient}
	if cert, err := parseLeaf(found.APIServerEtcdClient); err == nil && slices.ContainsFunc(ca.trusted, func(c *x509.Certificate) bool { return cert.CheckSignatureFrom(c) == nil }) {
		bundle.APIServerEtcdClient = found.APIServerEtcdClient
	}
	run := &issuing{spec: spec, dir: d, now: s.now(), ca: ca}
	for _, want := range spec.leaves() {
		reason, err := run.restore(want, want.load(bundle))
		if err != nil {
			return nil, nil, err
		}
		if reason != "" {
			missing = append(missing, fmt.Sprintf("%s (%s)", want.certPath(), reason))
		}
	}
	if there, err := d.exists(caKey); err != nil || !there && !spec.External {
		missing = append(missing, caKey)
		return append(changes, run.changes...), missing, err
	}
	return append(changes, run.changes...), missing, nil
}

// restore writes one pair unless there is one, and says why not if it cannot.
func (r *issuing) restore(want leaf, pair Pair) (reason string, err error) {
	for _, name := range []string{want.certPath(), want.keyPath()} {
		there, err := r.dir.exists(name)
		if err != nil {
			return "", err
		}
		if !there {
			reason = reasonMissing
		}
	}
	if reason == "" {
		return "", nil
	}
	if len(pair.Cert) == 0 || len(pair.Key) == 0 {
		return reason, nil
	}
	if _, unfit := parseLeaf(pair); unfit == nil {
		return "", r.keep(want, pair, reasonMissing)
	}
	return "the host's certificate and key do not belong together", nil
}

// adopt opens a directory that may have lost its CA and kept some leaves.
func (d directory) adopt(spec Spec) error {
	known := []string{caCert, caKey, caRecipients, clientsDir, archiveDir}
	for _, want := range spec.leaves() {
		if want.host == "" {
			known = append(known, want.certPath(), want.keyPath(), want.requestPath())
		}
	}
	entries, err := os.ReadDir(d.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !tidy(e) && !slices.Contains(known, e.Name()) {
			return &Error{fmt.Errorf("keep certificates in %s: it holds %s, which is not muster's", d.root, e.Name()), "name a directory of its own as pki.dir"}
		}
	}
	if err := os.MkdirAll(d.root, dirMode); err != nil {
		return err
	}
	return os.Chmod(d.root, dirMode)
}

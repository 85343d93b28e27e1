package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cloudflare/cfssl/helpers"
)

// File is one file of an export.
type File struct {
	Name    string
	Content []byte
	Mode    fs.FileMode // permission bits
}

// ExportOf is what a client of the cluster needs: the CAs to trust and a pair,
// whose files get the name.
func ExportOf(ca []byte, name string, pair Pair) []File {
	return []File{{caCert, ca, publicMode}, {name + ".crt", pair.Cert, publicMode}, {name + ".key", pair.Key, secretMode}}
}

// APIServerName is what kubeadm calls the files of a kube-apiserver's client.
const APIServerName = apiserverEtcdClient

// Export writes the files into a directory, each of them whole or not at all,
// and returns the names of those that changed. A ca.crt that is not of one of
// this cluster's CAs, past ones included, is never replaced: it may well be
// that of another cluster, or of Kubernetes.
func (s *Store) Export(dir string, files []File) (changed []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others may look for certificates there
		return nil, err
	}
	for _, f := range files {
		if f.Name == caCert {
			if err := s.checkReplaced(filepath.Join(dir, f.Name)); err != nil {
				return nil, err
			}
		}
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		have, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
		if err == nil && bytes.Equal(have, f.Content) {
			if err := os.Chmod(path, f.Mode); err != nil {
				return changed, err
			}
			continue
		}
		temporary := filepath.Join(dir, temporaryName(f.Name))
		if err := writeSynced(temporary, f.Content, f.Mode); err != nil {
			return changed, err
		}
		if err := os.Rename(temporary, path); err != nil {
			return changed, err
		}
		changed = append(changed, f.Name)
	}
	return changed, syncDir(dir)
}

// checkReplaced refuses to replace a CA that was never this cluster's.
func (s *Store) checkReplaced(path string) error {
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ours, err := s.Ours(have)
	if err != nil || ours {
		return err
	}
	return &Error{fmt.Errorf("%s is not of this cluster's CA; it is not replaced", path), "name another directory, or move the file away"}
}

// Ours says that a text in PEM has the certificate of one of this cluster's
// CAs, past ones included, or one that such a CA has signed.
func (s *Store) Ours(text []byte) (bool, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, archiveDir, "*.crt"))
	if err != nil {
		return false, err
	}
	var ours []*x509.Certificate
	for _, name := range append(names, filepath.Join(s.dir, caCert), filepath.Join(s.dir, retiredCert)) {
		cas, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if certs, err := parseCAs(cas); err == nil {
			ours = append(ours, certs...)
		}
	}
	theirs, err := helpers.ParseCertificatesPEM(text)
	if err != nil {
		return false, nil //nolint:nilerr // what is no certificate is not ours
	}
	for _, cert := range theirs {
		of := func(ca *x509.Certificate) bool { return cert.Equal(ca) || cert.CheckSignatureFrom(ca) == nil }
		if slices.ContainsFunc(ours, of) {
			return true, nil
		}
	}
	return false, nil
}

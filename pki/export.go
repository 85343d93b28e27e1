package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
			if err := checkReplaced(s.dir, filepath.Join(dir, f.Name), f.Content); err != nil {
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
func checkReplaced(own, path string, bundle []byte) error {
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ours, err := parseCAs(bundle)
	if err != nil {
		return err
	}
	archived, err := filepath.Glob(filepath.Join(own, archiveDir, "*.crt"))
	if err != nil {
		return err
	}
	for _, name := range archived {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if old, err := parseCAs(text); err == nil {
			ours = append(ours, old...)
		}
	}
	theirs, _ := parseCAs(have) // what is no CA is not to be replaced either
	for _, cert := range theirs {
		if slices.ContainsFunc(ours, cert.Equal) {
			return nil
		}
	}
	return &Error{fmt.Errorf("%s is not of this cluster's CA; it is not replaced", path), "name another directory, or move the file away"}
}

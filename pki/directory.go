package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	secretMode fs.FileMode = 0o600
	publicMode fs.FileMode = 0o644
	dirMode    fs.FileMode = 0o700
)

// directory is the place certificates are kept in. Paths given to its methods
// are relative to it.
type directory struct {
	root       string
	checkpoint func(step string) error
	lookOnly   bool // nothing is changed, not even a mode
}

func (d directory) path(name string) string { return filepath.Join(d.root, name) }

// open creates the directory, or checks that an existing one is ours to use.
// A directory full of other things is refused: its mode would change.
func (d directory) open() error {
	entries, err := os.ReadDir(d.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open the directory of the certificates: %w", err)
	}
	hasCA := slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == caCert || e.Name() == caKey })
	foreign := slices.IndexFunc(entries, func(e os.DirEntry) bool { return !tidy(e) })
	if !hasCA && foreign >= 0 {
		return &Error{
			err:  fmt.Errorf("keep certificates in %s: it holds %s and no CA", d.root, entries[foreign].Name()),
			hint: "name a directory of its own as pki.dir",
		}
	}
	if err := os.MkdirAll(d.root, dirMode); err != nil {
		return fmt.Errorf("make the directory of the certificates: %w", err)
	}
	if err := os.Chmod(d.root, dirMode); err != nil {
		return fmt.Errorf("close the directory of the certificates to other users: %w", err)
	}
	return syncDir(filepath.Dir(d.root))
}

// read returns the content of a file. A private key that others can read is
// closed to them.
func (d directory) read(name string) ([]byte, error) {
	path := d.path(name)
	if filepath.Ext(name) == ".key" && !d.lookOnly {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.Mode().Perm()&^secretMode != 0 {
			if err := os.Chmod(path, secretMode); err != nil {
				return nil, err
			}
		}
	}
	return os.ReadFile(path)
}

// write replaces a file so that, whatever happens, it holds either the old
// content or the new. The temporary name is fixed: what a killed run left
// there is overwritten by the run that completes its work.
func (d directory) write(name string, content []byte, mode fs.FileMode) error {
	path := d.path(name)
	if err := d.makeParents(filepath.Dir(name)); err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(path), temporaryName(filepath.Base(path)))
	if err := writeSynced(temporary, content, mode); err != nil {
		return err
	}
	if err := d.checkpoint(name + " written"); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	if err := d.checkpoint(name + " renamed"); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return d.checkpoint(name + " kept")
}

// remove removes a file, which need not be there.
func (d directory) remove(name string) error {
	err := os.Remove(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(d.path(name))); err != nil {
		return err
	}
	return d.checkpoint(name + " removed")
}

// rename gives a file another name, replacing what has it.
func (d directory) rename(from, to string) error {
	if err := os.Rename(d.path(from), d.path(to)); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(d.path(to))); err != nil {
		return err
	}
	return d.checkpoint(to + " named")
}

func (d directory) exists(name string) (bool, error) {
	_, err := os.Lstat(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// makeParents makes a directory below the root that is not there yet.
func (d directory) makeParents(dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := os.Stat(d.path(dir)); err == nil {
		return nil
	}
	if err := d.makeParents(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(d.path(dir), dirMode); err != nil {
		return err
	}
	return syncDir(filepath.Dir(d.path(dir)))
}

func writeSynced(path string, content []byte, mode fs.FileMode) error {
	// A leftover may have another mode, which opening it would not change.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func temporaryName(base string) string { return "." + base + ".tmp" }

func isTemporary(base string) bool {
	return strings.HasPrefix(base, ".") && strings.HasSuffix(base, ".tmp")
}

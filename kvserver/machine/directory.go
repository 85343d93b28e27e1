package machine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// directory is where the generations of the store lie. On disk: do not change.
//
//	LOCK                                held while a process uses the directory
//	store-000002/                       the store, named after its generation
//	marker.current.000002.store-000002  says which one it is; moved atomically
//	creating/                           a first store that is not complete yet
//
// Any other store-* is a leftover of a crash and is removed by the next start.
type directory struct {
	fs      vfs.FS
	path    string
	lock    *pebble.Lock
	marker  *atomicfs.Marker
	current string // path of the current store
	number  uint64 // its generation
}

const (
	storePrefix = "store-"
	markerName  = "current"
	creatingDir = "creating"
)

func storeName(number uint64) string { return fmt.Sprintf("%s%06d", storePrefix, number) }

// openDirectory locks the directory and finds the current store. In a new
// directory it has create make one.
func openDirectory(fs vfs.FS, path string, create func(path string) error) (_ *directory, err error) {
	if err := makeDir(fs, path); err != nil {
		return nil, fmt.Errorf("make the store's directory: %w", err)
	}
	d := &directory{fs: fs, path: path}
	if d.lock, err = pebble.LockDirectory(path, fs); err != nil {
		return nil, fmt.Errorf("lock %s, is another member running on it? %w", path, err)
	}
	var name string
	if d.marker, name, err = atomicfs.LocateMarker(fs, path, markerName); err != nil {
		return nil, errors.Join(fmt.Errorf("find the current store in %s: %w", path, err), d.lock.Close())
	}
	if name == "" {
		if name, err = d.first(create); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	if _, err := fmt.Sscanf(name, storePrefix+"%d", &d.number); err != nil {
		return nil, errors.Join(fmt.Errorf("find the current store in %s: %q is not the name of a store: %w", path, name, err), d.close())
	}
	d.current = fs.PathJoin(path, name)
	return d, nil
}

// first makes the first store. A crash may have left a complete one without
// the marker.
func (d *directory) first(create func(path string) error) (string, error) {
	stores, err := d.stores()
	if err != nil {
		return "", err
	}
	name := storeName(1)
	switch {
	case len(stores) == 0:
		creating := d.fs.PathJoin(d.path, creatingDir)
		if err := d.fs.RemoveAll(creating); err != nil {
			return "", fmt.Errorf("make the first store: %w", err)
		}
		if err := create(creating); err != nil {
			return "", fmt.Errorf("make the first store: %w", err)
		}
		if err := d.fs.Rename(creating, d.fs.PathJoin(d.path, name)); err != nil {
			return "", fmt.Errorf("make the first store: %w", err)
		}
		if err := syncDir(d.fs, d.path); err != nil {
			return "", fmt.Errorf("make the first store: %w", err)
		}
	case len(stores) > 1 || stores[0] != name:
		return "", fmt.Errorf("%s has stores (%s) but no marker.%s.* to say which is current; restore the directory from another member", d.path, strings.Join(stores, ", "), markerName)
	}
	if err := d.marker.Move(name); err != nil {
		return "", fmt.Errorf("make the first store: %w", err)
	}
	return name, nil
}

// stores lists the names of all stores.
func (d *directory) stores() ([]string, error) {
	names, err := d.fs.List(d.path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d.path, err)
	}
	var stores []string
	for _, name := range names {
		if strings.HasPrefix(name, storePrefix) {
			stores = append(stores, name)
		}
	}
	return stores, nil
}

// removeOthers removes what crashes left behind.
func (d *directory) removeOthers() error {
	if err := d.marker.RemoveObsolete(); err != nil {
		return fmt.Errorf("remove old markers from %s: %w", d.path, err)
	}
	stores, err := d.stores()
	if err != nil {
		return err
	}
	for _, name := range append(stores, creatingDir) {
		path := d.fs.PathJoin(d.path, name)
		if path == d.current {
			continue
		}
		if err := d.fs.RemoveAll(path); err != nil && !oserror.IsNotExist(err) {
			return fmt.Errorf("remove an unused store: %w", err)
		}
	}
	return nil
}

func (d *directory) close() error {
	return errors.Join(d.marker.Close(), d.lock.Close())
}

// storeDir is a store in the directory that is not, or no longer, current.
type storeDir struct {
	d      *directory
	path   string
	number uint64
}

// stage moves the store in from into the directory and makes sure that it
// survives a crash.
func (d *directory) stage(from string) (storeDir, error) {
	s := storeDir{d: d, number: d.number + 1}
	s.path = d.fs.PathJoin(d.path, storeName(s.number))
	if err := syncFiles(d.fs, from); err != nil {
		return storeDir{}, err
	}
	if err := d.fs.RemoveAll(s.path); err != nil && !oserror.IsNotExist(err) {
		return storeDir{}, err
	}
	if err := d.fs.Rename(from, s.path); err != nil {
		return storeDir{}, err
	}
	for _, dir := range []string{d.path, d.fs.PathDir(from)} {
		if err := syncDir(d.fs, dir); err != nil {
			return storeDir{}, errors.Join(err, s.remove())
		}
	}
	return s, nil
}

// errInDoubt is returned when it is not known which store the marker is at.
var errInDoubt = errors.New("the current store is in doubt until the next start")

// makeCurrent moves the marker to s and returns the store it was at before.
// After an error the marker is where it was, unless the error is errInDoubt.
func (s storeDir) makeCurrent() (storeDir, error) {
	d := s.d
	if err := d.marker.Move(storeName(s.number)); err != nil {
		// A move that failed may have been made all the same.
		if backErr := d.marker.Move(storeName(d.number)); backErr != nil {
			return storeDir{}, fmt.Errorf("%w: %w", errInDoubt, errors.Join(err, backErr))
		}
		return storeDir{}, err
	}
	before := storeDir{d: d, path: d.current, number: d.number}
	d.current, d.number = s.path, s.number
	return before, nil
}

func (s storeDir) remove() error { return s.d.fs.RemoveAll(s.path) }

// makeDir makes a directory and what is missing above it, durably.
func makeDir(fs vfs.FS, path string) error {
	var parents []string
	for at := path; ; {
		if _, err := fs.Stat(at); err == nil {
			break
		} else if !oserror.IsNotExist(err) {
			return err
		}
		parent := fs.PathDir(at)
		if parent == at {
			break
		}
		parents = append(parents, parent)
		at = parent
	}
	if err := fs.MkdirAll(path, 0o700); err != nil {
		return err
	}
	for _, parent := range parents {
		if err := syncDir(fs, parent); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(fs vfs.FS, path string) error {
	dir, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// syncFiles makes the files in a directory without subdirectories durable.
func syncFiles(fs vfs.FS, path string) error {
	names, err := fs.List(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := fs.Open(fs.PathJoin(path, name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", name, err)
		}
	}
	return syncDir(fs, path)
}

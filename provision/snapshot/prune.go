package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// List returns the snapshots of a cluster in a directory, the newest first:
// those that are recorded beside, of which the file is there and has the
// recorded size.
func List(dir, cluster string) ([]Manifest, error) {
	all, err := recorded(dir, cluster)
	return slices.DeleteFunc(all, func(m Manifest) bool { return !m.present() }), err
}

// recorded is List with the manifests whose snapshot is not there.
func recorded(dir, cluster string) ([]Manifest, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	var found []Manifest
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		m, err := ReadManifest(filepath.Join(dir, name))
		if errors.Is(err, errNoManifest) || m == nil && err == nil {
			continue // not ours
		}
		if err != nil {
			return nil, err
		}
		if m.Cluster == cluster {
			found = append(found, *m)
		}
	}
	slices.SortFunc(found, func(a, b Manifest) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Revision, a.Revision), cmp.Compare(b.File, a.File))
	})
	return found, nil
}

func (m Manifest) present() bool {
	info, err := os.Lstat(m.Path)
	return err == nil && info.Mode().IsRegular() && info.Size() == m.Size
}

// prune removes all but the newest snapshots of the cluster that Save has put
// into the directory under names of its own making, and returns what it has
// removed. A file that is not recorded, or is not what was recorded, stays.
func prune(dir, cluster string, keep int) (removed []string, err error) {
	all, err := recorded(dir, cluster)
	if err != nil {
		return nil, err
	}
	kept := 0
	for _, m := range all {
		if m.File != m.ownName() {
			continue // a name somebody has chosen
		}
		_, err := os.Lstat(m.Path)
		switch gone := errors.Is(err, fs.ErrNotExist); {
		case gone:
			err = os.Remove(manifestPath(m.Path))
		case err != nil:
		case !m.present(): // somebody's own by that name
		case kept < keep:
			kept++
		default:
			// In this order: what is left by a kill in between is not taken
			// for a snapshot.
			if err = os.Remove(m.Path); err == nil {
				removed = append(removed, m.Path)
				err = os.Remove(manifestPath(m.Path))
			}
		}
		if err != nil {
			return removed, fmt.Errorf("remove an old snapshot: %w", err)
		}
	}
	return removed, nil
}

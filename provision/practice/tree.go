package practice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// owner is who a file belongs to.
type owner struct {
	User  string `json:"user"`
	Group string `json:"group"`
}

var rootOwner = owner{User: "root", Group: "root"}

// tree is a host's file system: real files below root. Symbolic links are
// resolved as if root were "/". Owners are recorded beside the files, by
// path; what has no record belongs to root.
type tree struct {
	root   string
	table  string // where the owners are kept between two lives of the host
	faults *faultBox

	mu     sync.Mutex
	owners map[string]owner
}

func openTree(root, table string, faults *faultBox) (*tree, error) {
	t := &tree{root: root, table: table, faults: faults, owners: map[string]owner{}}
	data, err := os.ReadFile(table)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the table of file owners: %w", err)
	}
	if err := json.Unmarshal(data, &t.owners); err != nil {
		return nil, fmt.Errorf("read the table of file owners %s: %w", table, err)
	}
	return t, nil
}

// real returns the path on the machine of a path on the host, with every
// symbolic link in it resolved.
func (t *tree) real(name string) (string, error) {
	return securejoin.SecureJoin(t.root, name)
}

// entry is like real but leaves the last component as it is.
func (t *tree) entry(name string) (string, error) {
	name = path.Clean("/" + name)
	if name == "/" {
		return t.root, nil
	}
	dir, err := t.real(path.Dir(name))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, path.Base(name)), nil
}

// virtual is the inverse of real.
func (t *tree) virtual(realPath string) string {
	return path.Clean("/" + strings.TrimPrefix(realPath, t.root))
}

func (t *tree) ownerOf(realPath string) owner {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o, ok := t.owners[t.virtual(realPath)]; ok {
		return o
	}
	return rootOwner
}

func (t *tree) setOwner(realPath string, o owner) error {
	return t.changeOwners(func(owners map[string]owner) bool {
		name := t.virtual(realPath)
		before, had := owners[name]
		if o == rootOwner {
			delete(owners, name)
			return had
		}
		owners[name] = o
		return before != o
	})
}

// forget drops the owners of a path and of everything below it.
func (t *tree) forget(realPath string) error {
	return t.changeOwners(func(owners map[string]owner) (changed bool) {
		name := t.virtual(realPath)
		for p := range owners {
			if p == name || strings.HasPrefix(p, name+"/") {
				delete(owners, p)
				changed = true
			}
		}
		return changed
	})
}

// moved takes the owners along when a path was renamed.
func (t *tree) moved(from, to string) error {
	return t.changeOwners(func(owners map[string]owner) (changed bool) {
		old, now := t.virtual(from), t.virtual(to)
		changed = owners[now] != owner{}
		delete(owners, now)
		for p, o := range owners {
			if p == old || strings.HasPrefix(p, old+"/") {
				delete(owners, p)
				owners[now+strings.TrimPrefix(p, old)] = o
				changed = true
			}
		}
		return changed
	})
}

// changeOwners lets change edit the table and keeps the result if it says
// that it did.
func (t *tree) changeOwners(change func(map[string]owner) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !change(t.owners) {
		return nil
	}
	data, err := json.MarshalIndent(t.owners, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the table of file owners: %w", err)
	}
	next := t.table + ".next"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return fmt.Errorf("keep the table of file owners: %w", err)
	}
	return os.Rename(next, t.table)
}

// mapArgument turns the paths of the host in a program's argument into paths
// of this machine: "/etc/x", "--flag=/etc/x" and "file:///etc/x". Only paths
// whose first component exists on the host count, so that a key such as
// "/registry/pods" stays a key.
func (t *tree) mapArgument(arg string) string {
	prefix, name := "", arg
	if i := strings.Index(arg, "="); i >= 0 && !strings.HasPrefix(arg, "/") {
		prefix, name = arg[:i+1], arg[i+1:]
	}
	if rest, ok := strings.CutPrefix(name, "file://"); ok {
		prefix, name = prefix+"file://", rest
	}
	if !strings.HasPrefix(name, "/") {
		return arg
	}
	first, _, _ := strings.Cut(name[1:], "/")
	if _, err := os.Lstat(filepath.Join(t.root, first)); first == "" || err != nil {
		return arg
	}
	p, err := t.real(name)
	if err != nil {
		return arg
	}
	return prefix + p
}

// put writes a file of the machine's own.
func (t *tree) put(name, content string) error {
	p, err := t.real(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(content), 0o644)
}

package practice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Permission bits as one class (owner, group or others) holds them.
const (
	mayExecute fs.FileMode = 1 << iota
	mayWrite
	mayRead
)

// view is the file system of a host as one user sees it: every operation is
// refused that the mode and the recorded owner do not allow that user. Paths
// are absolute paths on the host.
type view struct {
	*tree
	accounts accounts
	user     string
	umask    fs.FileMode
}

func (v *view) as(user string) *view {
	return &view{tree: v.tree, accounts: v.accounts, user: user, umask: 0o022}
}

// check reports whether the user may do want with the file at realPath.
func (v *view) check(op, realPath string, want fs.FileMode) error {
	if v.user == "root" {
		return nil
	}
	info, err := os.Stat(realPath)
	if err != nil {
		return v.onHost(err)
	}
	o, mode := v.ownerOf(realPath), info.Mode().Perm()
	switch {
	case o.User == v.user:
		mode >>= 6
	case slices.Contains(v.accounts.groupsOf(v.user), o.Group):
		mode >>= 3
	}
	if mode&want != want {
		return &fs.PathError{Op: op, Path: v.virtual(realPath), Err: syscall.EACCES}
	}
	return nil
}

// onHost makes an error speak of the path on the host.
func (v *view) onHost(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return &fs.PathError{Op: pathErr.Op, Path: v.virtual(pathErr.Path), Err: pathErr.Err}
	}
	var linkErr *os.LinkError
	if errors.As(err, &linkErr) {
		return &fs.PathError{Op: linkErr.Op, Path: v.virtual(linkErr.New), Err: linkErr.Err}
	}
	return err
}

// open opens a file for reading.
func (v *view) open(name string) (*os.File, error) {
	p, err := v.real(name)
	if err != nil {
		return nil, err
	}
	if err := v.check("open", p, mayRead); err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	return f, v.onHost(err)
}

// create opens a file for writing, with the flags of os.OpenFile. A new file
// belongs to the user.
func (v *view) create(name string, flags int, mode fs.FileMode) (*file, error) {
	p, err := v.real(name)
	if err != nil {
		return nil, err
	}
	_, err = os.Lstat(p)
	isNew := errors.Is(err, fs.ErrNotExist)
	if isNew {
		if err = v.check("open", filepath.Dir(p), mayWrite); errors.Is(err, fs.ErrPermission) {
			err = &fs.PathError{Op: "open", Path: name, Err: syscall.EACCES}
		}
	} else {
		err = v.check("open", p, mayWrite)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p, flags, mode&^v.umask)
	if err != nil {
		return nil, v.onHost(err)
	}
	if isNew {
		if err := v.take(p); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return &file{name: name, os: f, faults: v.faults}, nil
}

// take makes the user the owner of a file it has just made.
func (v *view) take(realPath string) error {
	if v.user == "root" {
		return v.setOwner(realPath, rootOwner)
	}
	return v.setOwner(realPath, owner{User: v.user, Group: v.accounts.groupsOf(v.user)[0]})
}

// mkdir makes one directory with exactly this mode.
func (v *view) mkdir(name string, mode fs.FileMode) error {
	p, err := v.entry(name)
	if err != nil {
		return err
	}
	if err := v.check("mkdir", filepath.Dir(p), mayWrite); err != nil {
		return err
	}
	if err := os.Mkdir(p, 0o700); err != nil {
		return v.onHost(err)
	}
	if err := os.Chmod(p, mode); err != nil {
		return v.onHost(err)
	}
	return v.take(p)
}

// mkdirAll makes a directory and those above it that are missing; these get
// 0755 under the umask, the last one mode. It reports whether it made the
// last one.
func (v *view) mkdirAll(name string, mode fs.FileMode) (bool, error) {
	name = path.Clean("/" + name)
	info, err := v.stat(name, true)
	switch {
	case err == nil && info.IsDir():
		return false, nil
	case err == nil:
		return false, &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if _, err := v.mkdirAll(path.Dir(name), 0o777&^v.umask); err != nil {
		return false, err
	}
	return true, v.mkdir(name, mode)
}

// remove removes a file, a link or, with all, a whole directory.
func (v *view) remove(name string, all bool) error {
	p, err := v.entry(name)
	if err != nil {
		return err
	}
	if p == v.root {
		return fmt.Errorf("refusing to remove /")
	}
	if _, err := os.Lstat(p); err != nil {
		return v.onHost(err)
	}
	if err := v.check("remove", filepath.Dir(p), mayWrite); err != nil {
		return err
	}
	if all {
		err = os.RemoveAll(p)
	} else {
		err = os.Remove(p)
	}
	if err != nil {
		return v.onHost(err)
	}
	return v.forget(p)
}

// rename moves from to to, replacing a file that is there.
func (v *view) rename(from, to string) error {
	old, err := v.entry(from)
	if err != nil {
		return err
	}
	now, err := v.entry(to)
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(old), filepath.Dir(now)} {
		if err := v.check("rename", dir, mayWrite); err != nil {
			return err
		}
	}
	if err := os.Rename(old, now); err != nil {
		return v.onHost(err)
	}
	return v.moved(old, now)
}

// symlink makes name a symbolic link to target.
func (v *view) symlink(target, name string) error {
	p, err := v.entry(name)
	if err != nil {
		return err
	}
	if err := v.check("symlink", filepath.Dir(p), mayWrite); err != nil {
		return err
	}
	if err := os.Symlink(target, p); err != nil {
		return v.onHost(err)
	}
	return v.take(p)
}

func (v *view) readlink(name string) (string, error) {
	p, err := v.entry(name)
	if err != nil {
		return "", err
	}
	target, err := os.Readlink(p)
	return target, v.onHost(err)
}

// stat describes a file; follow says whether a link is looked through.
func (v *view) stat(name string, follow bool) (fs.FileInfo, error) {
	p, err := v.path(name, follow)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(p)
	return info, v.onHost(err)
}

func (v *view) path(name string, follow bool) (string, error) {
	if follow {
		return v.real(name)
	}
	return v.entry(name)
}

func (v *view) readDir(name string) ([]fs.DirEntry, error) {
	p, err := v.real(name)
	if err != nil {
		return nil, err
	}
	if err := v.check("open", p, mayRead); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p)
	return entries, v.onHost(err)
}

// chmod changes the mode; only the owner and root may.
func (v *view) chmod(name string, mode fs.FileMode) error {
	p, err := v.real(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(p); err != nil {
		return v.onHost(err)
	}
	if v.user != "root" && v.ownerOf(p).User != v.user {
		return &fs.PathError{Op: "chmod", Path: name, Err: syscall.EPERM}
	}
	return v.onHost(os.Chmod(p, mode))
}

// chown records an owner; an empty user or group stays as it is. Only root
// may, and both must have an account.
func (v *view) chown(name string, o owner, follow bool) error {
	p, err := v.path(name, follow)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(p); err != nil {
		return v.onHost(err)
	}
	if v.user != "root" {
		return &fs.PathError{Op: "chown", Path: name, Err: syscall.EPERM}
	}
	now := v.ownerOf(p)
	if o.User == "" {
		o.User = now.User
	}
	if o.Group == "" {
		o.Group = now.Group
	}
	if _, ok := v.accounts.user(o.User); !ok {
		return fmt.Errorf("invalid user: %q", o.User)
	}
	if _, ok := v.accounts.group(o.Group); !ok {
		return fmt.Errorf("invalid group: %q", o.Group)
	}
	return v.setOwner(p, o)
}

// parseOwner reads chown's USER, USER:GROUP, USER: and :GROUP.
func (v *view) parseOwner(text string) (owner, error) {
	user, group, both := strings.Cut(text, ":")
	o := owner{User: user, Group: group}
	if both && group == "" {
		account, ok := v.accounts.user(user)
		if !ok {
			return owner{}, fmt.Errorf("invalid user: %q", user)
		}
		o.Group = v.accounts.groupName(account.GID)
	}
	return o, nil
}

// ownDirectory makes sure of a directory with this mode and owner.
func (v *view) ownDirectory(name string, mode fs.FileMode, o owner) error {
	if _, err := v.mkdirAll(name, mode); err != nil {
		return err
	}
	if err := v.chmod(name, mode); err != nil {
		return err
	}
	return v.chown(name, o, true)
}

package practice

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// parseMode reads an octal mode.
func parseMode(text string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(text, 8, 12)
	if err != nil {
		return 0, fmt.Errorf("practice host: only octal modes are known, not '%s'", text)
	}
	mode := fs.FileMode(n & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n&bit != 0 {
			mode |= flag
		}
	}
	return mode, nil
}

func catTool(c *call) error {
	return c.eachInput(c.args, func(_ string, r io.Reader) error {
		_, err := io.Copy(c.out, r)
		return err
	})
}

func mkdirTool(c *call) error {
	f := c.flags()
	parents := f.BoolP("parents", "p", false, "")
	modeText := f.StringP("mode", "m", "", "")
	if err := c.parse(f); err != nil {
		return err
	}
	mode := 0o777 &^ c.files.umask
	if *modeText != "" {
		var err error
		if mode, err = parseMode(*modeText); err != nil {
			return err
		}
	}
	for _, name := range f.Args() {
		var err error
		if *parents {
			_, err = c.files.mkdirAll(c.path(name), mode)
		} else {
			err = c.files.mkdir(c.path(name), mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// installTool is install -d DIR... and install SOURCE TARGET.
func installTool(c *call) error {
	f := c.flags()
	dirs := f.BoolP("directory", "d", false, "")
	makeParents := f.BoolP("parents", "D", false, "")
	modeText := f.StringP("mode", "m", "0755", "")
	user := f.StringP("owner", "o", "", "")
	group := f.StringP("group", "g", "", "")
	f.BoolP("no-target-directory", "T", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	mode, err := parseMode(*modeText)
	if err != nil {
		return err
	}
	names := f.Args()
	if !*dirs {
		if len(names) != 2 {
			return c.fail(1, "practice host: one source and one target")
		}
		target := c.target(names[0], names[1])
		if *makeParents {
			if _, err := c.files.mkdirAll(path.Dir(target), 0o755); err != nil {
				return err
			}
		}
		if err := c.files.remove(target, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := c.copy(c.path(names[0]), target, mode); err != nil {
			return err
		}
		names = []string{target}
	}
	for _, name := range names {
		if *dirs {
			if _, err := c.files.mkdirAll(c.path(name), mode); err != nil {
				return err
			}
		}
		if *user != "" || *group != "" {
			if err := c.files.chown(c.path(name), owner{User: *user, Group: *group}, true); err != nil {
				return err
			}
		}
		if err := c.files.chmod(c.path(name), mode); err != nil {
			return err
		}
	}
	return nil
}

// target is where SOURCE goes: into TARGET when that is a directory.
func (c *call) target(source, target string) string {
	info, err := c.stat(target, true)
	if err == nil && info.IsDir() {
		return path.Join(c.path(target), path.Base(source))
	}
	return c.path(target)
}

// copy copies the content of one file.
func (c *call) copy(from, to string, mode fs.FileMode) error {
	in, err := c.files.open(from)
	if err != nil {
		return err
	}
	out, err := c.files.create(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	// The struct hides what io.Copy would otherwise use to bypass Write.
	_, err = io.Copy(struct{ io.Writer }{out}, in)
	return errors.Join(err, out.Close(), in.Close())
}

func mvTool(c *call) error {
	f := c.flags()
	f.BoolP("force", "f", false, "")
	noTarget := f.BoolP("no-target-directory", "T", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if f.NArg() != 2 {
		return c.fail(1, "practice host: one source and one target")
	}
	target := c.path(f.Arg(1))
	if !*noTarget {
		target = c.target(f.Arg(0), f.Arg(1))
	}
	return c.files.rename(c.path(f.Arg(0)), target)
}

func rmTool(c *call) error {
	f := c.flags()
	recursive := f.BoolP("recursive", "r", false, "")
	also := f.BoolP("Recursive", "R", false, "")
	force := f.BoolP("force", "f", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	all := *recursive || *also
	for _, name := range f.Args() {
		info, err := c.stat(name, false)
		switch {
		case errors.Is(err, fs.ErrNotExist) && *force:
			continue
		case err != nil:
			return err
		case info.IsDir() && !all:
			return &fs.PathError{Op: "rm", Path: name, Err: syscall.EISDIR}
		}
		if err := c.files.remove(c.path(name), all); err != nil {
			return err
		}
	}
	return nil
}

func rmdirTool(c *call) error {
	f := c.flags()
	quiet := f.Bool("ignore-fail-on-non-empty", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	for _, name := range f.Args() {
		err := c.files.remove(c.path(name), false)
		if *quiet && errors.Is(err, syscall.ENOTEMPTY) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func lnTool(c *call) error {
	f := c.flags()
	symbolic := f.BoolP("symbolic", "s", false, "")
	force := f.BoolP("force", "f", false, "")
	noFollow := f.BoolP("no-dereference", "n", false, "")
	noTarget := f.BoolP("no-target-directory", "T", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if !*symbolic || f.NArg() != 2 {
		return c.fail(1, "practice host: only ln -s TARGET NAME is known")
	}
	name := c.path(f.Arg(1))
	info, err := c.stat(name, !*noFollow)
	if err == nil && info.IsDir() && !*noTarget {
		name = path.Join(name, path.Base(f.Arg(0)))
	}
	if *force {
		if err := c.files.remove(name, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return c.files.symlink(f.Arg(0), name)
}

func readlinkTool(c *call) error {
	f := c.flags()
	canonical := f.BoolP("canonicalize", "f", false, "")
	existing := f.BoolP("canonicalize-existing", "e", false, "")
	f.BoolP("no-newline", "n", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	for _, name := range f.Args() {
		if *canonical || *existing {
			p, err := c.files.real(c.path(name))
			if err != nil {
				return err
			}
			if _, err := os.Stat(p); err != nil && *existing {
				return exitStatus(1)
			}
			fmt.Fprintln(c.out, c.files.virtual(p))
			continue
		}
		target, err := c.files.readlink(c.path(name))
		if err != nil {
			return exitStatus(1)
		}
		fmt.Fprintln(c.out, target)
	}
	return nil
}

func chmodTool(c *call) error {
	f := c.flags()
	recursive := f.BoolP("recursive", "R", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if f.NArg() < 2 {
		return c.fail(1, "missing operand")
	}
	mode, err := parseMode(f.Arg(0))
	if err != nil {
		return err
	}
	return c.eachEntry(f.Args()[1:], *recursive, func(name string) error { return c.files.chmod(name, mode) })
}

func chownTool(c *call) error {
	f := c.flags()
	recursive := f.BoolP("recursive", "R", false, "")
	noFollow := f.BoolP("no-dereference", "h", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if f.NArg() < 2 {
		return c.fail(1, "missing operand")
	}
	o, err := c.files.parseOwner(f.Arg(0))
	if err != nil {
		return err
	}
	return c.eachEntry(f.Args()[1:], *recursive, func(name string) error {
		return c.files.chown(name, o, !*noFollow && !*recursive)
	})
}

// eachEntry calls f with each name and, when recursive, all that is below it.
func (c *call) eachEntry(names []string, recursive bool, f func(name string) error) error {
	for _, name := range names {
		if !recursive {
			if err := f(c.path(name)); err != nil {
				return err
			}
			continue
		}
		p, err := c.files.real(c.path(name))
		if err != nil {
			return err
		}
		err = filepath.WalkDir(p, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return f(c.files.virtual(p))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func touchTool(c *call) error {
	for _, name := range c.args {
		f, err := c.files.create(c.path(name), os.O_WRONLY|os.O_CREATE, 0o666)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		p, err := c.files.real(c.path(name))
		if err != nil {
			return err
		}
		if err := os.Chtimes(p, time.Time{}, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

func mktempTool(c *call) error {
	f := c.flags()
	directory := f.BoolP("directory", "d", false, "")
	inDir := f.StringP("tmpdir", "p", "/tmp", "")
	f.Lookup("tmpdir").NoOptDefVal = "/tmp"
	if err := c.parse(f); err != nil {
		return err
	}
	template := path.Join(*inDir, "tmp.XXXXXXXXXX")
	if f.NArg() > 0 {
		template = f.Arg(0)
		if f.Changed("tmpdir") {
			template = path.Join(*inDir, template)
		}
	}
	stem := strings.TrimRight(template, "X")
	if len(template)-len(stem) < 3 {
		return c.fail(1, "too few X's in template '%s'", template)
	}
	name := stem + rand.Text()[:len(template)-len(stem)]
	var err error
	if *directory {
		err = c.files.mkdir(c.path(name), 0o700)
	} else {
		var created *file
		if created, err = c.files.create(c.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			err = created.Close()
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(c.out, name)
	return nil
}

// syncTool flushes the named files and directories, or nothing.
func syncTool(c *call) error {
	f := c.flags()
	f.BoolP("data", "d", false, "")
	f.BoolP("file-system", "f", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	for _, name := range f.Args() {
		opened, err := c.files.open(c.path(name))
		if err != nil {
			return err
		}
		flushed := &file{name: name, os: opened, faults: c.host.faults}
		if err := errors.Join(flushed.Sync(), opened.Close()); err != nil {
			return err
		}
	}
	return nil
}

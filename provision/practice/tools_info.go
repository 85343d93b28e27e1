package practice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// statTool is stat -c FORMAT FILE... with the directives of coreutils.
func statTool(c *call) error {
	f := c.flags()
	format := f.StringP("format", "c", "", "")
	follow := f.BoolP("dereference", "L", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if *format == "" {
		return c.fail(1, "practice host: only stat -c FORMAT is known")
	}
	var failed error
	for _, name := range f.Args() {
		info, err := c.stat(name, *follow)
		if err != nil {
			failed = exitStatusOf(c.finish(err))
			continue
		}
		line, err := c.describe(*format, name, info, *follow)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.out, line)
	}
	return failed
}

func (c *call) describe(format, name string, info fs.FileInfo, follow bool) (string, error) {
	p, err := c.files.path(c.path(name), follow)
	if err != nil {
		return "", err
	}
	o := c.files.ownerOf(p)
	user, _ := c.files.accounts.user(o.User)
	group, _ := c.files.accounts.group(o.Group)
	mode := uint32(info.Mode().Perm())
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if info.Mode()&flag != 0 {
			mode |= bit
		}
	}
	kind := "regular file"
	switch {
	case info.IsDir():
		kind = "directory"
	case info.Mode()&fs.ModeSymlink != 0:
		kind = "symbolic link"
	case info.Mode()&fs.ModeSocket != 0:
		kind = "socket"
	case info.Size() == 0:
		kind = "regular empty file"
	}
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			out.WriteByte(format[i])
			continue
		}
		i++
		switch format[i] {
		case '%':
			out.WriteByte('%')
		case 'a':
			fmt.Fprintf(&out, "%o", mode)
		case 'A':
			out.WriteString(info.Mode().String())
		case 'U':
			out.WriteString(o.User)
		case 'G':
			out.WriteString(o.Group)
		case 'u':
			fmt.Fprint(&out, user.ID)
		case 'g':
			fmt.Fprint(&out, group.ID)
		case 's':
			fmt.Fprint(&out, info.Size())
		case 'F':
			out.WriteString(kind)
		case 'n':
			out.WriteString(name)
		case 'Y':
			fmt.Fprint(&out, info.ModTime().Unix())
		default:
			return "", fmt.Errorf("practice host: stat -c: %%%c is not known", format[i])
		}
	}
	return out.String(), nil
}

// newestFirst sorts files by the time of their last change.
func (c *call) newestFirst(names []string) {
	changed := func(name string) time.Time {
		info, err := c.stat(name, true)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortStableFunc(names, func(a, b string) int { return changed(b).Compare(changed(a)) })
}

func lsTool(c *call) error {
	f := c.flags()
	all := f.BoolP("almost-all", "A", false, "")
	allToo := f.BoolP("all", "a", false, "")
	long := f.BoolP("long", "l", false, "")
	self := f.BoolP("directory", "d", false, "")
	f.BoolP("one", "1", false, "")
	newest := f.BoolP("time", "t", false, "")
	reverse := f.BoolP("reverse", "r", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	names := f.Args()
	if len(names) == 0 {
		names = []string{c.dir}
	}
	if *newest {
		c.newestFirst(names)
	}
	if *reverse {
		slices.Reverse(names)
	}
	show := func(name string, info fs.FileInfo) error {
		if !*long {
			_, err := fmt.Fprintln(c.out, name)
			return err
		}
		line, err := c.describe("%A %U %G %s %n", name, info, false)
		if err == nil {
			_, err = fmt.Fprintln(c.out, line)
		}
		return err
	}
	for _, name := range names {
		info, err := c.stat(name, true)
		if err != nil {
			return err
		}
		if !info.IsDir() || *self {
			if err := show(name, info); err != nil {
				return err
			}
			continue
		}
		entries, err := c.files.readDir(c.path(name))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") && !*all && !*allToo {
				continue
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			entry := e.Name()
			if *long {
				entry = path.Join(c.path(name), entry)
			}
			if err := show(entry, info); err != nil {
				return err
			}
		}
	}
	return nil
}

// duTool is du -s, in KiB or, with -b, in bytes.
func duTool(c *call) error {
	f := c.flags()
	f.BoolP("summarize", "s", false, "")
	f.BoolP("kilobytes", "k", false, "")
	exact := f.BoolP("bytes", "b", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	for _, name := range f.Args() {
		p, err := c.files.real(c.path(name))
		if err != nil {
			return err
		}
		var total int64
		err = filepath.WalkDir(p, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().IsRegular() {
				total += info.Size()
			}
			return err
		})
		if err != nil {
			return err
		}
		if !*exact {
			total = (total + 1023) / 1024
		}
		fmt.Fprintf(c.out, "%d\t%s\n", total, name)
	}
	return nil
}

// dfTool is df -Pk PATH... and df --output=FIELDS [-B SIZE] PATH...
func dfTool(c *call) error {
	f := c.flags()
	f.BoolP("portability", "P", false, "")
	kilo := f.BoolP("kilobytes", "k", false, "")
	output := f.String("output", "", "")
	blockText := f.StringP("block-size", "B", "1K", "")
	if err := c.parse(f); err != nil {
		return err
	}
	block, err := humanize.ParseBytes(strings.Replace(*blockText, "K", "KiB", 1))
	if err != nil {
		return c.fail(1, "invalid -B argument '%s'", *blockText)
	}
	if *kilo {
		block = 1024
	}
	fields := []string{"source", "size", "used", "avail", "pcent", "target"}
	if *output != "" {
		fields = strings.Split(*output, ",")
	}
	titles := map[string]string{
		"source": "Filesystem", "size": fmt.Sprintf("%d-blocks", block), "used": "Used", "avail": "Available",
		"pcent": "Capacity", "target": "Mounted on", "fstype": "Type",
	}
	row := func(values map[string]string) {
		words := make([]string, len(fields))
		for i, name := range fields {
			words[i] = values[name]
		}
		fmt.Fprintln(c.out, strings.Join(words, " "))
	}
	row(titles)
	for _, name := range f.Args() {
		p, err := c.files.real(c.path(name))
		if err != nil {
			return err
		}
		var s unix.Statfs_t
		if err := unix.Statfs(p, &s); err != nil {
			return &fs.PathError{Op: "statfs", Path: name, Err: err}
		}
		unit := uint64(s.Bsize)
		size, free := s.Blocks*unit, s.Bavail*unit
		if said := c.host.faults.get().FreeSpace; said > 0 {
			free = uint64(said)
		}
		used := size - min(size, free)
		row(map[string]string{
			"source": "/dev/practice", "size": fmt.Sprint(size / block), "used": fmt.Sprint(used / block),
			"avail": fmt.Sprint(free / block), "pcent": fmt.Sprintf("%d%%", 100*used/max(size, 1)), "target": "/", "fstype": "ext4",
		})
	}
	return nil
}

// ddTool is what a probe of fsync needs of dd: if, of, bs, count,
// oflag=dsync, conv=fsync.
func ddTool(c *call) error {
	o := map[string]string{"bs": "512", "count": "-1"}
	for _, a := range c.args {
		k, v, _ := strings.Cut(a, "=")
		o[k] = v
	}
	size, err := humanize.ParseBytes(strings.NewReplacer("k", "KiB", "K", "KiB", "M", "MiB").Replace(o["bs"]))
	if err != nil {
		return c.fail(1, "invalid number: '%s'", o["bs"])
	}
	count, err := strconv.Atoi(o["count"])
	if err != nil {
		return c.fail(1, "invalid number: '%s'", o["count"])
	}
	in, out := c.in, c.out
	switch name := o["if"]; name {
	case "":
	case "/dev/zero", "/dev/null", "/dev/urandom":
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // only read
		in = f
	default:
		f, err := c.files.open(c.path(name))
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // only read
		in = f
	}
	sync := func() error { return nil }
	if name := o["of"]; name != "" && name != "/dev/null" {
		flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		if strings.Contains(o["conv"], "notrunc") {
			flags &^= os.O_TRUNC
		}
		f, err := c.files.create(c.path(name), flags, 0o666)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // synced where that was asked for
		out, sync = f, f.Sync
	} else if name == "/dev/null" {
		out = io.Discard
	}
	begin, block, records, written := time.Now(), make([]byte, size), 0, 0
	for ; records != count; records++ {
		n, err := io.ReadFull(in, block)
		if n > 0 {
			if _, err := out.Write(block[:n]); err != nil {
				return err
			}
			written += n
			if strings.Contains(o["oflag"], "sync") {
				if err := sync(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if strings.Contains(o["conv"], "sync") {
		if err := sync(); err != nil {
			return err
		}
	}
	if o["status"] != "none" {
		took := time.Since(begin).Seconds()
		fmt.Fprintf(c.err, "%d+0 records in\n%d+0 records out\n%d bytes copied, %.6f s, %.1f kB/s\n", records, records, written, took, float64(written)/1000/took)
	}
	return nil
}

// lockPoll is how often a flock that waits looks again.
const lockPoll = 20 * time.Millisecond

// flockTool is flock [-n | -w SECONDS] [-E STATUS] FILE COMMAND... It ends,
// and lets go, with the connection.
func flockTool(c *call) error {
	f := c.flags()
	f.SetInterspersed(false)
	noWait := f.BoolP("nonblock", "n", false, "")
	wait := f.Float64P("timeout", "w", -1, "")
	shared := f.BoolP("shared", "s", false, "")
	f.BoolP("exclusive", "x", false, "")
	f.BoolP("no-fork", "F", false, "")
	f.BoolP("close", "o", false, "")
	status := f.IntP("conflict-exit-code", "E", 1, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if f.NArg() < 2 {
		return c.fail(exitUsage, "practice host: flock FILE COMMAND is known, flock FD is not")
	}
	p, err := c.files.real(c.path(f.Arg(0)))
	if err != nil {
		return err
	}
	created, err := c.files.create(c.path(f.Arg(0)), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer created.Close() //nolint:errcheck // nothing was written through it
	how := unix.LOCK_EX
	if *shared {
		how = unix.LOCK_SH
	}
	ctx, cancel := c.ctx, context.CancelFunc(func() {})
	if *noWait {
		*wait = 0
	}
	if *wait >= 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*wait*float64(time.Second)))
	}
	defer cancel()
	for {
		err := unix.Flock(int(created.os.Fd()), how|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return &fs.PathError{Op: "flock", Path: p, Err: err}
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return exitStatus(*status)
		}
	}
	words := f.Args()[1:]
	if words[0] == "-c" && len(words) == 2 {
		words = []string{"sh", "-c", words[1]}
	}
	return c.nested(c.userShell, words)
}

package practice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"time"
)

// unameTool answers -m, -s, -r and -n, alone or together.
func unameTool(c *call) error {
	machine := c.host.faults.get().Machine
	if machine == "" {
		machine = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	}
	if machine == "" {
		machine = runtime.GOARCH
	}
	asked := strings.Join(c.args, "")
	if asked == "" {
		asked = "-s"
	}
	var words []string
	for _, a := range []struct{ flag, answer string }{{"s", "Linux"}, {"n", c.host.name}, {"r", "6.1.0-practice"}, {"m", machine}} {
		if strings.Contains(asked, a.flag) {
			words = append(words, a.answer)
		}
	}
	fmt.Fprintln(c.out, strings.Join(words, " "))
	return nil
}

// dateTool knows +FORMAT with %s, %N and the usual parts of a time.
func dateTool(c *call) error {
	f := c.flags()
	utc := f.BoolP("utc", "u", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	now := time.Now().Add(c.host.faults.get().ClockOffset)
	if *utc {
		now = now.UTC()
	}
	format := "+%Y-%m-%dT%H:%M:%SZ"
	if f.NArg() > 0 {
		format = f.Arg(0)
	}
	text, ok := strings.CutPrefix(format, "+")
	if !ok {
		return c.fail(1, "cannot set date: Operation not permitted")
	}
	fmt.Fprintln(c.out, strings.NewReplacer(
		"%s", fmt.Sprint(now.Unix()), "%N", fmt.Sprintf("%09d", now.Nanosecond()), "%3N", fmt.Sprintf("%03d", now.Nanosecond()/1e6),
		"%Y", now.Format("2006"), "%m", now.Format("01"), "%d", now.Format("02"), "%H", now.Format("15"), "%M", now.Format("04"),
		"%S", now.Format("05"), "%%", "%",
	).Replace(text))
	return nil
}

func hostnameTool(c *call) error {
	fmt.Fprintln(c.out, c.host.name)
	return nil
}

// idTool is id [-u|-g|-G] [-n] [USER].
func idTool(c *call) error {
	f := c.flags()
	user := f.BoolP("user", "u", false, "")
	group := f.BoolP("group", "g", false, "")
	groups := f.BoolP("groups", "G", false, "")
	name := f.BoolP("name", "n", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	who := c.files.user
	if f.NArg() > 0 {
		who = f.Arg(0)
	}
	account, ok := c.files.accounts.user(who)
	if !ok {
		return c.fail(1, "'%s': no such user", who)
	}
	names := c.files.accounts.groupsOf(account.Name)
	primary := names[0]
	switch {
	case *user && *name:
		fmt.Fprintln(c.out, account.Name)
	case *user:
		fmt.Fprintln(c.out, account.ID)
	case *group && *name:
		fmt.Fprintln(c.out, primary)
	case *group:
		fmt.Fprintln(c.out, account.GID)
	case *groups && *name:
		fmt.Fprintln(c.out, strings.Join(names, " "))
	default:
		fmt.Fprintf(c.out, "uid=%d(%s) gid=%d(%s) groups=%s\n", account.ID, account.Name, account.GID, primary, strings.Join(names, ","))
	}
	return nil
}

// getentTool is getent passwd|group [NAME].
func getentTool(c *call) error {
	if len(c.args) == 0 || (c.args[0] != "passwd" && c.args[0] != "group") {
		return c.fail(1, "practice host: only passwd and group are known")
	}
	all, err := c.files.accounts.lines(c.args[0])
	if err != nil {
		return err
	}
	found := len(c.args) == 1
	for _, l := range all {
		if len(c.args) == 1 || l[0] == c.args[1] || (len(l) > 2 && l[2] == c.args[1]) {
			fmt.Fprintln(c.out, strings.Join(l, ":"))
			found = true
		}
	}
	if !found {
		return exitStatus(2)
	}
	return nil
}

// mustBeRoot refuses a user who may not change accounts.
func (c *call) mustBeRoot() error {
	if c.files.user != "root" {
		return c.fail(1, "Permission denied.")
	}
	return nil
}

func groupaddTool(c *call) error {
	f := c.flags()
	f.BoolP("system", "r", false, "")
	force := f.BoolP("force", "f", false, "")
	id := f.IntP("gid", "g", 0, "")
	if err := errors.Join(c.mustBeRoot(), c.parse(f)); err != nil {
		return err
	}
	_, err := c.files.accounts.addGroup(f.Arg(0), *id)
	if errors.Is(err, errAccountExists) {
		if *force {
			return nil
		}
		return c.fail(9, "%v", err)
	}
	return err
}

func useraddTool(c *call) error {
	f := c.flags()
	f.BoolP("system", "r", false, "")
	makeHome := f.BoolP("create-home", "m", false, "")
	f.BoolP("no-create-home", "M", false, "")
	ownGroup := f.BoolP("user-group", "U", false, "")
	f.BoolP("no-user-group", "N", false, "")
	comment := f.StringP("comment", "c", "", "")
	group := f.StringP("gid", "g", "", "")
	home := f.StringP("home-dir", "d", "", "")
	sh := f.StringP("shell", "s", "/bin/sh", "")
	id := f.IntP("uid", "u", 0, "")
	if err := errors.Join(c.mustBeRoot(), c.parse(f)); err != nil {
		return err
	}
	u := account{Name: f.Arg(0), ID: *id, Comment: *comment, Home: *home, Shell: *sh}
	if u.Home == "" {
		u.Home = "/home/" + u.Name
	}
	if _, ok := c.files.accounts.user(u.Name); ok {
		return c.fail(9, "user '%s' already exists", u.Name)
	}
	existing, hasGroup := c.files.accounts.group(*group)
	switch {
	case *group != "" && !hasGroup:
		return c.fail(6, "group '%s' does not exist", *group)
	case *group != "":
		u.GID = existing.ID
	default:
		if taken, ok := c.files.accounts.group(u.Name); ok {
			if *ownGroup {
				return c.fail(9, "group %s exists - if you want to add this user to that group, use -g.", taken.Name)
			}
			u.GID = taken.ID
			break
		}
		gid, err := c.files.accounts.addGroup(u.Name, 0)
		if err != nil {
			return err
		}
		u.GID = gid
	}
	if err := c.files.accounts.addUser(u); err != nil {
		return err
	}
	if !*makeHome {
		return nil
	}
	return c.files.ownDirectory(u.Home, 0o700, owner{User: u.Name, Group: c.files.accounts.groupName(u.GID)})
}

func userdelTool(c *call) error {
	if err := c.mustBeRoot(); err != nil {
		return err
	}
	name := c.args[len(c.args)-1]
	if _, ok := c.files.accounts.user(name); !ok {
		return c.fail(6, "user '%s' does not exist", name)
	}
	if err := c.files.accounts.drop("passwd", name); err != nil {
		return err
	}
	// A group of the user's own goes with it, as USERGROUPS_ENAB says.
	return c.files.accounts.drop("group", name)
}

func groupdelTool(c *call) error {
	if err := c.mustBeRoot(); err != nil {
		return err
	}
	name := c.args[len(c.args)-1]
	if _, ok := c.files.accounts.group(name); !ok {
		return c.fail(6, "group '%s' does not exist", name)
	}
	return c.files.accounts.drop("group", name)
}

// sudoTool is sudo [-n] COMMAND... and doas [-n] COMMAND...
func sudoTool(c *call) error {
	if (c.name == "doas") != c.host.doas {
		fmt.Fprintf(c.err, "sh: 1: %s: not found\n", c.name)
		return exitStatus(exitNotFound)
	}
	f := c.flags()
	f.SetInterspersed(false)
	f.BoolP("non-interactive", "n", false, "")
	user := f.StringP("user", "u", "root", "")
	f.BoolP("set-home", "H", false, "")
	validate := f.BoolP("validate", "v", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if c.files.user != "root" && c.host.faults.get().SudoPassword {
		if c.name == "doas" {
			return c.fail(1, "Authentication required")
		}
		return c.fail(1, "a password is required")
	}
	if f.NArg() == 0 || *validate {
		return nil
	}
	as := newUserShell(c.host, *user)
	return c.nested(as, f.Args())
}

// timeoutTool is timeout [-k N] SECONDS COMMAND...
func timeoutTool(c *call) error {
	f := c.flags()
	f.SetInterspersed(false)
	f.StringP("kill-after", "k", "", "")
	f.StringP("signal", "s", "", "")
	if err := c.parse(f); err != nil {
		return err
	}
	if f.NArg() < 2 {
		return c.fail(125, "missing operand")
	}
	limit, err := parseTimespan(f.Arg(0))
	if err != nil {
		return c.fail(125, "invalid time interval '%s'", f.Arg(0))
	}
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	inner := *c
	inner.ctx = ctx
	err = inner.nested(c.userShell, f.Args()[1:])
	if ctx.Err() != nil && c.ctx.Err() == nil {
		return exitStatus(124)
	}
	return err
}

func rebootTool(c *call) error {
	if err := c.mustBeRoot(); err != nil {
		return err
	}
	go c.host.Reboot()
	return nil
}

// ssTool is ss -Hltnp: the sockets of the host that listen on TCP.
func ssTool(c *call) error {
	f := c.flags()
	noHeader := f.BoolP("no-header", "H", false, "")
	listening := f.BoolP("listening", "l", false, "")
	tcp := f.BoolP("tcp", "t", false, "")
	f.BoolP("numeric", "n", false, "")
	processes := f.BoolP("processes", "p", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if !*listening || !*tcp || f.NArg() > 0 {
		return c.fail(1, "practice host: only ss -ltn [-H] [-p] is known")
	}
	sockets, err := listeningSockets(c.host)
	if err != nil {
		return err
	}
	if !*noHeader {
		fmt.Fprintln(c.out, "State Recv-Q Send-Q Local Address:Port Peer Address:Port Process")
	}
	for _, s := range sockets {
		line := fmt.Sprintf("LISTEN 0 4096 %s 0.0.0.0:*", s.address)
		// As on any host, only root sees whose socket it is.
		if *processes && c.files.user == "root" {
			line += fmt.Sprintf(` users:(("%s",pid=%d,fd=%d))`, s.process, s.pid, s.fd)
		}
		fmt.Fprintln(c.out, line)
	}
	return nil
}

// machineDirs are the directories every host starts with.
func machineDirs() map[string]fs.FileMode {
	return map[string]fs.FileMode{
		"/bin": 0o755, "/etc": 0o755, "/etc/systemd/system": 0o755, "/home": 0o755, "/opt": 0o755, "/proc": 0o755, "/root": 0o700,
		"/run": 0o755, "/run/systemd/system": 0o755, "/tmp": fs.ModeSticky | 0o777, "/usr/bin": 0o755, "/usr/local/bin": 0o755,
		"/usr/lib/systemd/system": 0o755, "/var/lib": 0o755, "/var/log": 0o755, "/var/tmp": fs.ModeSticky | 0o777,
	}
}

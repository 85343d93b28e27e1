package practice

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// systemdVersion is the version practice hosts claim to run: Debian 12's.
const systemdVersion = "systemd 252 (252.39-practice)\n+PAM -SELINUX +SECCOMP\n"

// systemctlTool plays the verbs an installer uses. Exit statuses are those of
// systemctl(1).
func systemctlTool(c *call) error {
	f := c.flags()
	noBlock := f.Bool("no-block", false, "")
	now := f.Bool("now", false, "")
	property := f.StringArrayP("property", "p", nil, "")
	only := f.StringArrayP("only-property", "P", nil, "")
	value := f.Bool("value", false, "")
	f.Bool("no-pager", false, "")
	f.Bool("no-legend", false, "")
	f.Bool("system", false, "")
	quiet := f.BoolP("quiet", "q", false, "")
	f.BoolP("full", "l", false, "")
	version := f.Bool("version", false, "")
	f.IntP("lines", "n", 10, "")
	signal := f.StringP("signal", "s", "TERM", "")
	f.String("kill-whom", "all", "")
	if err := c.parse(f); err != nil {
		return err
	}
	if *version {
		fmt.Fprint(c.out, systemdVersion)
		return nil
	}
	if f.NArg() == 0 {
		return c.fail(1, "practice host: a verb is needed")
	}
	verb, units := f.Arg(0), f.Args()[1:]
	for i, name := range units {
		units[i] = unitName(name)
	}
	if *only != nil {
		*property, *value = *only, true
	}
	changes := []string{"daemon-reload", "start", "stop", "restart", "enable", "disable", "reset-failed", "kill"}
	if slices.Contains(changes, verb) && c.files.user != "root" {
		return c.fail(1, "Interactive authentication required.")
	}
	s := c.host.units
	switch verb {
	case "daemon-reload":
		s.reload()
		return nil
	case "show":
		return c.systemctlShow(units, *property, *value)
	case "is-system-running":
		fmt.Fprintln(c.out, "running")
		return nil
	}
	if len(units) == 0 {
		return c.fail(1, "Too few arguments.")
	}
	var failed error
	for _, name := range units {
		if name == "kubelet.service" && c.host.hasKubelet {
			if err := c.systemctlKubelet(verb); err != nil {
				return err
			}
			continue
		}
		var err error
		switch verb {
		case "start":
			err = s.start(c.ctx, name, !*noBlock)
		case "stop":
			err = s.stop(c.ctx, name)
		case "restart":
			err = s.restart(c.ctx, name, !*noBlock)
		case "enable":
			var made []string
			made, err = s.installed.enable(name)
			for _, link := range made {
				fmt.Fprintf(c.err, "Created symlink %s -> %s.\n", link, path.Join(unitDir, name))
			}
			s.reload() // as systemctl(1) says of enable and disable
			if err == nil && *now {
				err = s.start(c.ctx, name, !*noBlock)
			}
		case "disable":
			var removed []string
			removed, err = s.installed.disable(name)
			for _, link := range removed {
				fmt.Fprintf(c.err, "Removed %s.\n", link)
			}
			s.reload()
			if err == nil && *now {
				err = s.stop(c.ctx, name)
			}
		case "reset-failed":
			s.resetFailed(name)
		case "kill":
			err = c.kill(name, *signal)
		case "is-active", "is-failed", "is-enabled":
			err = c.systemctlIs(verb, name, *quiet)
		case "status":
			err = c.systemctlStatus(name)
		case "cat":
			var data []byte
			if data, err = s.installed.read(name); err == nil {
				fmt.Fprintf(c.out, "# %s\n%s", path.Join(unitDir, name), data)
			}
		default:
			return c.fail(1, "practice host: systemctl %s is not known", verb)
		}
		if err != nil {
			failed = c.systemctlError(verb, name, err)
		}
	}
	return failed
}

func (c *call) systemctlError(verb, name string, err error) error {
	var reported errReported
	switch {
	case errors.As(err, &reported):
		return err
	case errors.Is(err, errNoUnit):
		fmt.Fprintf(c.err, "Failed to %s %s: Unit %s not found.\n", verb, name, name)
		return exitStatus(5)
	case errors.Is(err, errJobFailed):
		fmt.Fprintf(c.err, "Job for %s failed because the control process exited with error code.\nSee \"systemctl status %s\" and \"journalctl -xeu %s\" for details.\n", name, name, name)
		return exitStatus(1)
	}
	fmt.Fprintf(c.err, "Failed to %s %s: %v\n", verb, name, err)
	return exitStatus(1)
}

func (c *call) systemctlShow(units, wanted []string, bare bool) error {
	if len(units) == 0 {
		p := map[string]string{"Version": "252", "SystemState": "running"}
		for name := range strings.SplitSeq(strings.Join(wanted, ","), ",") {
			if v, ok := p[name]; ok {
				fmt.Fprintln(c.out, propertyLine(name, v, bare))
			}
		}
		return nil
	}
	for i, unit := range units {
		if i > 0 {
			fmt.Fprintln(c.out)
		}
		p := c.host.units.properties(unit)
		names := strings.Split(strings.Join(wanted, ","), ",")
		if len(wanted) == 0 {
			names = nil
			for name := range p {
				names = append(names, name)
			}
			slices.Sort(names)
		}
		for _, name := range names {
			v, ok := p[name]
			if !ok {
				continue // as systemctl does for a property that does not exist
			}
			fmt.Fprintln(c.out, propertyLine(name, v, bare))
		}
	}
	return nil
}

func propertyLine(name, value string, bare bool) string {
	if bare {
		return value
	}
	return name + "=" + value
}

func (c *call) systemctlIs(verb, name string, quiet bool) error {
	p := c.host.units.properties(name)
	answer, good, status := p["ActiveState"], "active", 3
	switch verb {
	case "is-failed":
		good, status = "failed", 1
	case "is-enabled":
		answer, good, status = p["UnitFileState"], "enabled", 1
		if answer == "" {
			return c.fail(1, "Failed to get unit file state for %s: No such file or directory", name)
		}
	}
	if !quiet {
		fmt.Fprintln(c.out, answer)
	}
	if answer != good {
		return exitStatus(status)
	}
	return nil
}

func (c *call) systemctlStatus(name string) error {
	p := c.host.units.properties(name)
	if p["LoadState"] == "not-found" {
		fmt.Fprintf(c.err, "Unit %s could not be found.\n", name)
		return exitStatus(4)
	}
	fmt.Fprintf(c.out, "* %s - %s\n     Loaded: %s (%s; %s)\n     Active: %s (%s)\n   Main PID: %s\n     Status: %q\n\n",
		name, p["Description"], p["LoadState"], p["FragmentPath"], p["UnitFileState"], p["ActiveState"], p["SubState"], p["MainPID"], p["StatusText"])
	lines, err := c.host.units.journals.of(name).tail(10, false)
	if err != nil {
		return err
	}
	for _, l := range lines {
		fmt.Fprintln(c.out, l)
	}
	if p["ActiveState"] != "active" {
		return exitStatus(3)
	}
	return nil
}

// systemctlKubelet is systemctl for the kubelet, which no unit runs here.
func (c *call) systemctlKubelet(verb string) error {
	switch verb {
	case "start":
		c.host.startKubelet()
	case "stop":
		c.host.stopKubelet()
	case "restart":
		c.host.stopKubelet()
		c.host.startKubelet()
	case "is-active":
		if !c.host.runsKubelet() {
			fmt.Fprintln(c.out, "inactive")
			return exitStatus(3)
		}
		fmt.Fprintln(c.out, "active")
	default:
		return c.fail(1, "practice host: the kubelet is started, stopped and restarted only")
	}
	return nil
}

func (c *call) kill(name, signal string) error {
	signals := map[string]syscall.Signal{
		"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP,
	}
	sig, ok := signals[strings.TrimPrefix(signal, "SIG")]
	if !ok {
		n, err := strconv.Atoi(signal)
		if err != nil {
			return c.fail(1, "Failed to parse signal string %s.", signal)
		}
		sig = syscall.Signal(n)
	}
	return c.host.units.kill(name, sig)
}

// analyzeTool is systemd-analyze verify FILE... It finds what would keep the
// unit from being loaded or its program from being started.
func analyzeTool(c *call) error {
	f := c.flags()
	version := f.Bool("version", false, "")
	f.String("man", "yes", "")
	f.String("recursive-errors", "", "")
	f.Bool("no-pager", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if *version {
		fmt.Fprint(c.out, systemdVersion)
		return nil
	}
	if f.NArg() < 2 || f.Arg(0) != "verify" {
		return c.fail(1, "practice host: only systemd-analyze verify is known")
	}
	var failed error
	for _, name := range f.Args()[1:] {
		data, err := c.readFile(name)
		if err != nil {
			return err
		}
		complain := func(format string, args ...any) {
			fmt.Fprintf(c.err, "%s: %s\n", path.Base(name), fmt.Sprintf(format, args...))
			failed = exitStatus(1)
		}
		if path.Ext(name) != ".service" && path.Ext(name) != ".timer" {
			complain("Failed to prepare filename: Invalid argument")
			continue
		}
		def, err := parseUnit(name, data)
		if err != nil {
			complain("%v", err)
			continue
		}
		if def.Type == timerType {
			continue
		}
		info, err := c.statProgram(def.Exec[0])
		switch {
		case errors.Is(err, os.ErrNotExist):
			complain("Command %s is not executable: No such file or directory", def.Exec[0])
		case err != nil:
			return err
		case info.Mode()&0o111 == 0:
			complain("Command %s is not executable: Permission denied", def.Exec[0])
		}
	}
	return failed
}

package practice

import (
	"fmt"
	"time"
)

// tool finds a command by its name, unless a fault has taken it away.
func (b *faultBox) tool(name string) (tool, bool) {
	if b.get().NoSystemd {
		switch name {
		case "systemctl", "systemd-analyze", "journalctl", "systemd-detect-virt":
			return nil, false
		}
	}
	if name == "ctr" && b.noContainers {
		return nil, false
	}
	t, ok := tools()[name]
	return t, ok
}

// tools are the commands of every practice host.
func tools() map[string]tool {
	return map[string]tool{
		// files
		"cat": catTool, "chmod": chmodTool, "chown": chownTool, "dd": ddTool, "df": dfTool, "du": duTool,
		"flock": flockTool, "install": installTool, "ln": lnTool, "ls": lsTool, "mkdir": mkdirTool, "mktemp": mktempTool,
		"mv": mvTool, "readlink": readlinkTool, "rm": rmTool, "rmdir": rmdirTool, "stat": statTool, "sync": syncTool, "touch": touchTool,
		// text
		"cut": cutTool, "grep": grepTool, "gzip": gzipTool,
		"head": headTool, "sha256sum": sha256sumTool, "tail": tailTool, "tee": teeTool, "wc": wcTool,
		// the machine and its accounts
		"date": dateTool, "doas": sudoTool, "getent": getentTool, "groupadd": groupaddTool,
		"groupdel": groupdelTool, "hostname": hostnameTool, "id": idTool, "reboot": rebootTool, "sh": shTool,
		"sleep": sleepTool, "ss": ssTool, "sudo": sudoTool, "timeout": timeoutTool, "uname": unameTool, "useradd": useraddTool,
		"userdel": userdelTool, "which": whichTool,
		builtinPrefix + "umask": umaskTool,
		// systemd
		"systemctl": systemctlTool, "systemd-analyze": analyzeTool, "journalctl": journalctlTool,
		// containers
		"ctr": ctrTool, builtinPrefix + "kill": killTool, "ps": psTool,
	}
}

// whichTool answers for the shell's command -v.
func whichTool(c *call) error {
	status := 1
	for _, name := range c.args {
		if _, ok := c.host.faults.tool(name); ok && (name != "doas" || c.host.doas) && (name != "sudo" || !c.host.doas) {
			fmt.Fprintln(c.out, "/usr/bin/"+name)
			status = 0
		} else if program, ok := c.program(c.dir, name); ok {
			fmt.Fprintln(c.out, program)
			status = 0
		}
	}
	return exitStatus(status)
}

func umaskTool(c *call) error {
	if len(c.args) == 0 {
		fmt.Fprintf(c.out, "%04o\n", c.files.umask)
		return nil
	}
	mode, err := parseMode(c.args[0])
	if err != nil {
		return err
	}
	c.files.umask = mode
	return nil
}

func sleepTool(c *call) error {
	if len(c.args) != 1 {
		return c.fail(exitUsage, "one number of seconds")
	}
	d, err := parseTimespan(c.args[0])
	if err != nil {
		d, err = time.ParseDuration(c.args[0] + "s")
	}
	if err != nil {
		return c.fail(exitUsage, "invalid time interval '%s'", c.args[0])
	}
	if c.args[0] == "infinity" {
		<-c.ctx.Done()
		return c.ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

package practice

import (
	"strings"
	"sync"
	"time"
)

// Faults are the things that are wrong with a host. The zero value is a host
// in good order. Those marked "once" are over when they have struck.
type Faults struct {
	// DropUploadAfter cuts the connection when this many bytes of file data
	// have arrived by SFTP, in one connection or several. Once; 0 is never.
	DropUploadAfter int64
	// DiskFullAfter makes writes fail with ENOSPC when this many further
	// bytes have been written by anything but the units. 0 is never.
	DiskFullAfter int64
	// FreeSpace is what df reports as available, in bytes. 0 reports what is
	// really free below the host's directory.
	FreeSpace int64
	// SlowSync is added to every fsync.
	SlowSync time.Duration
	// Machine is what uname -m answers instead of the truth, such as
	// "riscv64".
	Machine string
	// NoSystemd takes systemctl, systemd-analyze and journalctl away.
	NoSystemd bool
	// SudoPassword makes sudo and doas ask for a password, which a
	// non-interactive call cannot give.
	SudoPassword bool
	// ClockOffset is added to the host's clock.
	ClockOffset time.Duration
	// RebootAtCommand reboots the host instead of running the k-th command
	// counted from when the fault was set, from 1. Shell builtins do not
	// count. Once; 0 is never.
	RebootAtCommand int
	// RebootBefore reboots the host instead of running the first command whose
	// words, joined by spaces, begin with this: "systemctl enable". Once;
	// empty is never.
	RebootBefore string
	// RestartBefore has the units that run restarted before the first command
	// whose words begin with this, as at boot, or when a member has been killed.
	// Once; empty is never.
	RestartBefore string
	// FailCommands maps the name of a command to what it prints on stderr
	// before it exits 1, whatever its arguments.
	FailCommands map[string]string
	// NoAPIServer is a kubelet that has not reached its API server: until it has
	// been started without this fault, it stops no pod and puts none in the place
	// of another, but starts pods of new names.
	NoAPIServer bool
	// RefuseConnections closes every new connection before the SSH
	// handshake. Connections that exist live on.
	RefuseConnections bool
	// NoForwarding is an sshd with AllowTcpForwarding no.
	NoForwarding bool
	// Unreachable are ports that no connection from the host is let pass to.
	Unreachable []int
	// ChangedHostKey shows another host key than the host's own.
	ChangedHostKey bool
}

// faultBox holds the faults in force and what is left of the counted ones.
type faultBox struct {
	noContainers bool // on hosts without a kubelet

	mu       sync.Mutex
	now      Faults
	uploaded int64
	written  int64
	commands int
}

func (b *faultBox) set(f Faults) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now, b.uploaded, b.written, b.commands = f, 0, 0, 0
}

func (b *faultBox) get() Faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// upload counts n bytes of an upload and reports whether the connection is to
// be cut now.
func (b *faultBox) upload(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now.DropUploadAfter <= 0 {
		return false
	}
	b.uploaded += int64(n)
	if b.uploaded < b.now.DropUploadAfter {
		return false
	}
	b.now.DropUploadAfter = 0
	return true
}

// write takes n bytes from what the disk still holds and returns how many of
// them fit.
func (b *faultBox) write(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now.DiskFullAfter <= 0 {
		return n
	}
	fits := min(int64(n), b.now.DiskFullAfter-b.written)
	b.written += fits
	return int(fits)
}

// restart reports whether the units are to be restarted before a command.
func (b *faultBox) restart(words []string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now.RestartBefore == "" || !strings.HasPrefix(strings.Join(words, " "), b.now.RestartBefore) {
		return false
	}
	b.now.RestartBefore = ""
	return true
}

// command counts one command and reports whether the host is to reboot now.
func (b *faultBox) command(words []string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now.RebootBefore != "" && strings.HasPrefix(strings.Join(words, " "), b.now.RebootBefore) {
		b.now.RebootBefore = ""
		return true
	}
	if b.now.RebootAtCommand <= 0 {
		return false
	}
	b.commands++
	if b.commands < b.now.RebootAtCommand {
		return false
	}
	b.now.RebootAtCommand = 0
	return true
}

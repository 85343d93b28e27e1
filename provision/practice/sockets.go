package practice

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/prometheus/procfs"
)

// socket is a TCP socket of a host that listens.
type socket struct {
	address string // 127.0.0.1:2379
	process string
	pid, fd int
}

// stateListen is TCP_LISTEN of the kernel, include/net/tcp_states.h.
const stateListen = 10

// listeningSockets finds what listens on the host's own address or on one of its
// ports, and whose it is: a unit's, or that of a program that is not ours.
func listeningSockets(h *Host) ([]socket, error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, fmt.Errorf("read /proc: %w", err)
	}
	all, err := proc.NetTCP() //nolint:staticcheck // what it recommends instead is no part of procfs, and a few hundred sockets are soon read
	if err != nil {
		return nil, fmt.Errorf("list the sockets: %w", err)
	}
	owners := socketOwners(proc, h.units.pids())
	self := net.ParseIP(h.address)
	var found []socket
	for _, s := range all {
		if s.St != stateListen || s.LocalPort > 0xffff {
			continue
		}
		port := int(s.LocalPort)
		onOurPort := slices.Contains(h.ports.all(), port) && (s.LocalAddr.IsUnspecified() || s.LocalAddr.Equal(net.IPv4(127, 0, 0, 1)))
		if !s.LocalAddr.Equal(self) && !onOurPort {
			continue
		}
		one := socket{address: net.JoinHostPort(s.LocalAddr.String(), strconv.Itoa(port)), process: "stranger", pid: os.Getpid()}
		if port == h.ports.SSH {
			one.process = "sshd"
		}
		if o, ok := owners[s.Inode]; ok {
			one.process, one.pid, one.fd = o.process, o.pid, o.fd
		}
		found = append(found, one)
	}
	return found, nil
}

var socketLink = regexp.MustCompile(`^socket:\[(\d+)\]$`)

// socketOwners maps the inodes of the units' sockets to their processes. A
// process that ends meanwhile is left out.
func socketOwners(proc procfs.FS, pids map[int]string) map[uint64]socket {
	owners := map[uint64]socket{}
	for pid, name := range pids {
		p, err := proc.Proc(pid)
		if err != nil {
			continue
		}
		fds, err := p.FileDescriptors()
		if err != nil {
			continue
		}
		for _, fd := range fds {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
			if err != nil {
				continue
			}
			m := socketLink.FindStringSubmatch(link)
			if m == nil {
				continue
			}
			inode, err := strconv.ParseUint(m[1], 10, 64)
			if err != nil {
				continue
			}
			owners[inode] = socket{process: name, pid: pid, fd: int(fd)}
		}
	}
	return owners
}

// Package observed is what a host is and has, as one script run there tells
// it. Nothing is changed by looking.
package observed

import (
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"muster/provision/desired"
)

// Facts is what a host was like when it was asked.
type Facts struct {
	Machine      string // uname -m
	Kernel       string // uname -s
	Systemd      int    // version; 0 when it does not run the host
	MissingTools []string
	HasUser      bool
	OwnUser      bool // it was made for the server
	HasGroup     bool
	Unit         UnitFact
	// Kubelet says that there is one that runs. Images of the server that the container runtime has, where the kubelet
	// runs the member.
	Kubelet bool
	Images  []string
	Timer   TimerFact
	Sockets []Socket // listening, TCP
	// SocketsUnknown says that the host cannot tell its sockets.
	SocketsUnknown bool
	Files          map[string]FileFact
	// Free space in bytes of the file systems of "data", "programs" and
	// "uploads".
	Free map[string]int64
	Data DataState
	// Sync is what flushing one small write to disk takes; 0 when not
	// measured.
	Sync   time.Duration
	Record Record
	// Restoring is set while a restore is under way, or was interrupted.
	Restoring Restoring
	// Adoption is set on a host whose etcd somebody else had installed.
	Adoption Adoption
	// RestartPending says that an earlier run changed what the member uses
	// and did not come to restarting it.
	RestartPending bool
	// ClockOffset is the host's clock minus the workstation's; it may be
	// wrong by ClockError either way.
	ClockOffset time.Duration
	ClockError  time.Duration
}

// FileFact is one file, directory or link on a host.
type FileFact struct {
	Type   string // stat's %F: "regular file", "directory", "symbolic link", ...
	Mode   fs.FileMode
	Owner  string
	Group  string
	SHA256 string // of a file
	Target string // of a link
	// Text is the content of a unit or a certificate; nothing else is read.
	Text string
}

// SymbolicLink is the type of a link.
const SymbolicLink = "symbolic link"

// DataState says what a host has for a data directory.
type DataState string

// The states of a data directory.
const (
	DataAbsent DataState = "absent"
	DataEmpty  DataState = "empty"
	DataFilled DataState = "filled"
	DataLink   DataState = "link"
)

// UnitFact is what systemd says about the unit.
type UnitFact struct {
	Loaded      bool
	Active      string // "active", "activating", "inactive", "failed", ...
	Sub         string
	Result      string
	Enabled     bool
	MainPIDs    []int // all that were seen: a process may start while the host is asked
	NeedsReload bool  // the unit file is newer than what systemd has loaded
	Restarts    int
}

// TimerFact is what systemd says about the timer of the backups.
type TimerFact struct {
	Active  bool
	Enabled bool
}

// Running says that systemd has started the unit and not given up on it.
func (u UnitFact) Running() bool { return u.Active == "active" || u.Active == "activating" }

// Socket is one listening TCP socket.
type Socket struct {
	Address netip.AddrPort // an unspecified address listens everywhere
	Process string         // as ss names it: ("name",pid=1,fd=3); empty when unknown
	PID     int
}

// parseFacts reads the output of script, which ran between begin and end.
func parseFacts(text string, begin, end time.Time) (Facts, error) {
	f := Facts{Files: map[string]FileFact{}, Free: map[string]int64{}}
	var clocks []time.Time
	rest := text
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		kind, value, ok := strings.Cut(line, "|")
		if !ok {
			continue
		}
		var err error
		switch kind {
		case "clock":
			var ns int64
			ns, err = strconv.ParseInt(value, 10, 64)
			clocks = append(clocks, time.Unix(0, ns))
		case "file":
			err = f.addFile(value)
		case "free":
			err = f.addFree(value)
		case "record":
			f.Record, err = parseRecord(value)
		case "restoring":
			f.Restoring, err = parseRestoring(value)
		case "adoption":
			f.Adoption, err = parseAdoption(value)
		case "text":
			file := f.Files[value]
			file.Text, rest, _ = strings.Cut(rest, "\nend of text|"+value+"\n")
			f.Files[value] = file
		default:
			f.addText(kind, value)
		}
		if err != nil {
			return f, fmt.Errorf("line %q: %w", line, err)
		}
	}
	if len(clocks) != 2 {
		return f, fmt.Errorf("the answer is cut short: %d lines", strings.Count(text, "\n"))
	}
	// The host read its clock for the first time after begin and for the
	// last time before end: the offset lies between these two.
	most, least := clocks[0].Sub(begin), clocks[1].Sub(end)
	f.ClockOffset, f.ClockError = (most+least)/2, (most-least)/2
	return f, nil
}

func (f *Facts) addText(kind, value string) {
	switch kind {
	case "machine":
		f.Machine = value
	case "kernel":
		f.Kernel = value
	case "systemd": // "systemd 252 (252.39-1~deb12u1)"
		if fields := strings.Fields(value); len(fields) > 1 {
			f.Systemd, _ = strconv.Atoi(fields[1])
		}
	case "missing":
		f.MissingTools = append(f.MissingTools, value)
	case "user":
		f.HasUser = value != ""
		fields := strings.Split(value, ":")
		f.OwnUser = len(fields) > 4 && fields[4] == desired.AccountComment
	case "group":
		f.HasGroup = value != ""
	case "unit":
		f.Unit.Set(value)
	case "kubelet":
		f.Kubelet = value == "active"
	case "image":
		f.Images = append(f.Images, value)
	case "timer":
		f.Timer.Active = f.Timer.Active || value == "active"
		f.Timer.Enabled = f.Timer.Enabled || value == "enabled"
	case "socket":
		if s, ok := parseSocket(value); ok {
			f.Sockets = append(f.Sockets, s)
		}
	case "sockets":
		f.SocketsUnknown = true
	case "link":
		target, path, _ := strings.Cut(value, "|")
		file := f.Files[path]
		file.Target = target
		f.Files[path] = file
	case "sha256":
		sum, path, _ := strings.Cut(value, "|")
		file := f.Files[path]
		file.SHA256 = sum
		f.Files[path] = file
	case "data":
		f.Data = DataState(value)
	case "sync":
		f.Sync = parseSync(value)
	case "restart":
		f.RestartPending = true
	}
}

func (f *Facts) addFile(value string) error {
	fields := strings.SplitN(value, "|", 5)
	if len(fields) != 5 {
		return fmt.Errorf("%d fields, want 5", len(fields))
	}
	mode, err := strconv.ParseUint(fields[1], 8, 32)
	if err != nil {
		return err
	}
	file := f.Files[fields[4]]
	file.Type, file.Mode, file.Owner, file.Group = fields[0], fs.FileMode(mode), fields[2], fields[3]
	if file.Type == "regular empty file" {
		file.Type = "regular file"
	}
	f.Files[fields[4]] = file
	return nil
}

// addFree reads a name and the last line of df -Pk: file system, blocks, used,
// available, capacity, mount point.
func (f *Facts) addFree(value string) error {
	fields := strings.Fields(value)
	if len(fields) < 6 {
		return nil // df could not tell
	}
	kib, err := strconv.ParseInt(fields[4], 10, 64)
	f.Free[fields[0]] = kib << 10
	return err
}

// Set takes over one line of systemctl show: "Property=value".
func (u *UnitFact) Set(property string) {
	name, value, _ := strings.Cut(property, "=")
	switch name {
	case "LoadState":
		u.Loaded = value == "loaded"
	case "ActiveState":
		u.Active = value
	case "SubState":
		u.Sub = value
	case "Result":
		u.Result = value
	case "UnitFileState":
		u.Enabled = value == "enabled"
	case "MainPID":
		if pid, err := strconv.Atoi(value); err == nil && pid != 0 && !slices.Contains(u.MainPIDs, pid) {
			u.MainPIDs = append(u.MainPIDs, pid)
		}
	case "NeedDaemonReload":
		u.NeedsReload = value == "yes"
	case "NRestarts":
		u.Restarts, _ = strconv.Atoi(value)
	}
}

// parseSocket reads one line of ss -Hltnp: state, two queues, local and peer
// address, and, for root, the processes.
func parseSocket(line string) (Socket, bool) {
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return Socket{}, false
	}
	local := strings.Replace(fields[3], "*:", "[::]:", 1)
	if host, rest, ok := strings.Cut(local, "%"); ok { // 127.0.0.53%lo:53
		if i := strings.LastIndex(rest, ":"); i >= 0 {
			local = host + rest[i:]
		}
	}
	address, err := netip.ParseAddrPort(local)
	if err != nil {
		return Socket{}, false
	}
	s := Socket{Address: address}
	if len(fields) > 5 {
		s.Process = strings.TrimSuffix(strings.TrimPrefix(fields[5], "users:("), ")")
		if _, rest, ok := strings.Cut(s.Process, "pid="); ok {
			digits, _, _ := strings.Cut(rest, ",")
			s.PID, _ = strconv.Atoi(digits)
		}
	}
	return s, true
}

// parseSync reads dd's last line, "65536 bytes (66 kB, 64 KiB) copied,
// 0.0123 s, 5.3 MB/s", and returns the time of one write.
func parseSync(line string) time.Duration {
	_, rest, ok := strings.Cut(line, "copied, ")
	if !ok {
		return 0
	}
	text, _, _ := strings.Cut(rest, " s")
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	writes, err := strconv.Atoi(syncProbes)
	if err != nil {
		return 0
	}
	return time.Duration(seconds / float64(writes) * float64(time.Second))
}

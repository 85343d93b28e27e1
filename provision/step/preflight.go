package step

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"muster/provision/desired"
	"muster/provision/observed"
)

// Limits of Preflight.
const (
	// clockLimit is the clock offset that is refused: certificates are valid
	// from five minutes in the past, and leases and elections want closer
	// clocks than that.
	clockLimit = time.Second
	// syncLimit is the time of one flushed write that is warned about. etcd's
	// hardware guide asks for 10 ms at the 99th percentile.
	syncLimit = 10 * time.Millisecond
	// systemdMinimum is the version Debian 11 has, the oldest one tested.
	systemdMinimum = 247
	// dataMinimum is the free space, in bytes, a new member needs for its
	// logs and its first data.
	dataMinimum = 512 << 20
	// programsMinimum is the free space needed for the programs twice: the
	// new ones lie beside the old ones until they are whole.
	programsMinimum = 256 << 20
)

// Problem is one reason not to begin.
type Problem struct {
	Host string
	Text string // what is wrong; what to do
}

// PreflightError holds everything that Preflight found on every host.
type PreflightError struct{ Problems []Problem }

func (e *PreflightError) Error() string {
	what := "1 problem"
	if len(e.Problems) != 1 {
		what = fmt.Sprintf("%d problems", len(e.Problems))
	}
	text := what + " found before any change"
	for _, p := range e.Problems {
		text += "\n  " + p.Host + ": " + p.Text
	}
	return text
}

// Hint says what to do about it.
func (e *PreflightError) Hint() string {
	return "no host was changed; correct these and run the same command again"
}

// Preflight decides, from the facts of all hosts and before any of them is
// changed, whether the operation can succeed, and has the programs ready that
// are to be installed. It reports every problem of every host at once, as a
// *PreflightError.
func Preflight(ctx context.Context, r *Run) error {
	found, err := examine(r, r.Hosts)
	if err != nil {
		return err
	}
	for _, h := range r.Hosts {
		examination{Host: h, found: found}.warnings()
	}
	if len(found.Problems) > 0 {
		return found
	}
	if _, err := r.roster.members.Moves(r.wanted()); err != nil {
		return err
	}
	return findPrograms(ctx, r)
}

// examine finds every problem of the hosts, from their facts.
func examine(r *Run, hosts []*Host) (*PreflightError, error) {
	found := &PreflightError{}
	trusted, err := trustedCAs(r.Cluster.PKI.Dir)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		e := examination{Host: h, found: found}
		e.machine()
		if err := e.pod(); err != nil {
			return nil, &localError{err}
		}
		e.space()
		e.clock(hosts)
		if h.Remote.Privilege().Problem == "" { // else the facts about these are not all there
			e.ports()
			e.data()
			e.record(r.Cluster.PKI.Dir, trusted)
			e.restoring()
		}
	}
	return found, r.examineAPIServers(found)
}

// findPrograms has ready whatever any host may have to be given.
func findPrograms(ctx context.Context, r *Run) error {
	for _, h := range r.Hosts {
		for _, b := range h.Want.Binaries {
			if _, err := h.program(ctx, b); err != nil {
				return &localError{err}
			}
		}
	}
	return r.nameImages(ctx)
}

// nameImages completes what the hosts should have with the names of the
// container images.
func (r *Run) nameImages(ctx context.Context) error {
	r.images = map[string]string{}
	for _, h := range r.Hosts {
		if !h.unit().IsPod() {
			continue
		}
		name, _, err := r.Programs.Image(ctx, h.Server.Binary, goArch(h.Facts.Machine))
		if err != nil {
			return &localError{err}
		}
		r.images[h.Name] = name
	}
	if len(r.images) == 0 || len(r.Bundle.Hosts) == 0 { // or with the certificates
		return nil
	}
	return r.outfit()
}

// examination looks at the facts of one host.
type examination struct {
	*Host
	found *PreflightError
}

func (e examination) problem(format string, args ...any) {
	e.found.Problems = append(e.found.Problems, Problem{e.Name, fmt.Sprintf(format, args...)})
}

// warnings tells what does not keep the operation from going on.
func (e examination) warnings() {
	if e.Facts.Sync > syncLimit {
		e.warn(fmt.Sprintf("flushing a write to the disk of %s takes %v; above %v the cluster will feel it", e.Want.Member.DataDir, e.Facts.Sync.Round(100*time.Microsecond), syncLimit))
	}
	if e.Facts.SocketsUnknown {
		e.warn("the command ss is missing (package iproute2), so nobody has checked that the ports are free")
	}
}

func (e examination) machine() {
	e.privilege()
	f := e.Facts
	if f.Kernel != "Linux" || goArch(f.Machine) == "" {
		e.problem("%s on %s is not supported; use Linux on amd64 (x86_64) or arm64 (aarch64)", f.Kernel, f.Machine)
	}
	switch {
	case f.Systemd == 0:
		e.problem("systemd does not run this host; muster needs it, version %d or newer, as Debian 11 and later have it", systemdMinimum)
		return // its commands are missing with it
	case f.Systemd < systemdMinimum:
		e.problem("systemd is version %d; %d or newer is needed", f.Systemd, systemdMinimum)
	}
	if len(f.MissingTools) > 0 {
		packages := "coreutils, util-linux, passwd, systemd"
		if e.unit().IsPod() {
			packages += ", procps, containerd, or podman with CRI-O"
		}
		e.problem("commands are missing: %s; install them (packages %s)", strings.Join(f.MissingTools, ", "), packages)
	}
}

// pod examines what a static pod needs, and refuses to take the place of
// somebody else's.
func (e examination) pod() error {
	if !e.unit().IsPod() {
		return nil
	}
	e.runningKubelet()
	_, theirs := e.Facts.Files[e.unit().Manifest]
	if theirs && !e.Facts.Unit.Loaded {
		e.problem("the kubelet runs an etcd that muster has not installed, by %s; muster adopt takes it over", e.unit().Manifest)
		return nil
	}
	ca := path.Join(desired.PKIDir(e.run.Cluster), "ca.crt")
	have, exists := e.Facts.Files[ca]
	if !exists {
		return nil
	}
	ours, err := e.run.PKI.Ours([]byte(have.Text))
	if err == nil && !ours && e.Facts.Record == (observed.Record{}) {
		e.problem("%s is of another CA than the one in %s, as kubeadm init phase certs makes it; remove %s if nobody uses it, or copy that ca.crt and ca.key into %[2]s before the first apply", ca, e.run.Cluster.PKI.Dir, path.Dir(ca))
	}
	return err
}

func (e examination) runningKubelet() {
	if e.unit().IsPod() && !e.Facts.Kubelet {
		e.problem("the kubelet does not run, and in the stacked topology it runs the member; start it with staticPodPath: %s (systemctl start kubelet): it needs no API server for that", path.Dir(e.unit().Manifest))
	}
}

func (e examination) privilege() {
	if p := e.Remote.Privilege(); p.Problem != "" {
		e.problem("%s cannot become root without a password (%s); allow it: echo '%s ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/muster, or log in as root", p.User, p.Problem, p.User)
	}
}

func (e examination) space() {
	for _, need := range []struct {
		name, path string
		bytes      int64
		fulfilled  bool
	}{
		{"data", e.Want.Member.DataDir, dataMinimum, e.Facts.Data == observed.DataFilled},
		{"programs", "/usr/local/bin", programsMinimum, hasPrograms(e.Host)},
		{"uploads", "/var/tmp", programsMinimum, hasPrograms(e.Host)},
	} {
		free, known := e.Facts.Free[need.name]
		if known && free < need.bytes && !need.fulfilled {
			e.problem("%d MiB are free for %s; make room for %d MiB", free>>20, need.path, need.bytes>>20)
		}
	}
}

// hasPrograms says that there are programs already: replacing them may still
// need room, but an idle second run must not be refused.
func hasPrograms(h *Host) bool {
	for _, b := range h.Want.Binaries {
		if h.Facts.Files[b.Path].SHA256 == "" {
			return false
		}
	}
	return true
}

func (e examination) clock(all []*Host) {
	off := e.Facts.ClockOffset
	if off.Abs()-e.Facts.ClockError <= clockLimit {
		return
	}
	direction := "ahead of"
	if off < 0 {
		direction = "behind"
	}
	whose := "set the host's clock (timedatectl set-ntp true)"
	if len(all) > 1 && sameOffset(all) {
		whose = "all hosts agree, so set the workstation's clock"
	}
	e.problem("the clock is %v %s this workstation's, more than %v; %s", roundOffset(off.Abs()), direction, clockLimit, whose)
}

// roundOffset leaves what can be known: a busy host answers late.
func roundOffset(d time.Duration) time.Duration {
	if d < 2*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}

func sameOffset(hosts []*Host) bool {
	for _, h := range hosts {
		if (h.Facts.ClockOffset - hosts[0].Facts.ClockOffset).Abs() > clockLimit {
			return false
		}
	}
	return true
}

func (e examination) ports() {
	e.portsBut(func(observed.Socket) bool { return false })
}

// portsBut is ports where some sockets will be gone by then.
func (e examination) portsBut(goes func(observed.Socket) bool) {
	urls := append(e.ClientListenURLs(), e.PeerListenURL(), e.MetricsURL())
	told := map[netip.AddrPort]bool{}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue // the inventory has checked it
		}
		want, err := netip.ParseAddrPort(u.Host)
		if err != nil {
			continue
		}
		for _, s := range e.Facts.Sockets {
			ours := slices.Contains(e.Facts.Unit.MainPIDs, s.PID)
			if e.unit().IsPod() && e.Facts.Unit.Running() && strings.HasPrefix(s.Process, `("etcd"`) {
				ours = true // the kubelet may have started another process since
			}
			if ours || goes(s) || told[s.Address] || !collide(want, s.Address) {
				continue
			}
			told[s.Address] = true
			by := s.Process
			if by == "" {
				by = "an unknown process"
			}
			e.problem("port %d is taken on %s by %s; stop it, or give this host another port under server: in the inventory", want.Port(), s.Address.Addr(), by)
		}
	}
}

// collide says whether one address cannot be listened on while another is.
func collide(a, b netip.AddrPort) bool {
	if a.Port() != b.Port() {
		return false
	}
	x, y := a.Addr().Unmap(), b.Addr().Unmap()
	return x == y || x.IsUnspecified() || y.IsUnspecified()
}

// verifiedHost returns a host that belongs to a cluster that was verified
// once, or nil.
func verifiedHost(r *Run) *Host {
	for _, h := range r.Hosts {
		if h.Facts.Record.ClusterID != "" {
			return h
		}
	}
	return nil
}

// data refuses whatever would found a second cluster beside the one that
// exists, or give data to a cluster it does not belong to.
func (e examination) data() {
	f, dir, members := e.Facts, e.Want.Member.DataDir, e.run.roster.members
	l, listed := members.Find(e.Want.Member)
	cluster := fmt.Sprintf("%x", e.run.roster.cluster)
	noData := f.Data == observed.DataAbsent || f.Data == observed.DataEmpty
	switch {
	case f.Data == observed.DataLink:
		e.problem("%s is a symbolic link; name the real directory as dataDir", dir)
	case f.Data == observed.DataFilled && f.Record == (observed.Record{}):
		e.problem("%s holds data and nothing says whose; if nobody needs it, move it away, or name another dataDir", dir)
	case e.replaced:
	case noData && f.Record.ClusterID != "":
		e.problem("%s is %s, but this host was member %s of cluster %s: its data is lost; starting it would found a second cluster. Bring the directory back, or let the member begin anew with the data of the others: muster replace %s", dir, f.Data, f.Record.MemberID, f.Record.ClusterID, e.Name)
	case noData && !f.Unit.Running() && listed && len(l.ClientURLs) > 0:
		e.problem("the cluster has a member %s (%x) and this host has no data: if it is to take that member's place, run muster replace %[1]s", e.Name, l.ID)
	case f.Data != observed.DataFilled || len(members) == 0 || listed:
	case f.Record.ClusterID != "" && f.Record.ClusterID != cluster:
		e.problem("this host is in cluster %s, and the members that answer are in cluster %s; two clusters cannot become one: take the host out of the inventory, or run muster reset --data with an inventory of it alone", f.Record.ClusterID, cluster)
	case f.Record.MemberID != "":
		e.problem("%s holds the data of member %s, which was removed from the cluster; to use the host for a new member, run muster replace %s, which moves that data aside", dir, f.Record.MemberID, e.Name)
	default:
		e.problem("%s holds the data of a member that the running cluster does not list; if nobody needs it, stop %s there and move the directory away", dir, e.unit().Title())
	}
}

// record compares what the host remembers with the inventory.
func (e examination) record(pkiDir string, trusted []string) {
	record := e.Facts.Record
	if record == (observed.Record{}) {
		return
	}
	if record.Cluster != e.run.Cluster.Name || record.Token != e.run.Cluster.Token {
		e.problem("this host belongs to cluster %q (token %q), not to %q (token %q); use that cluster's inventory, or take the host out of it with muster reset --data", record.Cluster, record.Token, e.run.Cluster.Name, e.run.Cluster.Token)
		return
	}
	if record.Member != e.Name {
		e.problem("this host is member %q and cannot be renamed to %q; write name: %s in the inventory", record.Member, e.Name, record.Member)
	}
	if record.DataDir != e.Want.Member.DataDir {
		e.problem("the member's data is in %s; write dataDir: %s, or move the data by hand while the member is stopped and correct %s", record.DataDir, record.DataDir, e.Want.Paths.Record)
	}
	switch {
	case slices.Contains(trusted, record.CA):
	case len(trusted) == 0:
		e.problem("the CA this host trusts (SHA-256 %.16s...) is not in %s, which is empty; bring that directory back, or point pki.dir at it", record.CA, pkiDir)
	default:
		e.problem("this host trusts another CA (SHA-256 %.16s...) than the one in %s (%.16s...); point pki.dir at the directory this cluster was made with", record.CA, pkiDir, trusted[0])
	}
}

// trustedCAs are the fingerprints of the CAs in the workstation's directory:
// none yet, one, or while a CA is replaced two.
func trustedCAs(dir string) ([]string, error) {
	path := filepath.Join(dir, "ca.crt")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &localError{fmt.Errorf("read the CA certificate: %w", err)}
	}
	sums, err := fingerprints(text)
	if err != nil {
		return nil, &localError{fmt.Errorf("%s: %w", path, err)}
	}
	return sums, nil
}

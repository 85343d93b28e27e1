package provision

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"muster/provision/inventory"
	"muster/provision/practice"
	"muster/provision/step"
)

// mustFail applies and demands an error with each of these texts.
func (l *lab) mustFail(texts ...string) error {
	l.t.Helper()
	_, err := l.apply()
	if err == nil {
		l.t.Fatal("apply succeeded")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			l.t.Errorf("the error does not say %q:\n%v", text, err)
		}
	}
	return err
}

// files lists what is on a host, with sizes, so that any change shows. The
// lock and the file that tells when the host was booted may come and go.
func files(t *testing.T, h *practice.Host) []string {
	t.Helper()
	root := h.Path("/")
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if name == "/run/muster.lock" || strings.HasPrefix(name, "/proc") {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if d.IsDir() {
			size = 0
		}
		all = append(all, fmt.Sprintf("%s %v %d", name, info.Mode(), size))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// mustBeUntouched demands that a failed apply has changed nothing anywhere.
func (l *lab) mustBeUntouched(before [][]string) {
	l.t.Helper()
	for i, h := range l.hosts {
		if after := files(l.t, h); !slices.Equal(before[i], after) {
			l.t.Errorf("%s was changed:\nbefore %q\nafter  %q", h.Name(), before[i], after)
		}
	}
	if changed := l.events.texts(step.Changed); len(changed) > 0 {
		l.t.Errorf("changes were reported: %q", changed)
	}
	if _, err := os.Stat(l.cluster.PKI.Dir); !errors.Is(err, fs.ErrNotExist) {
		l.t.Errorf("certificates were made: %v", err)
	}
}

func (l *lab) snapshot() [][]string {
	l.t.Helper()
	var all [][]string
	for _, h := range l.hosts {
		all = append(all, files(l.t, h))
	}
	return all
}

// A member that starts while its host is asked is not taken for a stranger that
// listens on its ports.
func TestMemberStartsWhileTheHostIsAsked(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	l.hosts[0].Inject(practice.Faults{RestartBefore: "ss "})
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("changes: %q", l.events.texts(step.Changed))
	}
}

// What is wrong with one host is found before any host is changed, and when it
// is put right the same command succeeds.
func TestPreflightFindsIt(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults practice.Faults
		want   []string
	}{
		{"wrong architecture", practice.Faults{Machine: "riscv64"}, []string{"controller-1: Linux on riscv64 is not supported"}},
		{"no systemd", practice.Faults{NoSystemd: true}, []string{"controller-1: systemd does not run this host"}},
		{"disk full", practice.Faults{FreeSpace: 100 << 20}, []string{"controller-1: 100 MiB are free for /var/lib/muster", "controller-1: 100 MiB are free for /usr/local/bin"}},
		{"clock ahead", practice.Faults{ClockOffset: 90 * time.Second}, []string{"controller-1: the clock is 1m30", "ahead of"}},
		{"clock behind", practice.Faults{ClockOffset: -3 * time.Second}, []string{"controller-1: the clock is 3", "behind"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, 3)
			l.hosts[1].Inject(tc.faults)
			before := l.snapshot()
			err := l.mustFail(tc.want...)
			var problems *step.PreflightError
			if !errors.As(err, &problems) {
				t.Fatalf("%T is not a PreflightError", err)
			}
			for _, p := range problems.Problems {
				if p.Host != "controller-1" {
					t.Errorf("%s has nothing wrong with it: %s", p.Host, p.Text)
				}
			}
			l.mustBeUntouched(before)
		})
	}
}

func TestPreflightReportsEveryHost(t *testing.T) {
	l := newLab(t, 3)
	l.hosts[0].Inject(practice.Faults{Machine: "i686"})
	l.hosts[1].Inject(practice.Faults{ClockOffset: -time.Hour, FreeSpace: 1 << 20})
	l.hosts[2].Inject(practice.Faults{NoSystemd: true})
	before := l.snapshot()
	l.mustFail("controller-0: Linux on i686", "controller-1: 1 MiB are free", "controller-1: the clock is 1h0m0", "controller-2: systemd does not run")
	l.mustBeUntouched(before)
	for _, h := range l.hosts {
		h.Inject(practice.Faults{})
	}
	l.mustApply()
}

// A program that is nowhere is missed before any change, and no host is asked
// for its journal.
func TestProgramsAreFoundFirst(t *testing.T) {
	l := newLab(t, 2)
	l.opts.BinaryDir = t.TempDir()
	before := l.snapshot()
	err := l.mustFail("preflight: no program to install")
	var failure *Failure
	if !errors.Is(err, ErrNoProgram) || !errors.As(err, &failure) || failure.Details() != "" {
		t.Errorf("error %v with details\n%s", err, failure.Details())
	}
	l.mustBeUntouched(before)
}

func TestPortTaken(t *testing.T) {
	l := newLab(t, 3)
	p := l.hosts[2].Ports()
	stranger, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Peer)))
	if err != nil {
		t.Fatal(err)
	}
	before := l.snapshot()
	l.mustFail(fmt.Sprintf("controller-2: port %d is taken on 127.0.0.1 by (\"stranger\"", p.Peer))
	l.mustBeUntouched(before)
	if err := stranger.Close(); err != nil {
		t.Fatal(err)
	}
	l.mustApply()
}

// asUser makes the hosts of a lab ones that a user other than root logs in to.
func asUser(doas bool) func(int, *practice.HostOptions) {
	return func(_ int, o *practice.HostOptions) { o.User, o.Doas = "ops", doas }
}

func (l *lab) loginAs(user string) {
	for i := range l.cluster.Hosts {
		l.cluster.Hosts[i].SSH.User = user
	}
}

func TestSudoWantsAPassword(t *testing.T) {
	l := newLab(t, 3, asUser(false))
	l.loginAs("ops")
	l.hosts[0].Inject(practice.Faults{SudoPassword: true})
	before := l.snapshot()
	l.mustFail("controller-0: ops cannot become root without a password")
	l.mustBeUntouched(before)
	l.hosts[0].Inject(practice.Faults{})
	l.mustApply()
}

func TestApplyAsAnotherUser(t *testing.T) {
	l := newLab(t, 3, func(i int, o *practice.HostOptions) { asUser(i == 2)(i, o) })
	l.loginAs("ops")
	l.mustApply()
	if second := l.mustApply(); second.Changes != 0 {
		t.Errorf("the second apply reports %d changes: %q", second.Changes, l.events.texts(step.Changed))
	}
}

func TestApplyThroughABastion(t *testing.T) {
	l := newLab(t, 3)
	first := l.cluster.Hosts[0]
	for i := 1; i < 3; i++ {
		l.cluster.Hosts[i].SSH.Bastion = &inventory.SSH{
			Address: first.Address, Port: first.SSH.Port, User: first.SSH.User, HostKey: first.SSH.HostKey, IdentityFile: first.SSH.IdentityFile,
		}
	}
	l.mustApply()
}

// A host that shows another key gets nothing, not even a login.
func TestChangedHostKey(t *testing.T) {
	l := newLab(t, 3)
	l.hosts[1].Inject(practice.Faults{ChangedHostKey: true})
	before := l.snapshot()
	l.mustFail("controller-1", l.hosts[1].Fingerprint())
	l.mustBeUntouched(before)
}

// leftovers are files on a host that an interrupted run left and nobody needs.
func leftovers(t *testing.T, h *practice.Host) []string {
	t.Helper()
	return slices.DeleteFunc(files(t, h), func(f string) bool {
		// An empty directory for uploads goes with the next upload.
		return !strings.Contains(f, "/.muster-") && !strings.Contains(f, "muster-upload") || strings.Contains(f, " d")
	})
}

func (l *lab) mustBeTidy() {
	l.t.Helper()
	for _, h := range l.hosts {
		if left := leftovers(l.t, h); len(left) > 0 {
			l.t.Errorf("%s: left behind: %q", h.Name(), left)
		}
	}
}

func TestConnectionDropsInAnUpload(t *testing.T) {
	l := newLab(t, 3)
	l.hosts[1].Inject(practice.Faults{DropUploadAfter: 5 << 20})
	var failure *Failure
	if err := l.mustFail("controller-1: "); !errors.As(err, &failure) || failure.Details() != "" {
		t.Errorf("more is told than that the connection was lost: %v", err)
	}
	if _, err := os.Stat(l.hosts[1].Path("/usr/local/bin/musterd")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a program is in place: %v", err)
	}
	l.mustApply()
	l.mustBeTidy()
}

// df promises room and the disk is full all the same.
func TestDiskFillsUp(t *testing.T) {
	l := newLab(t, 3)
	l.hosts[1].Inject(practice.Faults{DiskFullAfter: 5 << 20})
	l.mustFail("controller-1: ", "is the disk full?")
	if _, err := os.Stat(l.hosts[1].Path("/usr/local/bin/musterd")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a program is in place: %v", err)
	}
	l.hosts[1].Inject(practice.Faults{})
	l.mustApply()
	l.mustBeTidy()
}

// The host reboots somewhere in an apply, early or late; the next apply
// finishes what is left, with the certificates there are.
func TestHostRebootsMeanwhile(t *testing.T) {
	for _, before := range []string{
		"id ",
		"dd ",
		"mktemp ",
		"mv -fT /usr/local/bin/.muster-new-musterd ",
		"mv -fT /etc/muster/pki/.muster-new-server.key ",
		"systemd-analyze verify ",
		"systemctl enable ",
		"systemctl start ",
	} {
		t.Run(strings.TrimSpace(before), func(t *testing.T) {
			l := newLab(t, 3)
			l.hosts[1].Inject(practice.Faults{RebootBefore: before})
			l.mustFail("controller-1", "run the same command again once the host is back")
			ca, _ := os.ReadFile(filepath.Join(l.cluster.PKI.Dir, "ca.crt"))
			l.mustApply()
			if now, err := os.ReadFile(filepath.Join(l.cluster.PKI.Dir, "ca.crt")); err != nil || ca != nil && string(now) != string(ca) {
				t.Errorf("another CA: %v", err)
			}
			l.mustBeTidy()
			if again := l.mustApply(); again.Changes != 0 {
				t.Errorf("%d changes were left: %q", again.Changes, l.events.texts(step.Changed))
			}
		})
	}
}

// gate is a Reporter that stops a run where it reports a certain step.
type gate struct {
	*recorder
	step    string
	reached chan struct{}
	open    chan struct{}
}

func (g *gate) Report(e step.Event) {
	g.recorder.Report(e)
	if e.Step == g.step && e.Kind == step.Started && e.Host == "controller-0" {
		close(g.reached)
		<-g.open
	}
}

func TestTwoRuns(t *testing.T) {
	l := newLab(t, 3)
	g := &gate{recorder: &recorder{t: t}, step: "programs", reached: make(chan struct{}), open: make(chan struct{})}
	first := l.opts
	first.Reporter = g
	ended := make(chan error, 1)
	go func() {
		_, err := Apply(l.context(), l.cluster, first)
		ended <- err
	}()
	select {
	case <-g.reached:
	case err := <-ended:
		t.Fatalf("the first run ended early: %v", err)
	}
	err := l.mustFail("controller-0", fmt.Sprintf("process %d", os.Getpid()))
	if !errors.Is(err, step.ErrLocked) {
		t.Errorf("%v is not ErrLocked", err)
	}
	close(g.open)
	if err := <-ended; err != nil {
		l.fatal(err)
	}
	if second := l.mustApply(); second.Changes != 0 {
		t.Errorf("%d changes were left", second.Changes)
	}
}

// A unit that systemd does not accept is not put in place.
func TestUnitIsRefused(t *testing.T) {
	l := newLab(t, 3)
	l.hosts[1].Inject(practice.Faults{FailCommands: map[string]string{"systemd-analyze": "musterd.service:3: Unknown key"}})
	l.mustFail("controller-1", "musterd.service:3: Unknown key")
	for _, name := range []string{"/etc/systemd/system/musterd.service", "/etc/systemd/system/multi-user.target.wants/musterd.service"} {
		if _, err := os.Lstat(l.hosts[1].Path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	l.hosts[1].Inject(practice.Faults{})
	l.mustApply()
	l.mustBeTidy()
}

// interrupter cancels a run when it reports a certain change.
type interrupter struct {
	*recorder
	host, text string
	cancel     context.CancelFunc
}

func (i *interrupter) Report(e step.Event) {
	i.recorder.Report(e)
	if e.Kind == step.Changed && e.Host == i.host && strings.HasPrefix(e.Text, i.text) {
		i.cancel()
	}
}

// A run that ends when one member was started is finished by the next one.
func TestPartialCluster(t *testing.T) {
	l := newLab(t, 3)
	ctx, cancel := context.WithCancel(l.context())
	defer cancel()
	opts := l.opts
	opts.Reporter = &interrupter{recorder: &recorder{t: t}, host: "controller-1", text: "started ", cancel: cancel}
	if _, err := Apply(ctx, l.cluster, opts); err == nil {
		t.Fatal("the interrupted run succeeded")
	}
	l.mustApply()
}

// console runs a script on a host and demands that it succeeds.
func (l *lab) console(h *practice.Host, script string) {
	l.t.Helper()
	if out, status := h.Console(l.context(), script); status != 0 {
		l.t.Fatalf("%s: %s: exit status %d: %s", h.Name(), script, status, out)
	}
}

// A member whose data is gone is not founded anew beside the others: not by
// apply, and not by the host when it boots.
func TestLostDataIsNotReplaced(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	h := l.hosts[2]
	l.console(h, "systemctl stop musterd && mv /var/lib/muster /var/lib/away")
	l.mustFail("controller-2", "its data is lost")

	h.Reboot()
	err := l.mustFail("controller-2")
	var failure *Failure
	if !errors.As(err, &failure) || !strings.Contains(failure.Details(), "data directory") {
		t.Errorf("the member's refusal is not told: %v", err)
	}
	l.console(h, "systemctl stop musterd && rm -rf /var/lib/muster && mv /var/lib/away /var/lib/muster")
	l.mustApply()
}

// mustServe demands that every member is healthy without anything being done.
func (l *lab) mustServe() {
	l.t.Helper()
	if s := l.status(); !s.Healthy {
		l.t.Errorf("the cluster is not healthy: %+v", s)
	}
}

// A change that makes members fail stops at the first of them, which gets back
// what it had, and the report holds what the member said.
func TestBadFlagIsRolledBack(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	before := l.sh(2, "cat /etc/systemd/system/musterd.service")
	l.load("server:\n  flags: {heartbeat-interval: nonsense}\n")
	err := l.mustFail("was the first to be changed: it has back what it had before, and runs")
	var failure *Failure
	if !errors.As(err, &failure) || !strings.Contains(failure.Details(), "heartbeat-interval") || !strings.Contains(failure.Hint(), "runs as before") {
		t.Errorf("the member's own words are missing:\n%v", err)
	}
	l.mustServe()
	l.mustBeTidy()
	if after := l.sh(2, "cat /etc/systemd/system/musterd.service"); after != before {
		t.Errorf("a host that is not the first was changed:\n%s", after)
	}
	l.load("")
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("%d changes were left: %q", again.Changes, l.events.texts(step.Changed))
	}
}

// A program that does not run is tried on one member, which gets its old one
// back.
func TestBadProgramIsRolledBack(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	good := l.opts.BinaryDir
	l.opts.BinaryDir = t.TempDir()
	for _, name := range []string{"musterd", "musterctl"} {
		text, err := os.ReadFile(filepath.Join(good, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "musterd" { // for this machine, and no use
			clear(text[len(text)/8 : len(text)/2])
		}
		if err := os.WriteFile(filepath.Join(l.opts.BinaryDir, name), text, 0o700); err != nil { //nolint:gosec // it is a program
			t.Fatal(err)
		}
	}
	l.mustFail("it has back what it had before, and runs")
	l.mustServe()
	l.mustBeTidy()
	back := slices.DeleteFunc(l.events.texts(step.Changed), func(text string) bool { return !strings.Contains(text, "brought back") })
	if len(back) != 1 || !strings.HasSuffix(back[0], "/usr/local/bin/musterd") {
		t.Errorf("brought back: %q", back)
	}
}

func TestSlowDiskIsWarnedAbout(t *testing.T) {
	l := newLab(t, 1)
	l.hosts[0].Inject(practice.Faults{SlowSync: 30 * time.Millisecond})
	l.mustApply()
	warnings := l.events.texts(step.Warning)
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "controller-0: flushing a write to the disk of /var/lib/muster takes 3") {
		t.Errorf("warnings: %q", warnings)
	}
}

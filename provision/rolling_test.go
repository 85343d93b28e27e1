package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/provision/plan"
	"muster/provision/practice"
	"muster/provision/remote"
	"muster/provision/step"
)

// sh runs a script as root on a practice host.
func (l *lab) sh(host int, script string) string {
	l.t.Helper()
	d, err := remote.NewDialer(l.opts.SSH)
	if err != nil {
		l.t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // there is no bastion
	h := l.cluster.Hosts[host]
	conn, err := d.Dial(l.context(), remote.Target{Name: h.Name, Address: h.Address, Port: h.SSH.Port, User: "root", IdentityFile: h.SSH.IdentityFile, HostKey: h.SSH.HostKey})
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the output is there
	result, err := conn.Run(l.context(), remote.Command{Label: script, Script: script})
	if err != nil {
		l.t.Fatal(err)
	}
	return result.Stdout
}

func restarts(changed []string) []string {
	var hosts []string
	for _, text := range changed {
		if host, ok := strings.CutSuffix(text, ": restarted musterd.service"); ok {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

func TestChangedFlagRestartsOneAfterTheOther(t *testing.T) {
	l := newLab(t, 3)
	id := l.mustApply().Status.ClusterID
	l.load("server:\n  flags: {heartbeat-interval: \"150\"}\n")
	report := l.mustApply()
	changed := l.events.texts(step.Changed)
	if hosts := restarts(changed); len(hosts) != 3 || len(changed) != 6 {
		t.Errorf("changes: %q", changed)
	}
	if report.Status.ClusterID != id {
		t.Errorf("cluster %s became %s", id, report.Status.ClusterID)
	}
	if unit := l.sh(0, "cat /etc/systemd/system/musterd.service"); !strings.Contains(unit, "--heartbeat-interval=150") {
		t.Errorf("unit:\n%s", unit)
	}
	if n := l.mustApply().Changes; n != 0 {
		t.Errorf("%d changes afterwards", n)
	}
}

func TestOneChangedHostIsTheOnlyOneRestarted(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	// Somebody edits a file on one host.
	l.sh(1, "echo changed >> /etc/systemd/system/musterd.service")
	l.mustApply()
	want := []string{"controller-1: wrote /etc/systemd/system/musterd.service", "controller-1: restarted musterd.service"}
	if changed := l.events.texts(step.Changed); !slices.Equal(changed, want) {
		t.Errorf("changes %q, want %q", changed, want)
	}
}

func TestAttributesAreCorrected(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	l.sh(0, "chmod 0644 /etc/muster/pki/server.key; chown root:root /var/lib/muster; chmod 0700 /usr/local/bin/musterctl; rm /usr/local/bin/etcdutl")
	l.mustApply()
	want := []string{
		"controller-0: gave /var/lib/muster the mode 0700 and the owner muster:muster",
		"controller-0: gave /usr/local/bin/musterctl the mode 0755 and the owner root:root",
		"controller-0: linked /usr/local/bin/etcdutl to musterctl",
		"controller-0: gave /etc/muster/pki/server.key the mode 0640 and the owner root:muster",
	}
	if changed := l.events.texts(step.Changed); !slices.Equal(changed, want) {
		t.Errorf("changes %q, want %q", changed, want)
	}
}

func TestRestartThatDidNotHappenIsMadeUpFor(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	before := l.sh(0, "systemctl show -p MainPID musterd")
	l.load("server:\n  flags: {heartbeat-interval: \"150\"}\n")
	// The run ends between writing the unit and restarting the member.
	ctx, cancel := context.WithCancel(l.context())
	defer cancel()
	opts := l.opts
	opts.Reporter = &cutter{recorder: &recorder{t: t}, text: "wrote /etc/systemd", cancel: cancel}
	if _, err := Apply(ctx, l.cluster, opts); err == nil {
		t.Fatal("the interrupted run succeeded")
	}
	if now := l.sh(0, "systemctl show -p MainPID musterd"); now != before {
		t.Fatalf("the member was restarted: %s, then %s", before, now)
	}
	l.mustApply()
	if hosts := restarts(l.events.texts(step.Changed)); len(hosts) != 1 {
		t.Errorf("changes: %q", l.events.texts(step.Changed))
	}
	if n := l.mustApply().Changes; n != 0 {
		t.Errorf("%d changes afterwards", n)
	}
}

func TestRestartKeepsTheQuorum(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	l.sh(1, "echo changed >> /etc/systemd/system/musterd.service")
	// A member that is down is started first, so that the restart is safe.
	l.sh(2, "systemctl stop musterd")
	l.mustApply()
	want := []string{"controller-2: started musterd.service", "controller-1: wrote /etc/systemd/system/musterd.service", "controller-1: restarted musterd.service"}
	if changed := l.events.texts(step.Changed); !slices.Equal(changed, want) {
		t.Errorf("changes %q, want %q", changed, want)
	}
}

func TestFailureShowsTheJournal(t *testing.T) {
	l := newLab(t, 1)
	l.load("server:\n  flags: {heartbeat-interval: \"not-a-number\"}\n")
	_, err := l.apply()
	var f *Failure
	if !errors.As(err, &f) {
		t.Fatalf("%T %v, want a *Failure", err, err)
	}
	details := f.Details()
	for _, want := range []string{"step:    ready", "host:    controller-0", "unit:    controller-0: ActiveState=", "journal:", "heartbeat-interval"} {
		if !strings.Contains(details, want) {
			t.Errorf("the details lack %q:\n%s", want, details)
		}
	}
	if f.Hint() == "" {
		t.Error("no hint")
	}
	// Put right, the same hosts become a cluster.
	l.load("")
	l.mustApply()
}

func TestFailureShowsTheCommand(t *testing.T) {
	l := newLab(t, 1)
	l.hosts[0].Inject(practice.Faults{FailCommands: map[string]string{"useradd": "useradd: cannot lock /etc/passwd"}})
	_, err := l.apply()
	var f *Failure
	if !errors.As(err, &f) {
		t.Fatalf("%T %v, want a *Failure", err, err)
	}
	for _, want := range []string{"step:    account", "command: make the user muster", "useradd --system", "output:  useradd: cannot lock /etc/passwd"} {
		if !strings.Contains(f.Details(), want) {
			t.Errorf("the details lack %q:\n%s", want, f.Details())
		}
	}
}

func TestAnotherCAIsRefused(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	if err := os.Rename(l.cluster.PKI.Dir, l.cluster.PKI.Dir+".away"); err != nil {
		t.Fatal(err)
	}
	_, err := l.apply()
	if err == nil || !strings.Contains(err.Error(), "bring that directory back") {
		t.Fatalf("without the CA: error %v", err)
	}
	if exists(t, l.cluster.PKI.Dir) {
		t.Error("another CA was made")
	}
	l.cluster.PKI.Dir += ".other"
	if _, err = l.apply(); err == nil {
		t.Fatal("another CA was accepted")
	}
	other := newLab(t, 1)
	other.mustApply()
	l.cluster.PKI.Dir, other.cluster.PKI.Dir = other.cluster.PKI.Dir, l.cluster.PKI.Dir
	before := l.snapshot()
	l.mustFail("controller-0: this host trusts another CA (SHA-256 ", "point pki.dir at the directory this cluster was made with")
	if after := l.snapshot(); !slices.Equal(before[0], after[0]) {
		t.Errorf("the host was changed:\nbefore %q\nafter  %q", before, after)
	}
	l.cluster.PKI.Dir = other.cluster.PKI.Dir
	if err := os.Rename(strings.TrimSuffix(l.cluster.PKI.Dir, ".other")+".away", l.cluster.PKI.Dir); err != nil {
		t.Fatal(err)
	}
	if n := l.mustApply().Changes; n != 0 {
		t.Errorf("%d changes with the CA in another place", n)
	}
}

func TestRecordIsRespected(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	for _, test := range []struct {
		name   string
		change func()
		want   string
	}{
		{"cluster", func() { l.cluster.Name = "other" }, `belongs to cluster "test"`},
		{"token", func() { l.cluster.Token = "other" }, `(token "other")`},
		{"member", func() { l.cluster.Hosts[0].Name = "other" }, `is member "controller-0" and cannot be renamed to "other"`},
		{"data directory", func() { l.cluster.Hosts[0].Server.DataDir = "/var/lib/other" }, "the member's data is in /var/lib/muster"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l.load("")
			test.change()
			_, err := l.apply()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if changed := l.events.texts(step.Changed); len(changed) > 0 {
				t.Errorf("changes: %q", changed)
			}
		})
	}
}

// A flag of all members and the peer port of one, while somebody writes: nothing
// is lost, and the member that moved is found where it is.
func TestRollUnderLoad(t *testing.T) {
	l := newLab(t, 4)
	three := l.hosts[:3]
	l.loadHosts("", three...)
	l.mustApply()
	w := l.startCounter(0, 1, 2)
	l.loadHosts("server:\n  flags: {heartbeat-interval: \"150\"}\n", three...)
	l.cluster.Hosts[1].Server.PeerPort = l.hosts[3].Ports().Peer // which nobody uses
	p := l.mustPlan()
	if i := slices.IndexFunc(p.Changes, func(c plan.Change) bool { return c.Kind == plan.Member && c.Action == plan.Update }); i < 0 || p.Changes[i].Name != "controller-1" {
		t.Errorf("the plan does not tell that controller-1 moves: %+v", p.Changes)
	}
	report := l.mustApply()
	changed := l.events.texts(step.Changed)
	if hosts := restarts(changed); len(hosts) != 3 || report.Changes != p.Len() {
		t.Errorf("%d changes were planned and %d made: %q", p.Len(), report.Changes, changed)
	}
	l.mustBeDone()
	w.mustHaveAll(1)
	// Every snapshot that was taken first is whole, and there is one.
	saved, err := filepath.Glob(filepath.Join(l.dir, "test-backups", "before-apply", "*.db"))
	if err != nil || len(saved) != 1 {
		t.Errorf("snapshots %q, error %v", saved, err)
	}
}

// A member that fails after the first stops the roll: it is said how far it
// came, and the next run goes on.
func TestRollStopsAtAMember(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	l.load("server:\n  flags: {heartbeat-interval: \"150\"}\n")
	// The last host is never the first to be changed: of the others, at least
	// one does not lead.
	l.hosts[2].Inject(practice.Faults{FailCommands: map[string]string{"systemd-analyze": "no"}})
	_, err := l.apply()
	done := len(restarts(l.events.texts(step.Changed)))
	var failure *Failure
	if !errors.As(err, &failure) || done == 0 || !strings.Contains(failure.Hint(), fmt.Sprintf("%d members are changed and run, %d are not", done, 3-done)) {
		t.Fatalf("%d members restarted, error %v", done, err)
	}
	l.mustServe()
	l.hosts[2].Inject(practice.Faults{})
	l.mustApply()
	if hosts := restarts(l.events.texts(step.Changed)); len(hosts) != 3-done || !slices.Contains(hosts, "controller-2") {
		t.Errorf("restarted %q", hosts)
	}
	l.mustBeDone()
}

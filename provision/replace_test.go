package provision

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/provision/plan"
	"muster/provision/practice"
	"muster/provision/step"
)

// mustReplace replaces the member of a host and demands a verified cluster and
// that nothing is left to do.
func (l *lab) mustReplace(name string) {
	l.t.Helper()
	l.events.reset()
	report, err := Replace(l.context(), l.cluster, l.opts, name)
	if err != nil {
		l.fatal(err)
	}
	if !report.Status.Healthy || report.Changes == 0 {
		l.t.Fatalf("after the replacement: %+v", report)
	}
	l.mustBeDone()
}

// newMachine starts a bare host.
func (l *lab) newMachine(name, dir string) *practice.Host {
	l.t.Helper()
	h, err := practice.StartHost(practice.HostOptions{Name: name, Dir: filepath.Join(l.dir, dir), AuthorizedKey: l.key})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestReplaceByANewMachine(t *testing.T) {
	l := newLab(t, 3)
	id := l.mustApply().Status.ClusterID
	w := l.startCounter(0, 1)
	if err := l.hosts[2].Close(); err != nil {
		t.Fatal(err)
	}
	l.hosts[2] = l.newMachine("controller-2", "another machine")
	l.load("")
	// Apply does not decide that a member is dead for good.
	l.mustFail("controller-2", "run muster replace controller-2")
	l.mustReplace("controller-2")
	if now := l.status(); now.ClusterID != id || !now.Healthy {
		t.Errorf("cluster %s became %+v", id, now)
	}
	w.mustHaveAll(2)
}

// Data that is of no use is moved aside, wherever a run before has ended.
func TestReplaceGoesOn(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	for _, end := range []string{"removed the member controller-2", "moved the data", "took the cluster", "added controller-2", "started "} {
		old := l.status().Members[2].ID
		// The member cannot run with what it has.
		l.console(l.hosts[2], "systemctl stop musterd && rm -rf /var/lib/muster && install -d -m 0700 -o muster -g muster /var/lib/muster && echo broken > /var/lib/muster/identity.json")
		ctx, cancel := context.WithCancel(l.context())
		opts := l.opts
		opts.Reporter = &cutter{recorder: &recorder{t: t}, text: end, cancel: cancel}
		_, err := Replace(ctx, l.cluster, opts, "controller-2")
		cancel()
		if err == nil {
			t.Fatalf("the run that was to end with %q succeeded", end)
		}
		l.mustReplace("controller-2")
		if out := l.sh(2, fmt.Sprintf("cat /var/lib/muster.replaced-%s/identity.json", old)); out != "broken\n" {
			t.Errorf("after %q: the old data holds %q", end, out)
		}
	}
}

// What is planned is what is done, also here; and where no majority is left,
// nothing is.
func TestReplacePlansAndKeepsTheQuorum(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	l.console(l.hosts[2], "systemctl stop musterd && rm -rf /var/lib/muster")
	l.mustFail("controller-2", "its data is lost", "muster replace controller-2")
	planned := 0
	l.opts.Show = func(p *plan.Plan) { planned = p.Len() }
	l.events.reset()
	report, err := Replace(l.context(), l.cluster, l.opts, "controller-2")
	if err != nil {
		l.fatal(err)
	}
	if report.Changes != planned {
		t.Errorf("%d changes were planned and %d made: %q", planned, report.Changes, l.events.texts(step.Changed))
	}
	for _, h := range l.hosts[1:] {
		l.console(h, "systemctl stop musterd && rm -rf /var/lib/muster")
	}
	_, err = Replace(l.context(), l.cluster, l.opts, "controller-2")
	if err == nil || !strings.Contains(err.Error(), "without a majority no member can be replaced") {
		t.Errorf("without a majority: %v", err)
	}
	if slices.ContainsFunc(l.events.texts(step.Changed), func(s string) bool { return strings.Contains(s, "controller-1: ") }) {
		t.Errorf("changes: %q", l.events.texts(step.Changed))
	}
}

package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/observed"
	"muster/provision/plan"
	"muster/provision/step"
)

// counter writes numbered keys through members of the lab, one after the other,
// until it is stopped.
type counter struct {
	l            *lab
	clients      []*clientv3.Client
	stop, ended  chan struct{}
	acknowledged atomic.Int64 // keys 0 to this, exclusive
	longest      time.Duration
}

func (l *lab) startCounter(hosts ...int) *counter {
	w := &counter{l: l, stop: make(chan struct{}), ended: make(chan struct{})}
	for _, i := range hosts {
		w.clients = append(w.clients, l.client(i))
	}
	go w.run()
	return w
}

func (w *counter) run() {
	defer close(w.ended)
	last := time.Now()
	for n, try := 0, 0; ; try++ {
		select {
		case <-w.stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := w.clients[try%len(w.clients)].Put(ctx, fmt.Sprintf("load/%08d", n), strconv.Itoa(n))
		cancel()
		if err != nil { // perhaps written, perhaps not: the same again
			continue
		}
		n++
		w.acknowledged.Store(int64(n))
		w.longest = max(w.longest, time.Since(last))
		last = time.Now()
	}
}

// mustHaveAll ends the load and demands every acknowledged key from a member.
func (w *counter) mustHaveAll(host int) {
	t := w.l.t
	t.Helper()
	close(w.stop)
	<-w.ended
	want := w.acknowledged.Load()
	got, err := w.l.client(host).Get(w.l.context(), "load/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d writes, the longest gap %v", want, w.longest.Round(time.Millisecond))
	if want == 0 || got.Count < want {
		t.Fatalf("%d of %d acknowledged writes are there", got.Count, want)
	}
	for n, kv := range got.Kvs[:want] {
		if string(kv.Key) != fmt.Sprintf("load/%08d", n) || string(kv.Value) != strconv.Itoa(n) {
			t.Fatalf("write %d reads %s=%s", n, kv.Key, kv.Value)
		}
	}
}

// mustBeDone demands that another apply finds nothing to do.
func (l *lab) mustBeDone() {
	l.t.Helper()
	if again := l.mustApply(); again.Changes != 0 {
		l.t.Errorf("%d changes were left: %q", again.Changes, l.events.texts(step.Changed))
	}
}

func TestGrowAndShrinkUnderLoad(t *testing.T) {
	l := newLab(t, 5)
	all := l.hosts
	l.loadHosts("", all[0])
	id := l.mustApply().Status.ClusterID
	w := l.startCounter(0)
	for _, n := range []int{3, 5, 3} {
		l.loadHosts("", all[:n]...)
		p := l.mustPlan()
		report := l.mustApply()
		if report.Status.ClusterID != id {
			t.Fatalf("with %d members the cluster is %s, was %s", n, report.Status.ClusterID, id)
		}
		if changed := l.events.texts(step.Changed); p.Len() != report.Changes {
			t.Errorf("%d changes were planned and %d made:\n%+v\n%q", p.Len(), report.Changes, p.Changes, changed)
		}
		if restarted := restarts(l.events.texts(step.Changed)); len(restarted) > 0 {
			t.Errorf("restarted for a change of the members: %q", restarted)
		}
		l.mustBeDone()
	}
	w.mustHaveAll(2)
	for _, h := range all[3:] { // who was removed stops, and keeps everything
		deadline := time.Now().Add(20 * time.Second)
		for h.UnitState("musterd")["ActiveState"] == "active" && h.UnitState("musterd")["SubState"] == "running" {
			if time.Now().After(deadline) {
				t.Fatalf("%s still runs: %v", h.Name(), h.UnitState("musterd"))
			}
			<-time.After(50 * time.Millisecond)
		}
		if !exists(t, h.Path("/var/lib/muster")) {
			t.Errorf("%s has lost its data", h.Name())
		}
	}
	// A host that was removed does not come back with its old data unasked.
	l.loadHosts("", all[:4]...)
	l.mustFail("controller-3", "which was removed from the cluster")
}

// Wherever a run that adds a member ends, the next one finishes it.
func TestAddingGoesOn(t *testing.T) {
	l := newLab(t, 5)
	all := l.hosts
	l.loadHosts("", all[0])
	l.mustApply()
	for i, end := range []string{"added controller-1 as a learner", "wrote /etc/systemd", "started ", "controller-4 has caught up"} {
		l.loadHosts("", all[:i+2]...)
		ctx, cancel := context.WithCancel(l.context())
		opts := l.opts
		opts.Reporter = &cutter{recorder: &recorder{t: t}, text: end, cancel: cancel}
		_, err := Apply(ctx, l.cluster, opts)
		cancel()
		if err == nil {
			t.Fatalf("the run that was to end with %q succeeded", end)
		}
		l.mustApply()
		l.mustBeDone()
	}
}

// cutter cancels a run when it reports a certain change, on whichever host.
type cutter struct {
	*recorder
	text   string
	cancel context.CancelFunc
}

func (c *cutter) Report(e step.Event) {
	c.recorder.Report(e)
	if e.Kind == step.Changed && strings.HasPrefix(e.Text, c.text) {
		c.cancel()
	}
}

// A dead member that is not in the inventory any more goes before anything
// else; one that would take the quorum with it does not go at all.
func TestDeadMembersAreRemoved(t *testing.T) {
	l := newLab(t, 4)
	all := l.hosts
	l.loadHosts("", all[:3]...)
	l.mustApply()
	l.console(all[2], "systemctl stop musterd")
	l.loadHosts("", all[0], all[1], all[3]) // 2 is replaced by 3
	l.mustApply()
	changed := l.events.texts(step.Changed)
	removed := slices.IndexFunc(changed, func(s string) bool { return strings.Contains(s, "removed the member controller-2") })
	added := slices.IndexFunc(changed, func(s string) bool { return strings.Contains(s, "added controller-3") })
	if removed < 0 || added < removed {
		t.Errorf("changes %q", changed)
	}
	l.mustBeDone()
}

// A cluster that has grown comes back from a reset, where no unit tells any more
// who founded it, and from a stop of all its members while a flag changes.
func TestGrownClusterComesBack(t *testing.T) {
	l := newLab(t, 2)
	l.loadHosts("", l.hosts[0])
	id := l.mustApply().Status.ClusterID
	l.load("")
	l.mustApply()
	l.mustReset(ResetOptions{})
	if now := l.mustApply().Status.ClusterID; now != id {
		t.Errorf("cluster %s came back as %s", id, now)
	}
	l.mustBeDone()
	for _, h := range l.hosts {
		l.console(h, "systemctl stop musterd")
	}
	l.load("server:\n  flags: {heartbeat-interval: \"150\"}\n")
	l.mustApply()
	l.mustBeDone()
}

// Two clusters of one inventory's name do not become one, whichever answers
// first, and nothing is changed on the way.
func TestTwoClustersStayTwo(t *testing.T) {
	l := newLab(t, 2)
	l.loadHosts("", l.hosts[1])
	l.mustApply()
	l.loadHosts("", l.hosts[0])
	l.mustApply()
	l.load("")
	l.mustFail("controller-1: this host is in cluster ", "two clusters cannot become one")
	path := l.hosts[1].Path("/etc/muster/cluster.json")
	var record observed.Record
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	record.ClusterID, record.MemberID = "", "" // as before its first verification
	if err == nil {
		text, err = json.Marshal(record)
	}
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.mustFail("controller-1: /var/lib/muster holds the data of a member that the running cluster does not list")
	if changed := l.events.texts(step.Changed); len(changed) > 0 {
		t.Errorf("changes: %q", changed)
	}
}

func (l *lab) mustPlan() *plan.Plan {
	l.t.Helper()
	p, err := Plan(l.context(), l.cluster, l.opts)
	if err != nil {
		l.fatal(err)
	}
	return p
}

package provision

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/observed"
	"muster/provision/practice"
	"muster/provision/snapshot"
	"muster/provision/step"
)

var interruptions = flag.Int("interruptions", 2, "how many restores are interrupted in a row")

// bumpRevision is more than any test writes.
const bumpRevision = 1_000_000

func agree(step.Loss) (bool, error) { return true, nil }

func (l *lab) restore(file string, confirm func(step.Loss) (bool, error)) (*RestoreReport, error) {
	l.t.Helper()
	l.events.reset()
	begun := time.Now()
	report, err := Restore(l.context(), l.cluster, l.opts, RestoreOptions{File: file, BumpRevision: bumpRevision, Confirm: confirm})
	l.t.Logf("restore took %v: %v", time.Since(begun).Round(time.Millisecond), err)
	return report, err
}

func (l *lab) mustRestore(file string, confirm func(step.Loss) (bool, error)) *RestoreReport {
	l.t.Helper()
	report, err := l.restore(file, confirm)
	if err != nil {
		l.fatal(err)
	}
	if !report.Status.Healthy || len(report.Status.Members) != len(l.cluster.Hosts) {
		l.t.Fatalf("status after restore: %+v", report.Status)
	}
	if report.Revision != report.Snapshot.Revision+bumpRevision {
		l.t.Errorf("restored at revision %d, the snapshot's is %d", report.Revision, report.Snapshot.Revision)
	}
	for i := range l.hosts {
		l.mustBeCompacted(i, report.Snapshot.Revision+1, report.Revision)
	}
	return report
}

// mustBeCompacted watches as one who knows the cluster from before a restore: the
// member on a host says that its history begins later.
func (l *lab) mustBeCompacted(host int, from, begins int64) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.context())
	defer cancel()
	w := <-l.client(host).Watch(ctx, "k", clientv3.WithRev(from))
	if !errors.Is(w.Err(), rpctypes.ErrCompacted) || w.CompactRevision != begins {
		l.t.Errorf("a watch from revision %d on controller-%d: %v, compacted up to %d, want %d", from, host, w.Err(), w.CompactRevision, begins)
	}
}

// keys are those that the member on a host has.
func (l *lab) keys(host int) map[string]string {
	l.t.Helper()
	got, err := l.client(host).Get(l.context(), "k", clientv3.WithPrefix())
	if err != nil {
		l.t.Fatal(err)
	}
	keys := map[string]string{}
	for _, kv := range got.Kvs {
		keys[string(kv.Key)] = string(kv.Value)
	}
	return keys
}

// asides are the directories on a host that a restore has put aside.
func (l *lab) asides(host int) []string {
	l.t.Helper()
	found, err := filepath.Glob(l.hosts[host].Path("/var/lib") + "/muster.before-restore-*")
	if err != nil {
		l.t.Fatal(err)
	}
	return found
}

func TestRestore(t *testing.T) {
	l := newLab(t, 3)
	before := l.mustApply().Status.ClusterID
	revision := l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	lost := l.put(0, "k1", "new")
	l.put(1, "k2", "new")

	// Nobody agrees: nothing happens.
	var asked step.Loss
	if _, err := l.restore(saved.Path, func(loss step.Loss) (bool, error) {
		asked = loss
		return false, nil
	}); !errors.Is(err, ErrDeclined) {
		t.Fatalf("error %v", err)
	}
	if c := asked.Current; asked.Snapshot.Revision != revision || asked.Begins != revision+bumpRevision || asked.Origin.ClusterID != before || c == nil || c.Revision != lost+1 || c.Keys != 2 || c.ClusterID != before || len(asked.Aside) != 3 {
		t.Errorf("what would be lost: %+v, now %+v", asked, asked.Current)
	}
	if changed := l.events.texts(step.Changed); len(changed) > 0 {
		t.Errorf("changes: %q", changed)
	}

	report := l.mustRestore(saved.Path, agree)
	if report.Status.ClusterID == before || report.Snapshot.Revision != revision {
		t.Errorf("cluster %s was %s; restored %+v", report.Status.ClusterID, before, report.Snapshot)
	}
	for i := range l.hosts {
		if keys := l.keys(i); len(keys) != 1 || keys["k1"] != "old" {
			t.Errorf("controller-%d has %v", i, keys)
		}
		if found := l.asides(i); len(found) != 1 {
			t.Errorf("controller-%d keeps %q", i, found)
		} else if _, err := os.Stat(filepath.Join(found[0], "member.json")); err != nil {
			t.Errorf("what is put aside is not the old data: %v", err)
		}
		for _, path := range []string{"/etc/muster/restore.json", "/etc/muster/restore.env", "/var/lib/muster.restore.db"} {
			if exists(t, l.hosts[i].Path(path)) {
				t.Errorf("controller-%d still has %s", i, path)
			}
		}
	}
	// Everything else is as apply wants it, and the cluster's ID is its new one.
	if again := l.mustApply(); again.Changes != 0 || again.Status.ClusterID != report.Status.ClusterID {
		t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
	}
	// A run that was killed while it tidied up is repeated, and finds nothing
	// to lose.
	var record observed.Record
	if err := json.Unmarshal([]byte(l.sh(2, "cat /etc/muster/cluster.json")), &record); err != nil {
		t.Fatal(err)
	}
	state := fmt.Sprintf(`{"snapshot":%q,"begun":"2026-01-01T00:00:00Z","moved":true}`, record.Snapshot)
	l.sh(2, "echo '"+state+"' > /etc/muster/restore.json")
	l.mustRestore(saved.Path, func(step.Loss) (bool, error) { return false, errors.New("asked") })
	if again := l.mustApply(); again.Changes != 0 || again.Status.ClusterID != report.Status.ClusterID {
		t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
	}
	l.hosts[1].Reboot()
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("%d changes after a reboot: %q", again.Changes, l.events.texts(step.Changed))
	}
	// The same file again makes another cluster.
	if next := l.mustRestore(saved.Path, agree); next.Status.ClusterID == report.Status.ClusterID || next.Status.ClusterID == before {
		t.Errorf("cluster %s once more", next.Status.ClusterID)
	}
}

// No member works, one host has lost its data, another is new.
func TestRestoreOfADeadCluster(t *testing.T) {
	l := newLab(t, 3)
	l.loadHosts("", l.hosts[:2]...)
	l.mustApply()
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	l.sh(0, "systemctl stop musterd; rm -rf /var/lib/muster")
	l.sh(1, "systemctl stop musterd; rm /var/lib/muster/member.json")
	l.load("")
	var asked step.Loss
	report := l.mustRestore(saved.Path, func(loss step.Loss) (bool, error) {
		asked = loss
		return true, nil
	})
	if asked.Current != nil || len(asked.Aside) != 1 || asked.Aside[0] != (step.Aside{Host: "controller-1", Dir: "/var/lib/muster"}) {
		t.Errorf("what would be lost: %+v", asked)
	}
	for i := range l.hosts {
		if keys := l.keys(i); len(keys) != 1 || keys["k1"] != "old" {
			t.Errorf("controller-%d has %v", i, keys)
		}
	}
	if again := l.mustApply(); again.Changes != 0 || again.Status.ClusterID != report.Status.ClusterID {
		t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
	}
}

// Members that came to the cluster later found the restored one like all others.
func TestRestoreOfAClusterThatGrew(t *testing.T) {
	l := newLab(t, 3)
	l.loadHosts("", l.hosts[0])
	l.mustApply()
	l.put(0, "k1", "old")
	l.load("")
	l.mustApply()
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	if unit := l.sh(2, "cat /etc/systemd/system/musterd.service"); !strings.Contains(unit, "--initial-cluster-state existing") {
		t.Errorf("controller-2 did not join:\n%s", unit)
	}
	l.put(2, "k1", "new")
	report := l.mustRestore(saved.Path, agree)
	for i := range l.hosts {
		if keys := l.keys(i); len(keys) != 1 || keys["k1"] != "old" {
			t.Errorf("controller-%d has %v", i, keys)
		}
	}
	if again := l.mustApply(); again.Changes != 0 || again.Status.ClusterID != report.Status.ClusterID {
		t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
	}
}

// A restore that ends at any of its changes is finished by the next one, which
// moves no data that came from the snapshot. Apply keeps out in between.
func TestRestoreInterrupted(t *testing.T) { newLab(t, 3).interruptRestores() }

func (l *lab) interruptRestores() {
	t := l.t
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it is a test
	l.mustApply()
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	l.put(0, "k1", "new")
	reporter := l.opts.Reporter
	for round := range *interruptions {
		ctx, cancel := context.WithCancel(l.context())
		left := random.IntN(16)
		l.opts.Reporter = reporterFunc(func(e step.Event) {
			reporter.Report(e)
			if e.Kind == step.Changed {
				if left--; left < 0 {
					cancel()
				}
			}
		})
		_, err := Restore(ctx, l.cluster, l.opts, RestoreOptions{File: saved.Path, BumpRevision: bumpRevision, Confirm: agree})
		cancel()
		t.Logf("round %d: %v", round, err)
		l.opts.Reporter = reporter
		if err != nil && exists(t, l.hosts[0].Path("/etc/muster/restore.json")) {
			if _, err := l.apply(); err == nil || !strings.Contains(err.Error(), "run muster restore again with the same file (SHA-256 "+saved.SHA256[:16]+"...) and --bump-revision 1000000") {
				t.Errorf("apply beside an interrupted restore: %v", err)
			}
		}
	}
	report := l.mustRestore(saved.Path, agree)
	for i := range l.hosts {
		if keys := l.keys(i); len(keys) != 1 || keys["k1"] != "old" {
			t.Errorf("controller-%d has %v", i, keys)
		}
		if found := l.asides(i); len(found) == 0 {
			t.Errorf("controller-%d has lost its old data", i)
		}
	}
	if again := l.mustApply(); again.Changes != 0 || again.Status.ClusterID != report.Status.ClusterID {
		t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
	}
}

type reporterFunc func(step.Event)

func (f reporterFunc) Report(e step.Event) { f(e) }

// A host that reboots after it has lost its data founds from the snapshot, not
// from nothing; the next run finds it so.
func TestRestoreWithAReboot(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	l.put(0, "k1", "new")
	l.hosts[0].Inject(practice.Faults{RebootBefore: "install -d"})
	if _, err := l.restore(saved.Path, agree); err == nil {
		t.Fatal("the reboot went unnoticed")
	}
	if n := len(l.asides(0)); n != 1 {
		t.Fatalf("%d directories were put aside before the reboot", n)
	}
	l.mustRestore(saved.Path, func(step.Loss) (bool, error) {
		t.Error("asked again, and nothing more is lost")
		return true, nil
	})
	if keys := l.keys(0); len(keys) != 1 || keys["k1"] != "old" {
		t.Errorf("there is %v", keys)
	}
	if n := len(l.asides(0)); n != 1 {
		t.Errorf("%d directories were put aside", n)
	}
}

func TestRestoreRefuses(t *testing.T) {
	l := newLab(t, 1)
	l.opts.SSH.RetryFor = 100 * time.Millisecond
	l.mustApply()
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	id := l.status().ClusterID
	content, err := os.ReadFile(saved.Path)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	damaged := filepath.Join(l.dir, "damaged.db")
	if err := os.WriteFile(damaged, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		file  string
		fault practice.Faults
		want  string
	}{
		"a file that is not there": {"/no/snapshot.db", practice.Faults{}, "/no/snapshot.db"},
		"a damaged file":           {damaged, practice.Faults{}, "does not match its content"},
		"a disk without room":      {saved.Path, practice.Faults{FreeSpace: 300 << 20}, "restoring the snapshot needs"},
		"a host out of reach":      {saved.Path, practice.Faults{RefuseConnections: true}, "controller-0"},
	} {
		t.Run(name, func(t *testing.T) {
			l.hosts[0].Inject(test.fault)
			defer l.hosts[0].Inject(practice.Faults{})
			_, err := l.restore(test.file, func(step.Loss) (bool, error) { return false, fmt.Errorf("asked") })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	if s := l.status(); !s.Healthy || s.ClusterID != id {
		t.Errorf("%+v", s)
	}
}

package replica

import (
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
)

// slowDisk holds the log's files back from being synced while it is held.
type slowDisk struct {
	types.VFS
	mu   sync.Mutex
	gate chan struct{} // nil while syncs pass
	err  error
}

func newSlowDisk() *slowDisk { return &slowDisk{VFS: fs.New()} }

func (d *slowDisk) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = make(chan struct{})
}

// release lets every sync end, with err.
func (d *slowDisk) release(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err = err; d.gate != nil {
		close(d.gate)
	}
	d.gate = nil
}

func (d *slowDisk) pass() error {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *slowDisk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	file, err := d.VFS.Create(dir, name, size)
	return &slowFile{file, d}, err
}

func (d *slowDisk) OpenWriter(dir, name string) (types.WritableFile, error) {
	file, err := d.VFS.OpenWriter(dir, name)
	return &slowFile{file, d}, err
}

type slowFile struct {
	types.WritableFile
	disk *slowDisk
}

func (f *slowFile) Sync() error { return errors.Join(f.disk.pass(), f.WritableFile.Sync()) }

// newClusterOnSlowDisks is newCluster with a disk for every member. None is
// held when the members stop.
func newClusterOnSlowDisks(t *testing.T, n int) (*testCluster, []*slowDisk) {
	t.Helper()
	c := newCluster(t, n)
	var disks []*slowDisk
	for _, m := range c.members {
		disk := newSlowDisk()
		t.Cleanup(func() { disk.release(nil) })
		m.config.files = disk
		disks = append(disks, disk)
	}
	return c, disks
}

// whileHeld is how long something must not happen that a disk holds back.
const whileHeld = 100 * time.Millisecond

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(whileHeld):
		return false
	}
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited %v for %s", patience, what)
	}
}

func background(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { fn(); close(done) }()
	return done
}

func openLateLog(t *testing.T, disk *slowDisk, failed func(error)) *durableLog {
	t.Helper()
	log, err := openLog(t.TempDir(), disk, hashicorpLogger("log", slog.New(slog.DiscardHandler)), failed)
	if err != nil {
		t.Fatal(err)
	}
	log.late.allowed = func() bool { return true }
	t.Cleanup(func() { disk.release(nil); _ = log.Close() })
	return log
}

// While the disk of a leader is slow its entries can be read, to be sent, but
// nothing that depends on its own copy goes on.
func TestLateSyncHoldsWhatDependsOnIt(t *testing.T) {
	configuration := []*raft.Log{{Index: 3, Term: 1, Type: raft.LogConfiguration, Data: []byte("needle")}}
	for name, then := range map[string]func(*durableLog) error{
		"a follower's answer":  func(l *durableLog) error { return l.awaitDurable(2) },
		"the next write":       func(l *durableLog) error { return l.StoreLogs(commands(1, 3, 3)) },
		"a new term":           func(l *durableLog) error { return l.SetUint64([]byte("CurrentTerm"), 2) },
		"a vote":               func(l *durableLog) error { return l.Set([]byte("LastVoteCand"), []byte("x")) },
		"a new configuration":  func(l *durableLog) error { return l.StoreLogs(configuration) },
		"the list of segments": func(l *durableLog) error { return settledMeta{noMeta{}, &l.late}.CommitState(types.PersistentState{}) },
	} {
		t.Run(name, func(t *testing.T) {
			disk := newSlowDisk()
			log := openLateLog(t, disk, nil)
			if err := log.StoreLogs(commands(1, 1, 1)); err != nil {
				t.Fatal(err)
			}
			log.late.settle()
			disk.hold()
			if err := log.StoreLogs(commands(1, 2, 2)); err != nil {
				t.Fatal(err)
			}
			if err := log.GetLog(2, &raft.Log{}); err != nil {
				t.Errorf("the entry cannot be sent: %v", err)
			}
			if err := log.awaitDurable(1); err != nil {
				t.Errorf("what was synced before: %v", err)
			}
			if log.stalled(time.Now().Add(time.Hour)) == 0 {
				t.Error("the write does not count as under way")
			}
			var err error
			done := background(func() { err = then(log) })
			if isDone(done) {
				t.Errorf("went on before the disk had the entry: %v", err)
			}
			disk.release(nil)
			within(t, "the disk", done)
			if err != nil {
				t.Error(err)
			}
		})
	}
}

type noMeta struct{ types.MetaStore }

func (noMeta) CommitState(types.PersistentState) error { return nil }

// A new configuration is on the disk before StoreLogs returns: it may leave the
// leader the only voter.
func TestConfigurationIsNeverLate(t *testing.T) {
	disk := newSlowDisk()
	log := openLateLog(t, disk, nil)
	disk.hold()
	var err error
	done := background(func() {
		err = log.StoreLogs([]*raft.Log{{Index: 1, Term: 1, Type: raft.LogCommand}, {Index: 2, Term: 1, Type: raft.LogConfiguration}})
	})
	if isDone(done) {
		t.Error("the configuration was not synced")
	}
	disk.release(nil)
	within(t, "the disk", done)
	if err != nil {
		t.Error(err)
	}
}

func TestLateSyncFails(t *testing.T) {
	disk := newSlowDisk()
	failed := make(chan error, 1)
	log := openLateLog(t, disk, func(err error) { failed <- err })
	disk.hold()
	if err := log.StoreLogs(commands(1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the disk is gone")
	disk.release(broken)
	if err := log.awaitDurable(1); !errors.Is(err, errLogFailed) {
		t.Errorf("a follower's answer counts: %v", err)
	}
	if err := <-failed; !errors.Is(err, broken) {
		t.Errorf("the member was told %v", err)
	}
	if err := log.StoreLogs(commands(1, 2, 2)); !errors.Is(err, errLogFailed) {
		t.Errorf("the next write: %v", err)
	}
}

// A leader's entries reach the followers while its own disk is slow, and count
// only when that has them, too.
func TestLeaderCountsItsOwnCopyWhenSynced(t *testing.T) {
	for _, members := range []int{1, 3} {
		c, disks := newClusterOnSlowDisks(t, members)
		for _, m := range c.members {
			m.config.ElectionTimeout = 2 * time.Second // the leader is to keep its place meanwhile
		}
		c.startAll()
		for i := range c.members {
			c.awaitReady(i)
		}
		leader := c.members[c.leader()]
		disk := disks[c.leader()]
		c.put(c.leader(), "before", "1")
		before := leader.Status().Committed

		disk.hold()
		var err error
		done := background(func() { err = c.tryPut(c.leader(), "while", "1", patience) })
		if members > 1 {
			eventually(t, "the followers to have the entry", func() bool {
				for _, m := range c.members {
					if last, err := m.log.LastIndex(); err != nil || last <= before {
						return false
					}
				}
				return true
			})
		}
		if isDone(done) || leader.Status().Committed > before {
			t.Errorf("%d member(s): an entry is committed that the leader does not have on its disk", members)
		}
		disk.release(nil)
		within(t, "the write", done)
		if err != nil {
			t.Errorf("%d member(s): %v", members, err)
		}
		for i := range c.members {
			c.stop(i)
		}
	}
}

// What was written and not synced when the process was killed is found at the
// next start: it counts only once it is on the disk.
func TestWhatAKilledProcessWroteIsSynced(t *testing.T) {
	disk, dir := newSlowDisk(), t.TempDir()
	logger := hashicorpLogger("log", testLogger(t, "log"))
	open := func() (*durableLog, error) {
		return openLog(dir, disk, logger, func(err error) { t.Error(err) })
	}
	log, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("x")}), log.Close()); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the disk is gone")
	disk.release(broken)
	if _, err := open(); !errors.Is(err, broken) {
		t.Fatalf("opened without syncing what is there: %v", err)
	}
	disk.release(nil)
	if log, err = open(); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

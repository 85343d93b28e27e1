package replica

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
	"muster/kvserver/metrics"
)

// installed is what raft logs once a follower has a whole snapshot.
const installed = "copied to local snapshot"

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// cut takes a snapshot on every running member and drops the log below it.
func (c *testCluster) cut() {
	c.t.Helper()
	for i, m := range c.members {
		if m.Replica == nil {
			continue
		}
		c.linearize(i)
		instance := m.currentRaft()
		settings := instance.ReloadableConfig()
		settings.TrailingLogs = 1
		if err := instance.ReloadConfig(settings); err != nil {
			c.t.Fatal(err)
		}
		if err := instance.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			c.t.Fatal(err)
		}
	}
}

// transfer makes another running member lead, in a newer term.
func (c *testCluster) transfer() int {
	c.t.Helper()
	before := c.members[c.leader()].Status().Term
	eventually(c.t, "leadership to move", func() bool {
		leader := c.leader()
		if c.members[leader].Status().Term > before {
			return true
		}
		to := c.members[c.follower()].config.Self
		_ = c.members[leader].currentRaft().LeadershipTransferToServer(serverID(to.ID), place{peerURLs: to.PeerURLs}.address()).Error()
		return false
	})
	return c.leader()
}

func (c *testCluster) fill(through, n int, value string) {
	c.t.Helper()
	for i := range n {
		c.put(through, fmt.Sprintf("k%d", i), value)
	}
}

// The same, with the thresholds by which a running member decides itself.
func TestLogIsCutWhenItHasGrown(t *testing.T) {
	for name, adjust := range map[string]func(*Config){
		"by entries": func(c *Config) { c.SnapshotEntries = 20 },
		"by bytes":   func(c *Config) { c.SnapshotBytes = 200 },
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, 1, adjust)
			c.fill(0, 30, "v")
			m := c.members[0]
			eventually(t, "a snapshot", func() bool { return m.snapshots.index() > 20 })
			c.stop(0)
			c.start(0)
			c.awaitReady(0)
			if got := m.value("k29"); got != "v" {
				t.Errorf("k29 is %q after a restart from the snapshot", got)
			}
		})
	}
}

func TestTrailing(t *testing.T) {
	for _, test := range []struct{ entries, grown, want uint64 }{
		{0, 0, trailingEntries},
		{1000, 0, trailingEntries},
		{1000, 1000, trailingEntries},
		{1000, 1000 << 20, 256}, // 1 MiB each
		{10, 10 << 30, minTrailing},
	} {
		if got := trailing(trailingEntries, test.entries, test.grown); got != test.want {
			t.Errorf("trailing(%d, %d) is %d, want %d", test.entries, test.grown, got, test.want)
		}
	}
}

// A member that fell behind what the others still have in their logs, in every
// shape its own log may have: an old leader may have left entries in it that
// never committed, ending before, at and after the snapshot.
func TestMemberThatFellBehindConverges(t *testing.T) {
	const far = 1000
	var heard lines
	c := startCluster(t, 3)
	behind := c.follower()
	c.members[behind].config.Logger = heard.logger()
	for _, tail := range []int{-far, -3, 0, 1, 2, 40} {
		t.Run(fmt.Sprintf("log ends %+d from the snapshot", tail), func(t *testing.T) {
			c.t = t
			defer func() { c.t = nil }()
			c.stop(behind)
			// A newer term, so that what is added below is another leader's.
			leader := c.transfer()
			value := fmt.Sprint("tail ", tail)
			c.fill(leader, 20, value)
			c.cut()
			if tail != -far {
				snapshot := c.members[leader].snapshots.index()
				addUncommitted(t, c.members[behind].config, uint64(int(snapshot)+tail)) //nolint:gosec // positive
			}
			before := heard.count(installed)
			c.start(behind)
			c.awaitReady(behind)
			if n := heard.count(installed) - before; n < 1 || n > 2 {
				t.Errorf("%d snapshots were installed, want 1 or 2", n)
			}
			c.linearize(behind)
			if got := c.members[behind].value("k19"); got != value {
				t.Errorf("the member reads %q, want %q", got, value)
			}
			if got := c.members[behind].value("bogus"); got != "" {
				t.Error("an uncommitted entry was applied")
			}
			// Its own disk is enough for the next start.
			c.put(behind, "after", value)
			c.stop(behind)
			before = heard.count(installed)
			c.start(behind)
			c.awaitReady(behind)
			if got := c.members[behind].value("after"); got != value {
				t.Errorf("after a restart the member reads %q, want %q", got, value)
			}
			if n := heard.count(installed) - before; n != 0 {
				t.Errorf("%d snapshots were installed after a restart, want none", n)
			}
		})
	}
	c.t = t
}

// addUncommitted continues a stopped member's log up to index with what a
// deposed leader might have sent it.
func addUncommitted(t *testing.T, config Config, index uint64) {
	t.Helper()
	log, err := openLog(filepath.Join(config.Dir, "log"), nil, hashicorpLogger("log", config.Logger), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil || last >= index {
		t.Fatalf("the log ends at %d already (%v), want below %d", last, err, index)
	}
	var end raft.Log
	if err := log.GetLog(last, &end); err != nil {
		t.Fatal(err)
	}
	request, err := proto.Marshal(&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1}, Put: &pb.PutRequest{Key: []byte("bogus"), Value: []byte("v")}})
	if err != nil {
		t.Fatal(err)
	}
	for at := last + 1; at <= index; at++ {
		entry := &raft.Log{Index: at, Term: end.Term, Type: raft.LogCommand, Data: machine.EncodeBatch(1, [][]byte{request})}
		if err := log.StoreLog(entry); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// A member may die at any point of receiving a snapshot.
func TestInterruptedInstallIsFinished(t *testing.T) {
	points := []string{"half received", "staged", "installed but still recorded as staged", "recorded, log as it was"}
	for _, tail := range []uint64{0, 60} {
		for upTo, point := range points {
			t.Run(fmt.Sprintf("%s, %d entries too many", point, tail), func(t *testing.T) {
				c := startCluster(t, 3)
				behind := c.follower()
				c.put(behind, "k0", "old")
				c.stop(behind)
				leader := c.transfer()
				c.fill(leader, 20, "new")
				c.cut()
				config := c.members[behind].config
				if tail > 0 {
					addUncommitted(t, config, c.members[leader].snapshots.index()+tail)
				}
				receive(t, c.members[leader].snapshots, config, upTo)
				c.start(behind)
				c.awaitReady(behind)
				c.linearize(behind)
				for i := range 20 {
					if got := c.members[behind].value(fmt.Sprintf("k%d", i)); got != "new" {
						t.Fatalf("k%d is %q", i, got)
					}
				}
				if _, err := os.Stat(filepath.Join(config.Dir, "snapshots", stagedDir)); err == nil && upTo > 0 {
					t.Error("the received snapshot is still there")
				}
				c.put(behind, "after", "v")
			})
		}
	}
}

// receive brings a stopped member's directory to the given point.
func receive(t *testing.T, from *snapshots, config Config, upTo int) {
	t.Helper()
	m, err := machine.Open(filepath.Join(config.Dir, "kv"), machine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	into, err := openSnapshots(filepath.Join(config.Dir, "snapshots"), m, config.Logger)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := from.List()
	if err != nil || len(listed) != 1 {
		t.Fatalf("snapshots are %v, %v", listed, err)
	}
	meta, stream, err := from.Open(listed[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := into.Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	switch upTo {
	case 0:
		_, err = io.CopyN(sink, stream, meta.Size/2)
	default:
		var n int64
		if n, err = io.Copy(sink, stream); n != meta.Size {
			t.Errorf("the stream has %d bytes, announced are %d", n, meta.Size)
		}
		err = errors.Join(err, sink.Close())
	}
	switch upTo {
	case 2:
		err = errors.Join(err, m.Install(filepath.Join(into.dir, stagedDir)))
	case 3:
		err = errors.Join(err, into.restore())
	}
	if err := errors.Join(err, stream.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stream.(*removeOnClose).dir); err == nil {
		t.Error("the sender keeps the checkpoint")
	}
}

// raft takes its own snapshots beside its main loop, where one may be received
// meanwhile.
func TestOwnSnapshotDoesNotReplaceANewerOne(t *testing.T) {
	dir := t.TempDir()
	m, err := machine.Open(filepath.Join(dir, "kv"), machine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s, err := openSnapshots(filepath.Join(dir, "snapshots"), m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.Create(1, 5, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, staged := range []bool{true, false} {
		if err := s.recordLocked(snapshotRecord{Format: snapshotFormat, Index: 9, Term: 1, Staged: staged}); err != nil {
			t.Fatal(err)
		}
		if err := own.Close(); !errors.Is(err, errOutdated) {
			t.Errorf("staged %v: an older snapshot is recorded: %v", staged, err)
		}
		if s.current.Index != 9 || s.current.Staged != staged {
			t.Errorf("staged %v: the record is %+v", staged, s.current)
		}
	}
}

// The newest entry of a snapshot may be raft's own, which never reaches the
// state machine.
func TestSnapshotMayEndOnRaftsOwnEntry(t *testing.T) {
	c := startCluster(t, 1)
	c.put(0, "k", "v")
	m := c.members[0]
	configuration := m.currentRaft().GetConfiguration().Configuration()
	applied, term := m.Machine().Applied()
	if err := m.Machine().Flush(); err != nil {
		t.Fatal(err)
	}
	c.stop(0)
	log := openTestLog(t, filepath.Join(m.config.Dir, "log"))
	if err := log.StoreLog(&raft.Log{Index: applied + 1, Term: term, Type: raft.LogNoop}); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	s := &snapshots{dir: filepath.Join(m.config.Dir, "snapshots")}
	if err := s.recordLocked(snapshotRecord{Format: snapshotFormat, Index: applied + 1, Term: term, Applied: applied, Configuration: configuration, ConfigurationIndex: 1}); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.awaitReady(0)
	c.linearize(0)
	if got := m.value("k"); got != "v" {
		t.Errorf("k is %q", got)
	}
}

// What was received is judged before it replaces anything.
func TestReceivedSnapshotIsJudged(t *testing.T) {
	for name, feed := range map[string]func(t *testing.T, sink raft.SnapshotSink) error{
		"not an archive": func(_ *testing.T, sink raft.SnapshotSink) error {
			_, err := sink.Write([]byte(strings.Repeat("x", 4096)))
			return errors.Join(err, sink.Close())
		},
		"cancelled": func(t *testing.T, sink raft.SnapshotSink) error {
			if _, err := sink.Write([]byte(strings.Repeat("\x00", 100))); err != nil {
				t.Error(err)
			}
			return errors.Join(errors.New("cancelled"), sink.Cancel())
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, 1)
			m := c.members[0]
			sink, err := m.snapshots.Create(1, 1000, 5, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := feed(t, sink); err == nil {
				t.Error("accepted")
			}
			if m.snapshots.index() != foundingIndex {
				t.Error("recorded")
			}
			if err := m.snapshots.restore(); err == nil {
				t.Error("restored")
			}
			c.put(0, "k", "v")
			if _, _, err := m.snapshots.Open("9-9"); !errors.Is(err, errNoSnapshot) {
				t.Errorf("open an unknown snapshot: %v", err)
			}
		})
	}
}

// An entry that cannot be read is an error of the start, not a panic, and never
// applied. The last record is the exception: raft-wal cannot tell a damaged one
// from a write that a crash cut off.
func TestDamagedLogRefusesToStart(t *testing.T) {
	for nth := 1; nth <= 4; nth++ {
		t.Run(fmt.Sprintf("record %d of 5", nth), func(t *testing.T) {
			c := startCluster(t, 1)
			for i := range 5 {
				c.put(0, fmt.Sprint("needle ", i), "v")
			}
			dir := c.members[0].config.Dir
			c.stop(0)
			flipByte(t, filepath.Join(dir, "log"), []byte("needle"), nth)
			err := c.tryStart(0)
			if err == nil {
				t.Fatal("started with a damaged log")
			}
			if !strings.Contains(err.Error(), dir) {
				t.Errorf("the error does not name the directory: %v", err)
			}
		})
	}
}

// raft goes on with its old idea of where the log ends. That is a different log
// from the leader's when it ends past the snapshot, or at it in another term.
func TestInstallReplacesRaftWhenTheLogDiverged(t *testing.T) {
	source := startCluster(t, 1)
	source.fill(0, 10, "v")
	source.cut()
	from := source.members[0].snapshots
	index, term := source.members[0].Machine().Applied()
	for name, test := range map[string]struct {
		last, term uint64
		want       bool
	}{
		"log ends below":              {index - 1, term, false},
		"log ends there":              {index, term, false},
		"log ends there, other term":  {index, term - 1, true},
		"log ends past it":            {index + 1, term - 1, true},
		"log ends past it, same term": {index + 1, term, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m, err := machine.Open(filepath.Join(dir, "kv"), machine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			into, err := openSnapshots(filepath.Join(dir, "snapshots"), m, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			listed, err := from.List()
			if err != nil || len(listed) != 1 {
				t.Fatalf("snapshots are %v, %v", listed, err)
			}
			meta, stream, err := from.Open(listed[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			sink, err := into.Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(sink, stream); err != nil {
				t.Fatal(err)
			}
			if err := sink.Close(); err != nil {
				t.Fatal(err)
			}
			log := openTestLog(t, filepath.Join(dir))
			if err := log.StoreLogs(commands(test.term, 1, test.last)); err != nil {
				t.Fatal(err)
			}
			replaced := false
			adapter := &fsm{machine: m, snapshots: into, log: log, progress: &progress{}, metrics: metrics.NewReplica(nil), slow: time.Hour, replace: func() { replaced = true }, membersChanged: func() {}}
			if err := adapter.Restore(io.NopCloser(strings.NewReader(""))); err != nil {
				t.Fatal(err)
			}
			if replaced != test.want {
				t.Errorf("raft is replaced: %v, want %v", replaced, test.want)
			}
			if applied, _ := m.Applied(); applied != index || adapter.progress.applied != index {
				t.Errorf("applied is %d, known as %d, want %d", applied, adapter.progress.applied, index)
			}
		})
	}
}

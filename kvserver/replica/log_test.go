package replica

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func openTestLog(t *testing.T, dir string) *durableLog {
	t.Helper()
	log, err := openLog(dir, nil, hashicorpLogger("log", slog.New(slog.DiscardHandler)), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return log
}

func commands(term uint64, first, last uint64) []*raft.Log {
	var logs []*raft.Log
	for index := first; index <= last; index++ {
		logs = append(logs, &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte("needle in the log")})
	}
	return logs
}

func TestDamagedLogEntryIsNeverReturned(t *testing.T) {
	dir := t.TempDir()
	log := openTestLog(t, dir)
	if err := log.StoreLogs(commands(3, 1, 3)); err != nil {
		t.Fatal(err)
	}
	var entry raft.Log
	if err := log.GetLog(2, &entry); err != nil || string(entry.Data) != "needle in the log" || len(entry.Extensions) != 0 {
		t.Fatalf("entry 2 is %+v, %v", entry, err)
	}
	flipByte(t, dir, []byte("needle"), 2)
	for index, want := range map[uint64]error{1: nil, 2: errChecksum, 3: nil} {
		if err := log.GetLog(index, &raft.Log{}); !errors.Is(err, want) {
			t.Errorf("entry %d: %v, want %v", index, err, want)
		}
	}
	if err := log.GetLog(4, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry 4: %v, want ErrLogNotFound", err)
	}
}

// flipByte damages the nth occurrence of text in the one segment below dir.
func flipByte(t *testing.T, dir string, text []byte, nth int) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments are %v, %v", segments, err)
	}
	data, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := -1
	for range nth {
		next := bytes.Index(data[at+1:], text)
		if next < 0 {
			t.Fatalf("%q is not in the log %d times", text, nth)
		}
		at += 1 + next
	}
	file, err := os.OpenFile(segments[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte{data[at] ^ 1}, int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// The checksum covers what identifies an entry, not only its payload.
func TestChecksumCoversIdentity(t *testing.T) {
	entry := raft.Log{Index: 7, Term: 3, Type: raft.LogCommand, Data: []byte("x")}
	sum := checksum(&entry)
	for name, change := range map[string]func(*raft.Log){
		"index": func(l *raft.Log) { l.Index++ },
		"term":  func(l *raft.Log) { l.Term++ },
		"type":  func(l *raft.Log) { l.Type = raft.LogNoop },
		"data":  func(l *raft.Log) { l.Data = []byte("y") },
	} {
		other := entry
		change(&other)
		if checksum(&other) == sum {
			t.Errorf("the checksum does not cover the %s", name)
		}
	}
}

func TestFit(t *testing.T) {
	for name, test := range map[string]struct {
		first, last, term uint64 // of the log, empty when last is 0
		index, at         uint64 // of the snapshot
		want              uint64 // last index afterwards
		fails             bool
	}{
		"nothing":                              {},
		"no snapshot":                          {first: 1, last: 9, term: 2, want: 9},
		"log gone, snapshot":                   {index: 5, at: 2},
		"snapshot inside the log":              {first: 1, last: 9, term: 2, index: 5, at: 2, want: 9},
		"log continues":                        {first: 6, last: 9, term: 2, index: 5, at: 2, want: 9},
		"log ends below the snapshot":          {first: 1, last: 4, term: 2, index: 5, at: 2},
		"log ends at the snapshot":             {first: 1, last: 5, term: 2, index: 5, at: 2, want: 5},
		"another leader's entries past it":     {first: 1, last: 9, term: 2, index: 5, at: 3},
		"another leader's entry ends the log":  {first: 1, last: 5, term: 2, index: 5, at: 3},
		"gap after the snapshot":               {first: 7, last: 9, term: 2, index: 5, at: 2, fails: true},
		"log begins late and no snapshot":      {first: 2, last: 9, term: 2, fails: true},
		"another leader's entries up to there": {first: 4, last: 5, term: 2, index: 5, at: 3},
	} {
		t.Run(name, func(t *testing.T) {
			log := openTestLog(t, t.TempDir())
			if test.last > 0 {
				if err := log.StoreLogs(commands(test.term, test.first, test.last)); err != nil {
					t.Fatal(err)
				}
			}
			err := log.fit(test.index, test.at)
			if (err != nil) != test.fails {
				t.Fatalf("error %v, want one: %v", err, test.fails)
			}
			if test.fails {
				return
			}
			if last, err := log.LastIndex(); err != nil || last != test.want {
				t.Errorf("the log ends at %d (%v), want %d", last, err, test.want)
			}
			next := max(test.want, test.index) + 1
			if err := log.StoreLogs(commands(9, next, next)); err != nil {
				t.Errorf("the log does not take entry %d: %v", next, err)
			}
		})
	}
}

// faultyEntries is a log store whose writes hang or fail on demand.
type faultyEntries struct {
	entries
	err   error
	enter chan struct{}
	leave chan struct{}
}

func (f *faultyEntries) StoreLogs([]*raft.Log) error {
	if f.enter != nil {
		f.enter <- struct{}{}
		<-f.leave
	}
	return f.err
}

func (f *faultyEntries) SetUint64([]byte, uint64) error { return f.err }

func TestFirstFailedWriteIsTheLast(t *testing.T) {
	reported := make(chan error, 2)
	faulty := &faultyEntries{err: errors.New("input/output error")}
	log := &durableLog{entries: faulty, onFail: func(err error) { reported <- err }}
	if err := log.StoreLogs(commands(1, 1, 1)); !errors.Is(err, faulty.err) {
		t.Errorf("a failed write returns %v", err)
	}
	if err := <-reported; !errors.Is(err, faulty.err) {
		t.Errorf("reported %v", err)
	}
	faulty.err = nil // the disk claims to be well again
	if err := log.StoreLogs(commands(1, 1, 1)); !errors.Is(err, errLogFailed) {
		t.Errorf("a write after a failed one returns %v, want errLogFailed", err)
	}
	if err := log.DeleteRange(1, 1); !errors.Is(err, errLogFailed) {
		t.Errorf("a deletion after a failed write returns %v, want errLogFailed", err)
	}
	// Raft panics when it cannot save its term; the write never returns.
	returned := make(chan struct{})
	go func() {
		_ = log.SetUint64(raftTermKey, 2)
		close(returned)
	}()
	select {
	case <-returned:
		t.Error("a term was saved, or refused, after a failed write")
	case <-time.After(50 * time.Millisecond): // long enough for a call that does nothing
	}
	if len(reported) > 0 {
		t.Errorf("reported again: %v", <-reported)
	}
}

func TestHangingWriteIsNoticed(t *testing.T) {
	faulty := &faultyEntries{enter: make(chan struct{}), leave: make(chan struct{})}
	log := &durableLog{entries: faulty}
	if got := log.stalled(time.Now()); got != 0 {
		t.Errorf("an idle log has been stalled for %v", got)
	}
	done := make(chan error)
	go func() { done <- log.StoreLogs(commands(1, 1, 1)) }()
	<-faulty.enter
	if got := log.stalled(time.Now().Add(time.Minute)); got < time.Minute {
		t.Errorf("a minute into a write it has been running for %v", got)
	}
	close(faulty.leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := log.stalled(time.Now().Add(time.Minute)); got != 0 {
		t.Errorf("after the write the log has been stalled for %v", got)
	}
}

// The member whose log fails stops, acknowledges nothing more, and the others
// go on.
func TestFailedLogWriteStopsTheMember(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.leader()
	broken := c.members[leader]
	c.put(leader, "before", "v")
	if err := broken.log.entries.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.tryPut(leader, "after", "v", patience); err == nil {
		t.Error("a write was acknowledged by a member whose log failed")
	}
	select {
	case err := <-broken.Failed():
		if !bytes.Contains([]byte(err.Error()), []byte("write 1 raft log entries")) {
			t.Errorf("failed with %q", err)
		}
	case <-time.After(patience):
		t.Fatal("the member did not report the failed write")
	}
	if err := c.tryPut(leader, "later", "v", patience); !errors.Is(err, ErrStopped) {
		t.Errorf("a write after the failure: %v, want ErrStopped", err)
	}
	if err := broken.Linearize(context.Background()); !errors.Is(err, ErrStopped) {
		t.Errorf("a read after the failure: %v, want ErrStopped", err)
	}
	if err := broken.Close(); !errors.Is(err, errLogFailed) {
		t.Errorf("close after a failed write: %v, want errLogFailed", err)
	}
	broken.Replica = nil
	other := c.follower()
	c.put(other, "after", "w")
	if got := c.members[other].value("before"); got != "v" {
		t.Errorf("before is %q on the others", got)
	}
}

// A leader whose log write hangs gives way, and returns as a follower.
func TestHangingLeaderGivesWay(t *testing.T) {
	c, disks := newClusterOnSlowDisks(t, 3)
	c.startAll()
	for i := range c.members {
		c.awaitReady(i)
	}
	old := c.leader()
	disks[old].hold()
	unknown := background(func() { _ = c.tryPut(old, "unknown", "v", patience) })
	var next int
	eventually(t, "another leader", func() bool {
		next = c.leader()
		return next != old
	})
	c.put(next, "k", "v")
	disks[old].release(nil)
	within(t, "the write on the disk that hung", unknown)
	eventually(t, "the old leader to follow", func() bool {
		return c.members[old].Status().Leader == c.members[next].Member()
	})
	c.linearize(old)
	if got := c.members[old].value("k"); got != "v" {
		t.Errorf("the old leader reads %q", got)
	}
}

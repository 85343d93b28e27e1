package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	etcdmvcc "go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/internal/randomtest"
)

// eventsOf reads events in lines such as "4 put a=2 (1)", with the previous
// value in parentheses. It checks that every call of fn has one revision.
func eventsOf(t testing.TB, s *Store, q EventQuery) (lines []string, last int64, err error) {
	t.Helper()
	last, err = s.Events(context.Background(), q, func(rev int64, events []*mvccpb.Event) (bool, error) {
		for _, e := range events {
			if e.Kv.ModRevision != rev {
				t.Errorf("event of revision %d among those of %d", e.Kv.ModRevision, rev)
			}
			lines = append(lines, eventLine(e))
		}
		return true, nil
	})
	return lines, last, err
}

func eventLine(e *mvccpb.Event) string {
	line := fmt.Sprintf("%d %s %s", e.Kv.ModRevision, strings.ToLower(e.Type.String()), e.Kv.Key)
	if e.Type == mvccpb.Event_PUT {
		line += "=" + string(e.Kv.Value)
	}
	if e.PrevKv != nil {
		line += fmt.Sprintf(" (%s)", e.PrevKv.Value)
	}
	return line
}

func TestEvents(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	change(t, s,
		"put a 1",         // 2
		"put a 2;put b 1", // 3
		"del a",           // 4
		"put a 3",         // 5
		"put b 2;del b",   // 6, the same key twice
		"put c 1;del c",   // 7
		"del a;put a 4",   // 8
	)
	onlyB := func(key []byte) bool { return string(key) == "b" }
	all := []string{
		"2 put a=1", "3 put a=2 (1)", "3 put b=1", "4 delete a (2)", "5 put a=3",
		"6 put b=2 (1)", "6 delete b (1)", "7 put c=1", "7 delete c", "8 delete a (3)", "8 put a=4",
	}
	for _, c := range []struct {
		name  string
		query EventQuery
		want  []string
		last  int64
	}{
		{"all", EventQuery{From: 1, PrevKV: true}, all, 8},
		{"part", EventQuery{From: 3, To: 5, PrevKV: true}, all[1:5], 5},
		{"future end", EventQuery{From: 5, To: 99, PrevKV: true}, all[4:], 8},
		{"future", EventQuery{From: 12}, nil, 11},
		{"next", EventQuery{From: 9}, nil, 8},
		{"one key", EventQuery{From: 1, Match: onlyB}, []string{"3 put b=1", "6 put b=2", "6 delete b"}, 8},
		{"nothing matches", EventQuery{From: 4, To: 5, Match: onlyB}, nil, 5},
	} {
		got, last, err := eventsOf(t, s, c.query)
		if err != nil || last != c.last || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q up to %d, %v; want %q up to %d", c.name, got, last, err, c.want, c.last)
		}
	}

	change(t, s, "compact 5")
	compacted := []string{"5 put a=3", "6 put b=2 (1)", "6 delete b (1)"}
	for _, when := range []string{"before", "after"} {
		got, last, err := eventsOf(t, s, EventQuery{From: 5, To: 6, PrevKV: true})
		if err != nil || last != 6 || !slices.Equal(got, compacted) {
			t.Errorf("from the compacted revision, %s scrubbing: %q up to %d, %v", when, got, last, err)
		}
		if got, _, err := eventsOf(t, s, EventQuery{From: 4}); !errors.Is(err, ErrCompacted) || got != nil {
			t.Errorf("from below the compacted revision, %s scrubbing: %q, %v", when, got, err)
		}
		scrub(t, s, 3)
	}
}

// A deletion at the compacted revision is still an event, but what was deleted
// is gone.
func TestEventsAtCompactedDeletion(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	change(t, s, "put a 1", "put b 1", "del a", "compact 4")
	for range 2 {
		got, _, err := eventsOf(t, s, EventQuery{From: 4, PrevKV: true})
		if err != nil || !slices.Equal(got, []string{"4 delete a"}) {
			t.Errorf("%q, %v", got, err)
		}
		scrub(t, s, 1)
	}
}

func TestEventsStop(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	change(t, s, "put a 1", "put a 2;put b 1", "put a 3")
	ctx := context.Background()
	calls := 0
	last, err := s.Events(ctx, EventQuery{From: 1}, func(rev int64, _ []*mvccpb.Event) (bool, error) {
		calls++
		return rev < 3, nil
	})
	if err != nil || last != 3 || calls != 2 {
		t.Errorf("stopped at %d after %d calls: %v", last, calls, err)
	}
	broken := errors.New("broken")
	last, err = s.Events(ctx, EventQuery{From: 1}, func(rev int64, _ []*mvccpb.Event) (bool, error) {
		if rev == 3 {
			return false, broken
		}
		return true, nil
	})
	if !errors.Is(err, broken) || last != 2 {
		t.Errorf("failed at %d: %v", last, err)
	}
}

// TestRecordedEvents writes random transactions, which may change a key
// several times, and compares the events recorded with those of the history.
func TestRecordedEvents(t *testing.T) {
	g := newGenerator(t)
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	ctx := context.Background()
	for step := range *judgeOps / 10 {
		from := s.Head().Current + 1
		w := s.NewWriter()
		w.Record()
		for range 1 + g.IntN(3) {
			for range g.IntN(5) {
				var err error
				if g.IntN(3) > 0 {
					err = w.Put(g.key(), g.value(), int64(g.IntN(3)))
				} else {
					_, err = w.Delete(ctx, g.key(), g.end(), nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			w.EndTxn()
		}
		recorded := w.Events()
		if err := s.Commit(w); err != nil {
			t.Fatal(err)
		}
		var read []*mvccpb.Event
		_, err := s.Events(ctx, EventQuery{From: from, PrevKV: true}, func(_ int64, events []*mvccpb.Event) (bool, error) {
			read = append(read, events...)
			return true, nil
		})
		if err != nil || !slices.EqualFunc(recorded, read, func(a, b *mvccpb.Event) bool { return proto.Equal(a, b) }) {
			t.Fatalf("step %d: recorded\n%v\nread\n%v\n%v", step, recorded, read, err)
		}
	}
	w := s.NewWriter()
	if err := errors.Join(w.Put([]byte("a"), nil, 0), w.Discard()); err != nil || w.Events() != nil {
		t.Errorf("events %v of a writer that does not record, %v", w.Events(), err)
	}
}

// TestEventsLikeEtcd compares what a watcher of etcd's store receives with the
// events of the same history here, from random revisions.
func TestEventsLikeEtcd(t *testing.T) {
	g := newGenerator(t)
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path = filepath.Join(t.TempDir(), "db")
	cfg.UnsafeNoFsync = true
	b := backend.New(cfg)
	judge := etcdmvcc.New(zap.NewNop(), b, &lease.FakeLessor{}, etcdmvcc.StoreConfig{CompactionSleepInterval: time.Millisecond})
	defer func() { judge.Close(); b.Close() }()
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	ctx := context.Background()

	counts := map[string]int{}
	musts := []string{"watch", "watch compacted"}
	for i := 0; i < *judgeOps/20 || i < randomtest.Patience/20 && randomtest.Lacks(counts, musts) != ""; i++ {
		if err := sameChanges(ctx, g, judge, s); err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
		if g.IntN(10) == 0 {
			if err := sameCompaction(ctx, g, judge, s, counts); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		}
		if _, err := s.ScrubStep(context.Background(), 1+g.IntN(20)); err != nil {
			t.Fatal(err)
		}
		head := s.Head()
		if g.IntN(5) > 0 || head.Current < 2 {
			continue
		}
		from := max(1, head.Current-30+g.Int64N(31))
		var got []*mvccpb.Event
		last, err := s.Events(ctx, EventQuery{From: from, PrevKV: true}, func(_ int64, events []*mvccpb.Event) (bool, error) {
			got = append(got, events...)
			return true, nil
		})
		want, compacted := watchEtcd(t, judge, from, head.Current)
		if compacted != errors.Is(err, ErrCompacted) || err == nil && last != head.Current {
			t.Fatalf("operation %d: from %d up to %d: %v; etcd compacted: %t", i, from, last, err, compacted)
		}
		if compacted {
			counts["watch compacted"]++
			continue
		}
		counts["watch"]++
		if !slices.EqualFunc(got, want, func(a, b *mvccpb.Event) bool { return proto.Equal(a, b) }) {
			t.Fatalf("operation %d: from %d\n     %v\netcd %v", i, from, got, want)
		}
	}
	t.Logf("%v", counts)
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}
}

// watchEtcd watches all keys from revision from until the events of revision
// to have come, and adds the previous versions as etcd's server does.
func watchEtcd(t *testing.T, judge etcdmvcc.WatchableKV, from, to int64) (events []*mvccpb.Event, compacted bool) {
	t.Helper()
	stream := judge.NewWatchStream()
	defer stream.Close()
	if _, err := stream.Watch(context.Background(), 0, []byte{0}, []byte{}, from); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(20 * time.Second)
	for {
		select {
		case resp := <-stream.Chan():
			if resp.CompactRevision != 0 {
				return nil, true
			}
			for i := range resp.Events {
				e := proto.CloneOf(resp.Events[i])
				if !IsCreate(e) {
					prev, err := judge.Range(context.Background(), e.Kv.Key, nil, etcdmvcc.RangeOptions{Rev: e.Kv.ModRevision - 1})
					if err == nil && len(prev.KVs) > 0 {
						e.PrevKv = prev.KVs[0]
					}
				}
				events = append(events, e)
			}
			if n := len(events); n > 0 && events[n-1].Kv.ModRevision == to {
				return events, false
			}
		case <-deadline:
			t.Fatalf("no event of revision %d within 20 s, only %v", to, events)
		}
	}
}

func TestIsCreate(t *testing.T) {
	put := func(create, mod int64) *mvccpb.Event {
		return &mvccpb.Event{Kv: &mvccpb.KeyValue{CreateRevision: create, ModRevision: mod}}
	}
	if !IsCreate(put(3, 3)) || IsCreate(put(3, 4)) || IsCreate(deleteEvent([]byte("a"), 3)) {
		t.Error("a creation is a put whose revisions are equal")
	}
	if got := deleteEvent([]byte("a"), 3).Kv; !bytes.Equal(got.Key, []byte("a")) || got.CreateRevision != 0 {
		t.Errorf("deletion with %v", got)
	}
}

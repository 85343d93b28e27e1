package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const testDir = "store"

func openStore(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open(testDir, Options{FS: fs, CacheBytes: 8 << 20, MemTableBytes: 1 << 20, RowCacheBytes: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	s.counts.worth = 1 // few keys are worth it here
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// change runs one transaction per line: "put KEY VALUE", "del KEY [END]" or
// "compact REV", several of them separated by semicolons.
func change(t testing.TB, s *Store, lines ...string) {
	t.Helper()
	w := s.NewWriter()
	for _, line := range lines {
		for op := range strings.SplitSeq(line, ";") {
			f := strings.Fields(op)
			var err error
			switch f[0] {
			case "put":
				err = w.Put([]byte(f[1]), []byte(f[2]), 0)
			case "del":
				var end []byte
				if len(f) > 2 {
					end = []byte(f[2])
				}
				_, err = w.Delete(context.Background(), []byte(f[1]), end, nil)
			case "compact":
				var rev int64
				if _, err = fmt.Sscan(f[1], &rev); err == nil {
					err = w.Compact(rev)
				}
			}
			if err != nil {
				t.Fatalf("%s: %v", op, err)
			}
		}
		w.EndTxn()
	}
	if err := s.Commit(w); err != nil {
		t.Fatal(err)
	}
}

// stored lists the versions and the history on disk, and makes sure that they
// match each other.
func stored(t testing.TB, s *Store) []string {
	t.Helper()
	it, err := s.DB().NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var versions, history []string
	for valid := it.First(); valid; valid = it.Next() {
		switch k := it.Key(); k[0] {
		case versionPrefix:
			n := split(k)
			rev, err := decodeSuffix(k[n:])
			if err != nil {
				t.Fatal(err)
			}
			deleted := ""
			if len(it.Value()) == 0 {
				deleted = " deleted"
			}
			versions = append(versions, fmt.Sprintf("%s@%d.%d%s", k[1:n-2], rev.Main, rev.Sub, deleted))
		case historyPrefix:
			rev, kind, key, err := decodeHistory(k, it.Value())
			if err != nil {
				t.Fatal(err)
			}
			deleted := ""
			if kind == kindTombstone {
				deleted = " deleted"
			}
			history = append(history, fmt.Sprintf("%s@%d.%d%s", key, rev.Main, rev.Sub, deleted))
		}
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	sorted := slices.Clone(history)
	slices.Sort(sorted)
	slices.Sort(versions)
	if !slices.Equal(sorted, versions) {
		t.Errorf("versions %q, history %q", versions, sorted)
	}
	return history
}

func scrub(t testing.TB, s *Store, limit int) {
	t.Helper()
	for done := false; !done; {
		var err error
		if done, err = s.ScrubStep(context.Background(), limit); err != nil {
			t.Fatal(err)
		}
	}
}

func TestScrub(t *testing.T) {
	lines := []string{
		"put a 1",          // 2
		"put b 1;put c 1",  // 3
		"put a 2;put d 1",  // 4
		"del b",            // 5
		"del a c",          // 6, which deletes a
		"put a 3",          // 7
		"put c 2;del d",    // 8
		"put a 4;put b 10", // 9
	}
	for _, c := range []struct {
		compact []int64
		want    string
	}{
		{nil, "a@2.0 b@3.0 c@3.1 a@4.0 d@4.1 b@5.0 deleted a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{0}, "a@2.0 b@3.0 c@3.1 a@4.0 d@4.1 b@5.0 deleted a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{3}, "a@2.0 b@3.0 c@3.1 a@4.0 d@4.1 b@5.0 deleted a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{4}, "b@3.0 c@3.1 a@4.0 d@4.1 b@5.0 deleted a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{5}, "c@3.1 a@4.0 d@4.1 b@5.0 deleted a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{6}, "c@3.1 d@4.1 a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{5, 6}, "c@3.1 d@4.1 a@6.0 deleted a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{7}, "c@3.1 d@4.1 a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{8}, "a@7.0 c@8.0 d@8.1 deleted a@9.0 b@9.1"},
		{[]int64{9}, "c@8.0 a@9.0 b@9.1"},
		{[]int64{4, 5, 6, 7, 8, 9}, "c@8.0 a@9.0 b@9.1"},
	} {
		for _, limit := range []int{1, 3, 1000} {
			for _, together := range []bool{false, true} {
				s := openStore(t, vfs.NewMem())
				change(t, s, lines...)
				for _, rev := range c.compact {
					change(t, s, fmt.Sprintf("compact %d", rev))
					if !together {
						scrub(t, s, limit)
					}
				}
				scrub(t, s, limit)
				if got := strings.Join(stored(t, s), " "); got != c.want {
					t.Errorf("compact %v, limit %d, together %t:\n     %s\nwant %s", c.compact, limit, together, got, c.want)
				}
				closeStore(t, s)
			}
		}
	}
}

// TestScrubGoesOnAfterRestart stops after every single record.
func TestScrubGoesOnAfterRestart(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	var lines []string
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("put a %d;put b%d %d", i, i, i), fmt.Sprintf("del b%d", i))
	}
	change(t, s, lines...)
	change(t, s, fmt.Sprintf("compact %d", s.Head().Current))
	steps := 0
	for done := false; !done; steps++ {
		var err error
		if done, err = s.ScrubStep(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		s = openStore(t, fs)
	}
	defer closeStore(t, s)
	if want := 50 * 3; steps != want {
		t.Errorf("%d steps for %d records", steps, want)
	}
	if got, want := strings.Join(stored(t, s), " "), "a@100.0 b49@101.0 deleted"; got != want {
		t.Errorf("left: %s, want %s", got, want)
	}
	if done, err := s.ScrubStep(context.Background(), 1); !done || err != nil {
		t.Errorf("one more step: %t, %v", done, err)
	}
}

// TestReadsBesideScrub reads a revision while later ones are written,
// compacted and scrubbed: the answer is complete, or ErrCompacted.
func TestReadsBesideScrub(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	const keys = 20
	var lines []string
	for i := range keys {
		lines = append(lines, fmt.Sprintf("put k%02d 0", i))
	}
	change(t, s, lines...)

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			change(t, s, fmt.Sprintf("put k%02d %d", i%keys, i), fmt.Sprintf("compact %d", s.Head().Current))
			if _, err := s.ScrubStep(context.Background(), 10); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	complete, compacted := 0, 0
	for complete < 300 {
		at := s.Head().Current
		r, err := s.Range(context.Background(), &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, Revision: at})
		switch {
		case errors.Is(err, ErrCompacted):
			compacted++
		case err != nil || r.Count != keys || len(r.Kvs) != keys:
			t.Fatalf("at revision %d: %v, %v", at, r, err)
		default:
			complete++
		}
		if r, err = s.Range(context.Background(), all); err != nil || r.Count != keys {
			t.Fatalf("now: %v, %v", r, err)
		}
		view := s.Pin()
		head := view.Head()
		for rev := head.Compacted; rev <= head.Current; rev++ {
			r, err = view.Range(context.Background(), &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, Revision: rev})
			if err != nil || rev > keys && r.Count != keys {
				t.Fatalf("pinned at %+v, revision %d: %v, %v", head, rev, r, err)
			}
		}
		if err := view.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d complete, %d compacted", complete, compacted)
}

// interrupted runs something once before a read opens its iterator or
// snapshot.
type interrupted struct {
	source
	before func()
}

func (i *interrupted) run() {
	if before := i.before; before != nil {
		i.before = nil
		before()
	}
}

func (i *interrupted) NewIterWithContext(ctx context.Context, o *pebble.IterOptions) (*pebble.Iterator, error) {
	i.run()
	return i.source.NewIterWithContext(ctx, o)
}

func (i *interrupted) NewSnapshot() *pebble.Snapshot {
	i.run()
	return i.source.NewSnapshot()
}

// TestReadInterruptedByScrub lets a compaction and its scrubbing come between
// the choice of a revision and the read.
func TestReadInterruptedByScrub(t *testing.T) {
	ctx := context.Background()
	all := func(rev int64) *pb.RangeRequest {
		return &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Revision: rev}
	}
	for _, c := range []struct {
		name string
		read func(s *Store) (*pb.RangeResponse, error)
		want error
	}{
		{"now", func(s *Store) (*pb.RangeResponse, error) { return s.Range(ctx, all(0)) }, nil},
		{"at a revision", func(s *Store) (*pb.RangeResponse, error) { return s.Range(ctx, all(3)) }, ErrCompacted},
		{"a key", func(s *Store) (*pb.RangeResponse, error) {
			return s.Range(ctx, &pb.RangeRequest{Key: []byte("k1"), Revision: 3})
		}, ErrCompacted},
		{"pinned", func(s *Store) (*pb.RangeResponse, error) {
			view := s.Pin()
			r, err := view.Range(ctx, all(view.Head().Current))
			return r, errors.Join(err, view.Close())
		}, nil},
	} {
		s := openStore(t, vfs.NewMem())
		change(t, s, "put k1 a", "put k2 a")
		s.reads = &interrupted{source: s.db, before: func() {
			change(t, s, "put k1 b", "put k2 b", "compact 5")
			scrub(t, s, 100)
		}}
		r, err := c.read(s)
		if !errors.Is(err, c.want) || c.want == nil && (err != nil || len(r.Kvs) != 2) {
			t.Errorf("%s: %v, %v", c.name, r, err)
		}
		closeStore(t, s)
	}
}

func TestFormat(t *testing.T) {
	set := func(t *testing.T, fs vfs.FS, key, value []byte) {
		t.Helper()
		db, err := pebble.Open(testDir, pebbleOptions(Options{FS: fs}))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Set(key, value, pebble.NoSync), db.Flush(), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("newer", func(t *testing.T) {
		fs := vfs.NewMem()
		set(t, fs, metaKey(metaFormat), binary.BigEndian.AppendUint32(nil, formatVersion+1))
		_, err := Open(testDir, Options{FS: fs})
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "format 2") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("foreign", func(t *testing.T) {
		fs := vfs.NewMem()
		set(t, fs, []byte("anything"), []byte("else"))
		if _, err := Open(testDir, Options{FS: fs}); !errors.Is(err, ErrFormat) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("other order", func(t *testing.T) {
		fs := vfs.NewMem()
		db, err := pebble.Open(testDir, &pebble.Options{FS: fs, Logger: newPebbleLogger(nil, nil)})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(testDir, Options{FS: fs}); err == nil || !strings.Contains(err.Error(), comparerName) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		fs := vfs.NewMem()
		if _, err := Open(testDir, Options{FS: fs, MustExist: true}); err == nil {
			t.Error("a store was made")
		}
		if err := fs.MkdirAll(testDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(testDir, Options{FS: fs, ReadOnly: true}); err == nil {
			t.Error("a store was made")
		}
	})
	t.Run("damaged", func(t *testing.T) {
		fs := vfs.NewMem()
		closeStore(t, openStore(t, fs))
		set(t, fs, metaKey(metaHead), []byte("short"))
		if _, err := Open(testDir, Options{FS: fs}); !errors.Is(err, ErrDamaged) {
			t.Errorf("error %v", err)
		}
	})
}

func TestCommitRefusesOpenTransaction(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	w := s.NewWriter()
	if err := w.Put([]byte("a"), nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(w); err == nil {
		t.Error("half a transaction was committed")
	}
	if got := s.Head().Current; got != 1 {
		t.Errorf("at revision %d, want 1", got)
	}
}

func TestRangeStopsWithItsContext(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	w := s.NewWriter()
	for i := range 2 * ctxCheckInterval {
		if err := w.Put(fmt.Append(nil, i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.EndTxn()
	if err := s.Commit(w); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := s.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestOldVersionsCostNothing reads a key with many versions and demands that
// the iterator does not step through them.
func TestOldVersionsCostNothing(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	w := s.NewWriter()
	for range 20_000 {
		if err := w.Put([]byte("a"), bytes.Repeat([]byte("v"), 100), 0); err != nil {
			t.Fatal(err)
		}
		w.EndTxn()
	}
	if err := w.Put([]byte("b"), nil, 0); err != nil {
		t.Fatal(err)
	}
	w.EndTxn()
	if err := errors.Join(s.Commit(w), s.Flush()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rev  int64
		keys int
	}{{s.Head().Current, 2}, {10_000, 1}} {
		reader := &watchedReader{Reader: s.DB()}
		keys, steps := 0, 0
		err := View{reader: reader, head: s.Head()}.scan(context.Background(), []byte("a"), []byte("c"), c.rev, func([]byte) (bool, error) {
			keys++
			stats := reader.it.Stats()
			steps = stats.ForwardStepCount[pebble.InternalIterCall] + stats.ForwardSeekCount[pebble.InternalIterCall]
			return true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if keys != c.keys || steps > 50 {
			t.Errorf("revision %d: %d keys in %d steps, want %d in a few", c.rev, keys, steps, c.keys)
		}
	}
}

// watchedReader remembers its last iterator.
type watchedReader struct {
	pebble.Reader
	it *pebble.Iterator
}

func (r *watchedReader) NewIterWithContext(ctx context.Context, o *pebble.IterOptions) (*pebble.Iterator, error) {
	it, err := r.Reader.NewIterWithContext(ctx, o)
	r.it = it
	return it, err
}

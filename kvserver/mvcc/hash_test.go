package mvcc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	etcdmvcc "go.etcd.io/etcd/server/v3/storage/mvcc"

	"muster/kvserver/internal/randomtest"
)

// TestHashLikeEtcd makes the same random changes and compactions in etcd's
// store and in ours and compares the hashes at random revisions, with
// scrubbing at any point. -mvcc.ops=100000 is the long run.
func TestHashLikeEtcd(t *testing.T) {
	g := newGenerator(t)
	judge := newEtcd(t)
	store := openStore(t, vfs.NewMem())
	defer closeStore(t, store)
	ctx := context.Background()

	counts := map[string]int{}
	musts := []string{"hash", "emptied", "compact", "scrub", ErrCompacted.Error(), ErrFutureRev.Error()}
	for i := 0; i < *judgeOps || i < randomtest.Patience && randomtest.Lacks(counts, musts) != ""; i++ {
		switch op := g.IntN(100); {
		case op < 75:
			if err := sameChanges(ctx, g, judge, store); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			if g.IntN(40) == 0 { // now and then nothing is left
				tx := judge.Write(traceutil.TODO())
				tx.DeleteRange([]byte{0}, []byte{})
				tx.End()
				w := store.NewWriter()
				if _, err := w.Delete(ctx, []byte{0}, []byte{0}, nil); err != nil {
					t.Fatal(err)
				}
				w.EndTxn()
				if err := store.Commit(w); err != nil {
					t.Fatal(err)
				}
				counts["emptied"]++
			}
		case op < 78:
			if err := sameCompaction(ctx, g, judge, store, counts); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		case op < 85:
			limit := 1 + g.IntN(20)
			if g.IntN(10) == 0 {
				limit = 1 << 16 // everything, or a long run gets ever slower
			}
			if _, err := store.ScrubStep(ctx, limit); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			counts["scrub"]++
		default:
			rev := g.revision(store.Head())
			want, current, wantErr := judge.HashStorage().HashByRev(rev)
			got, err := store.HashKV(ctx, rev)
			if !sameError(err, wantErr) {
				t.Fatalf("operation %d: hash at %d: %v, etcd has %v", i, rev, err, wantErr)
			}
			if err != nil {
				counts[err.Error()]++
				continue
			}
			if wanted := kvHash(want, current); got != wanted {
				t.Fatalf("operation %d: hash at %d: %+v, etcd has %+v", i, rev, got, wanted)
			}
			counts["hash"]++
			if g.IntN(40) > 0 {
				continue // it takes long
			}
			if err := sameInPortions(ctx, store, rev, 1+g.IntN(max(i/2, 3))); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		}
	}
	var wanted []KVHash
	for _, want := range judge.HashStorage().Hashes() {
		wanted = append(wanted, kvHash(want, 0))
	}
	if got, err := store.CompactionHashes(ctx); err != nil || !slices.Equal(got, wanted) {
		t.Errorf("hashes of compactions %+v, etcd has %+v", got, wanted)
	}
	t.Logf("%v", counts)
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}
}

// sameInPortions compares the hash of a history with that of its portions.
func sameInPortions(ctx context.Context, store *Store, rev int64, portion int) error {
	view := store.Pin()
	whole, parts := newHasher(view), newHasher(view)
	parts.portion = portion
	err := errors.Join(whole.addHistory(ctx, max(rev, 1), rev), parts.addHistory(ctx, max(rev, 1), rev), view.Close())
	if err != nil || whole.sum != parts.sum {
		return fmt.Errorf("%#x in portions of %d, %#x as a whole: %w", parts.sum, portion, whole.sum, err)
	}
	return nil
}

func kvHash(h etcdmvcc.KeyValueHash, current int64) KVHash {
	return KVHash{Hash: h.Hash, Revision: h.Revision, Compacted: h.CompactRevision, Current: current}
}

// The hash of a history that does not change is known, so that nothing moves
// it unseen.
func TestHashGolden(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	ctx := context.Background()
	change(t, s, "put a 1", "put b 1;put a 2", "del b", "put c 3", "del a")
	for _, c := range []struct{ rev, want int64 }{{0, 0x5dcf6d5a}, {-1, 0x40a4756d}, {3, 0x90e4c4b1}, {6, 0x5dcf6d5a}} {
		got, err := s.HashKV(ctx, c.rev)
		if err != nil || int64(got.Hash) != c.want {
			t.Errorf("hash at %d: %#x, %v, want %#x", c.rev, got.Hash, err, c.want)
		}
	}
	before, err := s.HashKV(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	change(t, s, "compact 4")
	compacted, err := s.HashKV(ctx, 0)
	if err != nil || compacted.Hash == before.Hash || compacted.Compacted != 4 {
		t.Errorf("after a compaction %+v, %v, before it %+v", compacted, err, before)
	}
	scrub(t, s, 1)
	if got, err := s.HashKV(ctx, 0); err != nil || got != compacted {
		t.Errorf("after scrubbing %+v, %v, before it %+v", got, err, compacted)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	change(t, s, "put x 1;put x 2")
	for range ctxCheckInterval {
		change(t, s, "put y 1")
	}
	if _, err := s.HashKV(cancelled, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("hash for a caller who is gone: %v", err)
	}
}

func BenchmarkHashKV(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeStore(b, s)
	const keys = 100_000
	value := make([]byte, 256)
	for i := 0; i < keys; i += 100 {
		w := s.NewWriter()
		for j := range 100 {
			if err := w.Put(fmt.Appendf(nil, "%016x", uint64(i+j)*0x9e3779b97f4a7c15), value, 0); err != nil {
				b.Fatal(err)
			}
			w.EndTxn()
		}
		if err := s.Commit(w); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.HashKV(context.Background(), 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/change")
}

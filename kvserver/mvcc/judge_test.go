package mvcc

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/txn"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	etcdmvcc "go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/pkg/v3/traceutil"

	"muster/kvserver/internal/randomtest"
)

var (
	judgeOps  = flag.Int("mvcc.ops", 4000, "operations per comparison with etcd")
	judgeSeed = flag.Uint64("mvcc.seed", 0, "seed of the comparison with etcd; 0 picks one")
)

// newEtcd makes etcd's own store.
func newEtcd(t testing.TB) etcdmvcc.KV {
	t.Helper()
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path = filepath.Join(t.TempDir(), "db")
	cfg.UnsafeNoFsync = true
	b := backend.New(cfg)
	kv := etcdmvcc.NewStore(zap.NewNop(), b, &lease.FakeLessor{}, etcdmvcc.StoreConfig{
		CompactionSleepInterval: time.Millisecond,
	})
	t.Cleanup(func() {
		if err := errors.Join(kv.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return kv
}

// generator makes random operations on few keys, so that they meet, with the
// bytes that the key encoding treats specially.
type generator struct{ *rand.Rand }

func newGenerator(t testing.TB) generator {
	t.Helper()
	seed := *judgeSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -mvcc.seed=%d -mvcc.ops=%d", seed, *judgeOps)
	return generator{rand.New(rand.NewPCG(seed, 1))}
}

func (g generator) key() []byte {
	alphabet := []byte{0x00, 0x01, 'a', 'b', 0xfe, 0xff}
	key := make([]byte, 1+g.IntN(3))
	for i := range key {
		key[i] = alphabet[g.IntN(len(alphabet))]
	}
	return key
}

func (g generator) end() []byte {
	switch g.IntN(5) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	default:
		return g.key()
	}
}

func (g generator) value() []byte {
	value := make([]byte, g.IntN(4))
	for i := range value {
		value[i] = byte(g.IntN(3))
	}
	return value
}

// revision is mostly readable, and sometimes off either end.
func (g generator) revision(head Head) int64 {
	if g.IntN(2) == 0 {
		return 0
	}
	return head.Compacted - 3 + g.Int64N(head.Current-head.Compacted+6)
}

func (g generator) rangeRequest(head Head) *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key:       g.key(),
		RangeEnd:  g.end(),
		Revision:  g.revision(head),
		KeysOnly:  g.IntN(4) == 0,
		CountOnly: g.IntN(6) == 0,
	}
	if g.IntN(3) == 0 {
		r.Key, r.RangeEnd = []byte{0}, []byte{0}
	}
	if g.IntN(2) == 0 {
		r.Limit = g.Int64N(12) - 1
	}
	if g.IntN(2) == 0 {
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if g.IntN(3) == 0 {
		for _, filter := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			if g.IntN(3) == 0 {
				*filter = g.Int64N(head.Current + 2)
			}
		}
	}
	return r
}

// TestLikeEtcd makes the same random changes to etcd's store and to ours, and
// compares what random reads of the two return, field by field. Compaction,
// scrubbing and reopening happen in between.
func TestLikeEtcd(t *testing.T) {
	g := newGenerator(t)
	judge := newEtcd(t)
	fs := vfs.NewMem()
	store := openStore(t, fs)
	defer func() { closeStore(t, store) }()
	ctx := context.Background()

	counts := map[string]int{}
	musts := []string{"step", "range", "compact", "scrub", ErrCompacted.Error(), ErrFutureRev.Error()}
	for i := 0; i < *judgeOps || i < randomtest.Patience && randomtest.Lacks(counts, musts) != ""; i++ {
		op := g.IntN(100)
		switch {
		case op < 45:
			counts["step"]++
			if err := sameChanges(ctx, g, judge, store); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		case op < 92:
			r := g.rangeRequest(store.Head())
			want, _, wantErr := txn.Range(ctx, zap.NewNop(), judge, r, true)
			got, err := store.Range(ctx, r)
			if err := sameAnswer(want, wantErr, got, err); err != nil {
				t.Fatalf("operation %d: range %v: %v", i, r, err)
			}
			if err == nil {
				counts["range"]++
			} else {
				counts[err.Error()]++
			}
		case op < 94:
			if err := sameCompaction(ctx, g, judge, store, counts); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		case op < 99:
			if _, err := store.ScrubStep(context.Background(), 1+g.IntN(20)); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			counts["scrub"]++
		default:
			if err := store.Flush(); err != nil {
				t.Fatal(err)
			}
			before := store.Head()
			closeStore(t, store)
			store = openStore(t, fs)
			if store.Head() != before {
				t.Fatalf("operation %d: head %+v before, %+v after reopening", i, before, store.Head())
			}
			counts["reopen"]++
		}
		if got, want := store.Head(), (Head{Current: judge.Rev(), Compacted: judge.FirstRev()}); got != want {
			t.Fatalf("operation %d: head %+v, etcd's %+v", i, got, want)
		}
	}
	t.Logf("%v", counts)
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}
}

// sameChanges makes the same one to three transactions in both stores, ours in
// one step, with reads in between.
func sameChanges(ctx context.Context, g generator, judge etcdmvcc.KV, store *Store) error {
	w := store.NewWriter()
	for range 1 + g.IntN(3) {
		tx := judge.Write(traceutil.TODO())
		err := sameTransaction(ctx, g, tx, w)
		tx.End()
		if err != nil {
			return errors.Join(err, w.Discard())
		}
		if got := w.EndTxn(); got != judge.Rev() {
			return errors.Join(fmt.Errorf("transaction ended at revision %d, etcd's at %d", got, judge.Rev()), w.Discard())
		}
	}
	return store.Commit(w)
}

// sameTransaction changes no key twice: no client can, and etcd loses keys
// that were deleted and put again in the revision that is compacted.
func sameTransaction(ctx context.Context, g generator, tx etcdmvcc.TxnWrite, w *Writer) error {
	var changed touched
	for range g.IntN(4) {
		key := g.key()
		switch g.IntN(5) {
		case 0, 1, 2:
			if !changed.add(key, nil) {
				continue
			}
			value, leaseID := g.value(), int64(g.IntN(3))
			tx.Put(key, value, lease.LeaseID(leaseID))
			if err := w.Put(key, value, leaseID); err != nil {
				return fmt.Errorf("put %q: %w", key, err)
			}
		case 3:
			end := g.end()
			if !changed.add(key, end) {
				continue
			}
			want, _ := tx.DeleteRange(key, etcdEnd(end))
			got, err := w.Delete(ctx, key, end, nil)
			if err != nil || got != want {
				return fmt.Errorf("delete [%q, %q): %d keys, etcd deleted %d: %v", key, end, got, want, err)
			}
		case 4:
			end := g.end()
			want, err := tx.Range(ctx, key, etcdEnd(end), etcdmvcc.RangeOptions{})
			if err != nil {
				return fmt.Errorf("etcd: read [%q, %q): %w", key, end, err)
			}
			got, err := w.View().Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end})
			if err != nil {
				return fmt.Errorf("read [%q, %q): %w", key, end, err)
			}
			if got.Header.Revision != want.Rev || !proto.Equal(&pb.RangeResponse{Kvs: got.Kvs}, &pb.RangeResponse{Kvs: want.KVs}) {
				return fmt.Errorf("read [%q, %q) inside a transaction: %v, etcd has %v", key, end, got, want)
			}
		}
	}
	return nil
}

// touched are the intervals of keys a transaction has changed.
type touched [][2][]byte

// add tells whether the interval is apart from all others, and notes it.
func (t *touched) add(key, end []byte) bool {
	switch {
	case len(end) == 0:
		end = append(bytes.Clone(key), 0)
	case isUnbounded(end):
		end = bytes.Repeat([]byte{0xff}, 9)
	}
	for _, other := range *t {
		if bytes.Compare(key, other[1]) < 0 && bytes.Compare(other[0], end) < 0 {
			return false
		}
	}
	*t = append(*t, [2][]byte{key, end})
	return true
}

func sameCompaction(ctx context.Context, g generator, judge etcdmvcc.KV, store *Store, counts map[string]int) error {
	head := store.Head()
	rev := max(head.Compacted, head.Current-40) - 2 + g.Int64N(40)
	done, wantErr := judge.Compact(traceutil.TODO(), rev)
	w := store.NewWriter()
	err := w.Compact(rev)
	if !sameError(err, wantErr) {
		return errors.Join(fmt.Errorf("compact %d: %w, etcd has %w", rev, err, wantErr), w.Discard())
	}
	if err != nil {
		counts[err.Error()]++
		return w.Discard()
	}
	<-done // etcd reads its bookkeeping of the last compaction at the next
	counts["compact"]++
	return store.Commit(w)
}

// etcdEnd is how etcd's server hands an end to its store.
func etcdEnd(end []byte) []byte {
	if bytes.Equal(end, []byte{0}) {
		return []byte{}
	}
	return end
}

func sameAnswer(want *pb.RangeResponse, wantErr error, got *pb.RangeResponse, gotErr error) error {
	if !sameError(gotErr, wantErr) {
		return fmt.Errorf("error %v, etcd has %v", gotErr, wantErr)
	}
	if gotErr == nil && !proto.Equal(got, want) {
		return fmt.Errorf("\n     %v\netcd %v", got, want)
	}
	return nil
}

func sameError(got, want error) bool {
	switch {
	case want == nil:
		return got == nil
	case errors.Is(want, etcdmvcc.ErrCompacted):
		return errors.Is(got, ErrCompacted)
	case errors.Is(want, etcdmvcc.ErrFutureRev):
		return errors.Is(got, ErrFutureRev)
	default:
		return false
	}
}

package mvcc

import (
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestCountsLikeCounting compares the counts of random lists, at random
// revisions and page by page, with those of a view, which counts for itself.
func TestCountsLikeCounting(t *testing.T) {
	g := newGenerator(t)
	s := openStore(t, vfs.NewMem())
	smallTally(s)
	defer closeStore(t, s)
	ctx := context.Background()
	key := func() []byte { return fmt.Appendf(nil, "%c-%03d", 'a'+rune(g.IntN(3)), g.IntN(300)) }
	helped := 0
	for step := range *judgeOps {
		switch n := g.IntN(20); {
		case n < 6:
			w := s.NewWriter()
			var err error
			if g.IntN(3) > 0 {
				err = w.Put(key(), g.value(), 0)
			} else {
				_, err = w.Delete(ctx, key(), nil, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			w.EndTxn()
			if err := s.Commit(w); err != nil {
				t.Fatal(err)
			}
			continue
		case n == 6:
			if head := s.Head(); g.IntN(10) == 0 && head.Current-head.Compacted > 60 {
				change(t, s, fmt.Sprintf("compact %d", head.Current-g.Int64N(60)))
			}
			continue
		case n == 7:
			if _, err := s.ScrubStep(context.Background(), 1+g.IntN(30)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		head := s.Head()
		r := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, Limit: 1 + g.Int64N(20), CountOnly: g.IntN(4) == 0}
		if g.IntN(2) == 0 {
			r.RangeEnd = []byte("c")
		}
		if g.IntN(3) > 0 {
			r.Key = key()
		}
		if g.IntN(3) > 0 {
			r.Revision = max(1, head.Compacted, head.Current-g.Int64N(80))
		}
		view := s.Pin()
		want, err := view.Range(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		rev := r.Revision
		if rev == 0 {
			rev = head.Current
		}
		if _, ok, err := view.countFrom(ctx, s.counts.knownFor(r, &s.tally), r.Key, r.RangeEnd, rev); err != nil {
			t.Fatal(err)
		} else if ok {
			helped++
		}
		if err := view.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := s.Range(ctx, r)
		if err := sameAnswer(want, nil, got, err); err != nil {
			t.Fatalf("step %d: %v: %v", step, r, err)
		}
		if n := len(s.counts.known); n > countsKept {
			t.Fatalf("%d intervals are remembered", n)
		}
	}
	t.Logf("%d counts were helped", helped)
	if helped < *judgeOps/20 {
		t.Error("the comparison is worth little")
	}
}

// A list that is read page by page is counted once, and its pages do not push
// out what is remembered of other lists.
func TestCountsOfPages(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	w := s.NewWriter()
	for i := range 1000 {
		if err := w.Put(fmt.Appendf(nil, "k%04d", i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.EndTxn()
	if err := s.Commit(w); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	r := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 5}
	for left := int64(1000); left > 0; left -= 5 {
		resp, err := s.Range(ctx, r)
		if err != nil || resp.Count != left || resp.More != (left > 5) {
			t.Fatalf("from %q: %d keys, more %t, %v; want %d", r.Key, resp.GetCount(), resp.GetMore(), err, left)
		}
		r.Revision = resp.Header.Revision
		r.Key = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
		if left > 20 && len(s.counts.known) > 2 {
			t.Fatalf("%d intervals are remembered of one list", len(s.counts.known))
		}
	}
}

// BenchmarkCount lists the first 500 of 200,000 keys with values of 256 bytes,
// each of which was put twice. All but the first time the rest need not be
// counted.
func BenchmarkCount(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeStore(b, s)
	const keys = 200_000
	value := make([]byte, 256)
	for i := range 2 * keys / 100 {
		w := s.NewWriter()
		for j := range 100 {
			if err := w.Put(fmt.Appendf(nil, "/registry/pods/default/%016x", uint64((i*100+j)%keys)*0x9e3779b97f4a7c15), value, 0); err != nil {
				b.Fatal(err)
			}
			w.EndTxn()
		}
		if err := s.Commit(w); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		r, err := s.Range(context.Background(), &pb.RangeRequest{Key: []byte("/registry/"), RangeEnd: []byte("/registry0"), Limit: 500})
		if err != nil || r.Count != keys || len(r.Kvs) != 500 {
			b.Fatal(r.GetCount(), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/key")
}

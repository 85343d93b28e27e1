package mvcc

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// smallTally has intervals divided and joined at numbers that a short test
// reaches.
func smallTally(s *Store) { s.tally.split, s.tally.merge = 12, 5 }

// checkTally compares every interval with what is in it.
func checkTally(s *Store) error {
	stored, err := readTally(s.db)
	if err != nil {
		return err
	}
	if len(stored) != len(s.tally.intervals) {
		return fmt.Errorf("%d intervals are stored, %d in memory", len(stored), len(s.tally.intervals))
	}
	for i, interval := range s.tally.intervals {
		if !bytes.Equal(stored[i].start, interval.start) || stored[i].keys != interval.keys {
			return fmt.Errorf("interval %d is stored as %+v, in memory it is %+v", i, stored[i], interval)
		}
		resp, err := View{reader: s.db, head: s.Head()}.Range(context.Background(), &pb.RangeRequest{Key: interval.start, RangeEnd: s.tally.end(i), CountOnly: true})
		if err != nil {
			return err
		}
		if resp.Count != interval.keys {
			return fmt.Errorf("interval %d from %q has %d keys, %d are counted", i, interval.start, resp.Count, interval.keys)
		}
	}
	return nil
}

// TestTallyLikeCounting grows and shrinks a store at random, in batches of
// several transactions, and opens it anew now and then.
func TestTallyLikeCounting(t *testing.T) {
	g := newGenerator(t)
	fs := vfs.NewMem()
	s := openStore(t, fs)
	smallTally(s)
	defer func() { closeStore(t, s) }()
	ctx := context.Background()
	most := 0
	for step := range *judgeOps {
		shrink := step/200%2 == 1
		w := s.NewWriter()
		for range 1 + g.IntN(3) {
			var err error
			key := fmt.Appendf(nil, "%c%02d", "\x00az"[g.IntN(3)], g.IntN(100))
			switch {
			case g.IntN(30) == 0 && shrink:
				_, err = w.Delete(ctx, key, append(bytes.Clone(key), 0xff), nil)
			case g.IntN(40) == 0:
				_, err = w.Delete(ctx, key[:1], key, nil)
			case g.IntN(3) > 0 == shrink:
				_, err = w.Delete(ctx, key, nil, nil)
			default:
				for i := range 1 + g.IntN(40)/39*30 { // seldom many at once
					if err = w.Put(fmt.Appendf(key, "%d", i), nil, 0); err != nil {
						break
					}
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			w.EndTxn()
		}
		if err := s.Commit(w); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(s.tally.intervals))
		if step%50 == 0 {
			if err := checkTally(s); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
		if step%500 == 499 {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			s = openStore(t, fs)
			smallTally(s)
			if err := checkTally(s); err != nil {
				t.Fatalf("step %d, opened again: %v", step, err)
			}
		}
	}
	if most < 10 {
		t.Errorf("there were never more than %d intervals", most)
	}
	w := s.NewWriter()
	if _, err := w.Delete(ctx, lowestKey, noUpperEnd, nil); err != nil {
		t.Fatal(err)
	}
	w.EndTxn()
	if err := s.Commit(w); err != nil {
		t.Fatal(err)
	}
	if err := checkTally(s); err != nil {
		t.Fatal(err)
	}
}

// The first count after a start does not walk what it counts.
func TestTallyHelpsTheFirstCount(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	const keys = 20_000
	w := s.NewWriter()
	for i := range keys {
		if err := w.Put(fmt.Appendf(nil, "/%06d", i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.EndTxn()
	if err := s.Commit(w); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = openStore(t, fs)
	defer closeStore(t, s)
	r := &pb.RangeRequest{Key: []byte("/"), RangeEnd: []byte("0"), CountOnly: true}
	known := s.counts.knownFor(r, &s.tally)
	if len(known) != 1 || known[0].count < keys-2*tallySplit {
		t.Fatalf("known before the first count: %+v", known)
	}
	view := s.Pin()
	got, ok, err := view.countFrom(context.Background(), known, r.Key, r.RangeEnd, s.Head().Current)
	if err != nil || !ok || got.count != keys {
		t.Errorf("counted %+v, %t, %v; want %d keys", got, ok, err, keys)
	}
	if err := view.Close(); err != nil {
		t.Fatal(err)
	}
}

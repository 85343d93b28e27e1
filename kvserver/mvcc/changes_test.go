package mvcc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
)

// copyOf loads what the compaction leaves of a store into a new one.
func copyOf(t testing.TB, s *Store) *Store {
	t.Helper()
	view, err := s.PinAll()
	if err != nil {
		t.Fatal(err)
	}
	to := openStore(t, vfs.NewMem())
	loader, err := to.NewLoader()
	if err != nil {
		t.Fatal(err)
	}
	if err := view.Changes(context.Background(), loader.Add); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(loader.Finish(view.Head().Compacted), view.Close()); err != nil {
		t.Fatal(err)
	}
	return to
}

// contents is every byte in a store but for what only tells how it came to
// that, and how many bytes these are.
func contents(t testing.TB, s *Store) []string {
	t.Helper()
	it, err := s.DB().NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for valid := it.First(); valid; valid = it.Next() {
		if !slices.Contains([]string{metaScrub, metaWritten, metaRemoved}, string(it.Key()[1:])) {
			lines = append(lines, fmt.Sprintf("%q = %q", it.Key(), it.Value()))
		}
	}
	lines = append(lines, fmt.Sprintf("%d bytes in use", s.InUse()))
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return lines
}

// TestLoad copies a store change by change, at random places of a random
// history, and compares the copy: where it stands, its hash, what it answers,
// and, when the original is scrubbed, every byte.
func TestLoad(t *testing.T) {
	g := newGenerator(t)
	judge := newEtcd(t)
	store := openStore(t, vfs.NewMem())
	defer closeStore(t, store)
	ctx := context.Background()
	counts := map[string]int{}
	for i := range *judgeOps {
		switch op := g.IntN(100); {
		case op < 85:
			if err := sameChanges(ctx, g, judge, store); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			continue
		case op < 90:
			if err := sameCompaction(ctx, g, judge, store, counts); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			continue
		case op < 98:
			if _, err := store.ScrubStep(context.Background(), 1+g.IntN(20)); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			continue
		}
		loaded := copyOf(t, store)
		if loaded.Head() != store.Head() {
			t.Fatalf("operation %d: the copy is at %+v, the original at %+v", i, loaded.Head(), store.Head())
		}
		want, err := hashNow(ctx, store)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := hashNow(ctx, loaded); err != nil || got != want {
			t.Fatalf("operation %d: the copy's hash is %+v, %v, the original's %+v", i, got, err, want)
		}
		for range 20 {
			r := g.rangeRequest(store.Head())
			want, wantErr := store.Range(ctx, r)
			got, err := loaded.Range(ctx, r)
			if !errors.Is(err, wantErr) || wantErr == nil && !proto.Equal(got, want) {
				t.Fatalf("operation %d: range %v: %v, %v, the original answers %v, %v", i, r, got, err, want, wantErr)
			}
		}
		scrub(t, store, 100)
		scrub(t, loaded, 7)
		if got, want := contents(t, loaded), contents(t, store); !slices.Equal(got, want) {
			t.Fatalf("operation %d: scrubbed, the copy has\n%q\nthe original\n%q", i, got, want)
		}
		closeStore(t, loaded)
		counts["copy"]++
	}
	if counts["copy"] == 0 || counts["compact"] == 0 {
		t.Errorf("%v: nothing was compared", counts)
	}
}

// hashNow is the hash of what is stored. Store.HashKV could answer what it
// remembers of a compaction, which a copy has not seen; at 0, too, when that
// was the revision of the compaction.
func hashNow(ctx context.Context, s *Store) (KVHash, error) {
	view := s.Pin()
	got, err := view.HashKV(ctx, 0)
	return got, errors.Join(err, view.Close())
}

func TestLoadRefuses(t *testing.T) {
	used := openStore(t, vfs.NewMem())
	defer closeStore(t, used)
	change(t, used, "put a 1")
	if _, err := used.NewLoader(); err == nil {
		t.Error("a store that is not new was filled")
	}

	record := Record{Key: []byte("a"), CreateRevision: 5, ModRevision: 5, Version: 1}.append(nil)
	for name, second := range map[string]Change{
		"an older revision":       {Rev: Revision{Main: 4}, Key: []byte("a"), Record: record},
		"the same change twice":   {Rev: Revision{Main: 5, Sub: 1}, Key: []byte("a"), Record: record},
		"an earlier change of it": {Rev: Revision{Main: 5}, Key: []byte("a"), Record: record},
		"a negative revision":     {Rev: Revision{Main: -1}, Key: []byte("a"), Record: record},
		"no record":               {Rev: Revision{Main: 6}, Key: []byte("a"), Record: []byte{0xff}},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, vfs.NewMem())
			defer closeStore(t, s)
			l, err := s.NewLoader()
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Add(Change{Rev: Revision{Main: 5, Sub: 1}, Key: []byte("a"), Record: record}); err != nil {
				t.Fatal(err)
			}
			if err := l.Add(second); !errors.Is(err, ErrDamaged) {
				t.Errorf("error %v, want ErrDamaged", err)
			}
			if err := l.Discard(); err != nil {
				t.Error(err)
			}
		})
	}
}

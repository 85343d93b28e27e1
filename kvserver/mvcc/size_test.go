package mvcc

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/kvserver/internal/randomtest"
)

// bytesIn is what countBytes finds in the store.
func bytesIn(t testing.TB, s *Store) int64 {
	t.Helper()
	n, err := countBytes(s.DB())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestInUse counts the bytes after random changes, compactions and steps of
// scrubbing, and after opening the store again.
func TestInUse(t *testing.T) {
	g := newGenerator(t)
	judge := newEtcd(t)
	fs := vfs.NewMem()
	store := openStore(t, fs)
	defer func() { closeStore(t, store) }()
	ctx := context.Background()
	counts := map[string]int{}
	musts := []string{"compact", "less", "charge", "reopen"}
	for i := 0; i < *judgeOps/4 || i < randomtest.Patience/4 && randomtest.Lacks(counts, musts) != ""; i++ {
		switch op := g.IntN(100); {
		case op < 60:
			if err := sameChanges(ctx, g, judge, store); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		case op < 70:
			if err := sameCompaction(ctx, g, judge, store, counts); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
		case op < 90:
			before := store.InUse()
			if _, err := store.ScrubStep(ctx, 1+g.IntN(20)); err != nil {
				t.Fatalf("operation %d: %v", i, err)
			}
			if store.InUse() < before {
				counts["less"]++
			}
		case op < 95:
			w := store.NewWriter()
			if err := w.Batch().Set([]byte("s/own"), make([]byte, i), nil); err != nil {
				t.Fatal(err)
			}
			w.Charge(int64(len("s/own")+i) - bytesIn(t, store) + withoutOwn(t, store))
			if err := store.Commit(w); err != nil {
				t.Fatal(err)
			}
			counts["charge"]++
		default:
			if err := store.Flush(); err != nil {
				t.Fatal(err)
			}
			closeStore(t, store)
			store = openStore(t, fs)
			counts["reopen"]++
		}
		if got, want := store.InUse(), bytesIn(t, store); got != want {
			t.Fatalf("operation %d: %d bytes are in use, the store says %d", i, want, got)
		}
	}
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}

	// A store from before there were totals is counted when it is opened, and
	// goes on from there.
	want := store.InUse()
	for _, total := range []string{metaWritten, metaRemoved} {
		if err := store.DB().Delete(metaKey(total), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Flush(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, store)
	store = openStore(t, fs)
	if got := store.InUse(); got != want {
		t.Errorf("%d bytes are in use, an older store says %d", want, got)
	}
	change(t, store, "put again 1")
	if err := store.Flush(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, store)
	store = openStore(t, fs)
	if got, want := store.InUse(), bytesIn(t, store); got != want || got == 0 {
		t.Errorf("%d bytes are in use, an older store that was written to says %d", want, got)
	}
}

// withoutOwn is what is counted without the keys of the store's owner.
func withoutOwn(t testing.TB, s *Store) int64 {
	t.Helper()
	n := bytesIn(t, s)
	value, closer, err := s.DB().Get([]byte("s/own"))
	if err != nil {
		return n
	}
	defer closer.Close()
	return n - int64(len("s/own")+len(value))
}

package mvcc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestOnLease(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer closeStore(t, s)
	ctx := context.Background()
	var told []string
	broken := errors.New("broken")
	w := s.NewWriter()
	w.OnLease(func(key []byte, before, after int64) error {
		told = append(told, fmt.Sprintf("%s %d->%d", key, before, after))
		if after == 9 {
			return broken
		}
		return nil
	})
	for _, p := range []struct {
		key   string
		lease int64
	}{{"a", 1}, {"b", 0}, {"c", 2}, {"a", 1}, {"c", 3}, {"b", 4}, {"a", 0}} {
		if err := w.Put([]byte(p.key), nil, p.lease); err != nil {
			t.Fatal(err)
		}
		w.EndTxn()
	}
	if _, err := w.Delete(ctx, []byte("a"), []byte("z"), nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"a 0->1", "c 0->2", "c 2->3", "b 0->4", "a 1->0", "b 4->0", "c 3->0"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if err := w.Put([]byte("a"), nil, 9); !errors.Is(err, broken) {
		t.Errorf("put with a lease that cannot be noted: %v", err)
	}
	if err := w.Discard(); err != nil {
		t.Fatal(err)
	}
}

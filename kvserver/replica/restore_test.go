package replica

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// restoring returns a state with one key, and counts how often it is made.
func restoring(built *int) *Restore {
	return &Restore{Snapshot: "aa", Build: func(_ context.Context, dir string) error {
		*built++
		b, err := machine.NewBuilder(dir, machine.Options{CacheBytes: 1 << 20})
		if err != nil {
			return err
		}
		// key "k", create and mod revision 7, version 1, value "restored"
		record := append([]byte{0x0a, 1, 'k', 0x10, 7, 0x18, 7, 0x20, 1, 0x2a, 8}, "restored"...)
		return errors.Join(b.Change(mvcc.Change{Rev: mvcc.Revision{Main: 7}, Key: []byte("k"), Record: record}), b.Finish(-1))
	}}
}

func wantRestored(t *testing.T, c *testCluster, i int) {
	t.Helper()
	if got := c.members[i].have("k"); len(got.Kvs) != 1 || got.Kvs[0].ModRevision != 7 || string(got.Kvs[0].Value) != "restored" {
		t.Errorf("m%d has %v, want what was restored", i, got.Kvs)
	}
}

// A start that dies while a snapshot is restored, before or after the store
// took it over, is repeated as if it had never been.
func TestRestoreIsRepeated(t *testing.T) {
	c := newCluster(t, 1)
	built := 0
	config := &c.members[0].config
	good := restoring(&built)
	broken := errors.New("the disk is full")
	config.Restore = &Restore{Snapshot: good.Snapshot, Build: func(ctx context.Context, dir string) error {
		return errors.Join(good.Build(ctx, dir), broken)
	}}
	if err := c.tryStart(0); !errors.Is(err, broken) {
		t.Fatalf("error %v, want that of restoring", err)
	}
	if _, err := os.Stat(filepath.Join(config.Dir, restoringDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a store is left behind: %v", err)
	}

	// As after a crash between taking over the store and founding: another
	// half of a store, one that was taken over, and its members.
	m, err := machine.Open(filepath.Join(config.Dir, "kv"), machine.Options{CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	staged := filepath.Join(config.Dir, restoringDir)
	if err := errors.Join(good.Build(t.Context(), staged), m.Install(staged)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Membership().Seed([]machine.Member{{ID: config.Self.ID, Name: "m0"}}, machine.Position{}), m.Close(), good.Build(t.Context(), staged)); err != nil {
		t.Fatal(err)
	}
	config.Restore = good
	built = 0
	c.start(0)
	c.awaitReady(0)
	wantRestored(t, c, 0)
	c.put(0, "after", "v")
	c.stop(0)

	c.start(0)
	c.awaitReady(0)
	wantRestored(t, c, 0)
	if built != 1 {
		t.Errorf("the store was made %d times; a founded member goes on with its data", built)
	}
	if got := c.members[0].have("after"); len(got.Kvs) != 1 {
		t.Error("what was written after the restore is gone")
	}
	config.Restore = &Restore{Snapshot: "bb"}
	c.stop(0)
	if err := c.tryStart(0); !errors.Is(err, ErrForeignData) || !strings.Contains(err.Error(), "leave --restore-snapshot out") {
		t.Errorf("started over data from another snapshot: %v", err)
	}
	config.Restore = nil
	c.start(0)
}

// The members of a cluster that was restored agree on what was written since.
func TestRestoredMembersAgree(t *testing.T) {
	built := 0
	c := newCluster(t, 3)
	for i := range c.members {
		c.members[i].config.Restore = restoring(&built)
		if err := c.tryStart(i); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.members {
		c.awaitReady(i)
		c.linearize(i)
		wantRestored(t, c, i)
	}
	c.put(1, "k", "later")
	for i := range c.members {
		c.linearize(i)
		if got := c.members[i].have("k"); len(got.Kvs) != 1 || got.Kvs[0].CreateRevision != 7 || got.Kvs[0].ModRevision != 8 || got.Kvs[0].Version != 2 {
			t.Errorf("m%d has %v, want the second version of what was restored", i, got.Kvs)
		}
	}
	if built != 3 {
		t.Errorf("the store was made %d times, want once on every member", built)
	}
}

package etcdsnap_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// backendHash is etcd's hash over a database.
func backendHash(t testing.TB, path string) uint32 {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	config := backend.DefaultBackendConfig(zap.NewNop())
	config.Path = filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(config.Path, content[:len(content)-sha256.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	b := backend.New(config)
	hash, err := b.Hash(schema.DefaultIgnores)
	if err := errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
	return hash
}

// small is a snapshot of a few keys.
func small(t *testing.T) []byte {
	t.Helper()
	m := openMachine(t)
	entries := &log{m: m}
	for _, key := range []string{"a", "b", "c"} {
		if err := entries.apply(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: bytes.Repeat([]byte("v"), 5000)}}); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(export(t, m))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// signed is content with its checksum.
func signed(content []byte) []byte {
	sum := sha256.Sum256(content)
	return append(bytes.Clone(content), sum[:]...)
}

// tryRestore opens and restores a file with the given content.
func tryRestore(t *testing.T, content []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := etcdsnap.Open(context.Background(), path)
	if err != nil {
		return err
	}
	dir := filepath.Join(t.TempDir(), "built")
	return errors.Join(file.Restore(context.Background(), dir, machine.Options{CacheBytes: 1 << 20}), file.Close())
}

// changed is the snapshot after a transaction on its database.
func changed(t *testing.T, content []byte, change func(*bbolt.Tx) error) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, content[:len(content)-sha256.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
	if content, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return signed(content)
}

func TestBadFiles(t *testing.T) {
	good := small(t)
	if err := tryRestore(t, good); err != nil {
		t.Fatalf("an intact snapshot: %v", err)
	}
	flipped := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	put := func(bucket backend.Bucket, key, value []byte) []byte {
		return changed(t, good, func(tx *bbolt.Tx) error { return tx.Bucket(bucket.Name()).Put(key, value) })
	}
	database := good[:len(good)-sha256.Size]
	overwritten := bytes.Clone(database)
	for i := 2 * os.Getpagesize(); i < len(overwritten); i++ {
		overwritten[i] = 0xff
	}
	for name, test := range map[string]struct {
		content []byte
		want    error
		saying  string
	}{
		"empty":                    {nil, etcdsnap.ErrIncomplete, "take the snapshot again"},
		"only a checksum":          {good[len(good)-sha256.Size:], etcdsnap.ErrIncomplete, ""},
		"no checksum":              {database, etcdsnap.ErrIncomplete, "a copy of member/snap/db is none"},
		"the last byte is missing": {good[:len(good)-1], etcdsnap.ErrIncomplete, "copy it again in full"},
		"the last page is missing": {good[:len(good)-4096], etcdsnap.ErrChecksum, "changed or truncated"},
		"half of it":               {good[:len(good)/2], etcdsnap.ErrIncomplete, ""},
		"a flipped bit in a page":  {flipped(len(good) / 2), etcdsnap.ErrChecksum, "use another snapshot"},
		"a flipped bit in front":   {flipped(17), etcdsnap.ErrChecksum, ""},
		"a flipped bit in the sum": {flipped(len(good) - 1), etcdsnap.ErrChecksum, ""},
		"another kind of file":     {signed(bytes.Repeat([]byte("not a database!\n"), 1024)), etcdsnap.ErrForeign, ""},
		"pages overwritten":        {signed(overwritten), etcdsnap.ErrForeign, ""},
		"a database of another kind": {changed(t, good, func(tx *bbolt.Tx) error {
			return tx.DeleteBucket(schema.Key.Name())
		}), etcdsnap.ErrForeign, `no bucket "key"`},
		"no meta": {changed(t, good, func(tx *bbolt.Tx) error {
			return tx.DeleteBucket(schema.Meta.Name())
		}), etcdsnap.ErrForeign, `no bucket "meta"`},
		"a newer etcd's":     {put(schema.Meta, schema.MetaStorageVersionName, []byte("3.8.0")), etcdsnap.ErrForeign, "use a newer musterd"},
		"no revision":        {put(schema.Key, []byte("key"), nil), etcdsnap.ErrForeign, "is not a revision"},
		"an impossible one":  {put(schema.Key, []byte("\xff2345678_12345678"), nil), etcdsnap.ErrForeign, "out of range"},
		"no record":          {put(schema.Key, []byte("\x00\x00\x00\x00\x00\x00\x00\x09_\x00\x00\x00\x00\x00\x00\x00\x00"), []byte{0xff}), mvcc.ErrDamaged, ""},
		"another's record":   {put(schema.Key, []byte("\x00\x00\x00\x00\x00\x00\x00\x09_\x00\x00\x00\x00\x00\x00\x00\x00"), []byte{0x0a, 1, 'a', 0x18, 3}), etcdsnap.ErrForeign, "of revision 3"},
		"a compaction of no": {put(schema.Meta, schema.FinishedCompactKeyName, []byte("5")), etcdsnap.ErrForeign, "finishedCompactRev"},
		"no lease":           {put(schema.Lease, []byte("12345678"), []byte{0xff}), etcdsnap.ErrForeign, "bucket lease"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tryRestore(t, test.content)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), test.saying) {
				t.Errorf("error %q does not say %q", err, test.saying)
			}
		})
	}
}

// Snapshots of versions before 3.6 say nothing of their version; those that
// etcdutl restored with a bumped revision have a record of nothing.
func TestOtherVersionsFiles(t *testing.T) {
	good := small(t)
	old := changed(t, good, func(tx *bbolt.Tx) error {
		return tx.Bucket(schema.Meta.Name()).Delete(schema.MetaStorageVersionName)
	})
	if err := tryRestore(t, old); err != nil {
		t.Errorf("a snapshot without a version: %v", err)
	}
	bumped := changed(t, good, func(tx *bbolt.Tx) error {
		rev := []byte("\x00\x00\x00\x00\x00\x00\x03\xe8_\x00\x00\x00\x00\x00\x00\x00\x00")
		return errors.Join(
			tx.Bucket(schema.Key.Name()).Put(rev, nil),
			tx.Bucket(schema.Meta.Name()).Put(schema.ScheduledCompactKeyName, rev),
		)
	})
	path := filepath.Join(t.TempDir(), "bumped.db")
	if err := os.WriteFile(path, bumped, 0o600); err != nil {
		t.Fatal(err)
	}
	m := restore(t, path)
	if m.Revision() != 1000 || m.CompactedRevision() != 1000 {
		t.Errorf("revision %d, compacted %d, both were bumped to 1000", m.Revision(), m.CompactedRevision())
	}
	revisions := []int64{0, 999, 1000}
	sameLines(t, "a bumped snapshot", describeMachine(t, m, revisions), restoreInEtcd(t, path).describe(t, revisions))
}

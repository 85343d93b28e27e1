package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	etcdutl "go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// startEtcd runs an etcd, whose snapshots are the judge of what Check says.
func startEtcd(t *testing.T) *clientv3.Client {
	t.Helper()
	return startEtcdIn(t, t.TempDir())
}

// startEtcdIn runs one with the data of a directory.
func startEtcdIn(t *testing.T, dir string) *clientv3.Client {
	t.Helper()
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config := embed.NewConfig()
	config.Dir, config.LogLevel, config.UnsafeNoFsync = dir, "panic", true
	config.ListenClientUrls, config.ListenPeerUrls = local, local
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	select {
	case <-etcd.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("etcd is not ready")
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + etcd.Clients[0].Addr().String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func put(t *testing.T, client *clientv3.Client, key string) int64 {
	t.Helper()
	response, err := client.Put(t.Context(), key, strings.Repeat("v", 100))
	if err != nil {
		t.Fatal(err)
	}
	return response.Header.Revision
}

func mustSave(t *testing.T, p Place, client *clientv3.Client) *Saved {
	t.Helper()
	saved, err := p.Save(t.Context(), client, Origin{Cluster: "prod", Member: "m0"})
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSave(t *testing.T) {
	client := startEtcd(t)
	var revision int64
	for i := range 20 {
		revision = put(t, client, fmt.Sprint("k", i%7))
	}
	dir := filepath.Join(t.TempDir(), "new", "dir")
	saved := mustSave(t, Place{Dir: dir}, client)
	if saved.Revision != revision || saved.Keys != 7 || saved.Hash == "" || saved.ClusterID == "" || saved.MemberID == "" || saved.ServerVersion == "" || saved.StorageVersion == "" {
		t.Errorf("saved %+v, the revision is %d", saved.Manifest, revision)
	}
	if got := names(t, dir); !slices.Equal(got, []string{saved.File, saved.File + ".json"}) {
		t.Errorf("the directory holds %q", got)
	}
	content, err := os.ReadFile(saved.Path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(content[:len(content)-sha256.Size]); fmt.Sprintf("%x", sum) != saved.SHA256 || int64(len(content)) != saved.Size {
		t.Errorf("the sum of %d bytes is %x, recorded is %s of %d", len(content), sum, saved.SHA256, saved.Size)
	}
	info, err := os.Stat(saved.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read it: %v, %v", info.Mode(), err)
	}
	read, err := ReadManifest(saved.Path)
	if err != nil || *read != saved.Manifest {
		t.Errorf("read back %+v, %v, want %+v", read, err, saved.Manifest)
	}
	contents, err := Check(t.Context(), saved.Path)
	if err != nil || contents != saved.Contents {
		t.Errorf("checked again %+v, %v, want %+v", contents, err, saved.Contents)
	}
}

// What is bumped is the same keys at a later revision, and the same file each
// time: a restore that was interrupted is known by it.
func TestBump(t *testing.T) {
	client := startEtcd(t)
	for i := range 2000 {
		put(t, client, fmt.Sprint("k", i%700))
	}
	dir := t.TempDir()
	saved := mustSave(t, Place{Dir: dir}, client)
	const by = 1_000_000_000
	var sums []string
	for _, name := range []string{"one.db", "two.db"} {
		path := filepath.Join(dir, name)
		if err := Bump(t.Context(), saved.Path, saved.Contents, by, path); err != nil {
			t.Fatal(err)
		}
		bumped, err := Check(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if bumped.Revision != saved.Revision+by || bumped.Keys != saved.Keys || bumped.StorageVersion != saved.StorageVersion {
			t.Errorf("bumped %+v, saved %+v", bumped, saved.Contents)
		}
		sum, err := FileSum(path)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		t.Errorf("two files of one snapshot: %s", sums)
	}
	if err := Bump(t.Context(), saved.Path, saved.Contents, by, filepath.Join(dir, "one.db")); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another file: %v", err)
	}
	for _, by := range []int64{-1, math.MaxInt64} {
		if err := Bump(t.Context(), saved.Path, saved.Contents, by, filepath.Join(dir, "none.db")); err == nil {
			t.Errorf("bumped by %d", by)
		}
	}
	if again, err := Check(t.Context(), saved.Path); err != nil || again != saved.Contents {
		t.Errorf("the snapshot itself is %+v, %v", again, err)
	}
}

// etcd's own tool bumps a revision by a record of nothing, which is no key.
func TestKeysOfWhatEtcdutlHasBumped(t *testing.T) {
	client := startEtcd(t)
	put(t, client, "k")
	first, dir := mustSave(t, Place{Dir: t.TempDir()}, client), filepath.Join(t.TempDir(), "restored")
	err := etcdutl.NewV3(zap.NewNop()).Restore(etcdutl.RestoreConfig{
		SnapshotPath: first.Path, OutputDataDir: dir, Name: "default", PeerURLs: []string{"http://127.0.0.1:0"},
		InitialCluster: "default=http://127.0.0.1:0", InitialClusterToken: "bumped", RevisionBump: 1000, MarkCompacted: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	second := mustSave(t, Place{Dir: t.TempDir()}, startEtcdIn(t, dir))
	if second.Keys != 1 || second.Revision != first.Revision+1000 {
		t.Errorf("%d keys at revision %d, want 1 at %d", second.Keys, second.Revision, first.Revision+1000)
	}
}

// When the last change was a deletion and all is compacted, no key tells the
// revision any more.
func TestRevisionAfterCompaction(t *testing.T) {
	client := startEtcd(t)
	put(t, client, "k")
	deleted, err := client.Delete(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), deleted.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	saved := mustSave(t, Place{Dir: t.TempDir()}, client)
	if saved.Revision != deleted.Header.Revision || saved.Keys != 0 {
		t.Errorf("revision %d with %d keys, want %d with none", saved.Revision, saved.Keys, deleted.Header.Revision)
	}
}

func TestSaveToFile(t *testing.T) {
	client := startEtcd(t)
	put(t, client, "k")
	dir := t.TempDir()
	place := Place{Dir: dir, File: "mine.db"}
	// What a run that was killed has left does not matter.
	if err := os.WriteFile(filepath.Join(dir, ".mine.db.part"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	saved := mustSave(t, place, client)
	if got := names(t, dir); !slices.Equal(got, []string{"mine.db", "mine.db.json"}) || saved.Path != filepath.Join(dir, "mine.db") {
		t.Errorf("the directory holds %q, the path is %s", got, saved.Path)
	}
	if _, err := place.Save(t.Context(), client, Origin{Cluster: "prod"}); !errors.Is(err, ErrPlace) || !strings.Contains(err.Error(), "exists") {
		t.Errorf("wrote over it: %v", err)
	}
}

func TestTwoSavesAtOnce(t *testing.T) {
	client := startEtcd(t)
	place := Place{Dir: t.TempDir()}
	part, err := place.open("prod")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := place.Save(t.Context(), client, Origin{Cluster: "prod"}); !errors.Is(err, ErrPlace) || !strings.Contains(err.Error(), "another run is saving") {
		t.Errorf("a second save at the same time: %v", err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	mustSave(t, place, client)
}

// A save that fails leaves nothing behind.
func TestSaveInterrupted(t *testing.T) {
	client := startEtcd(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Place{Dir: dir}).Save(ctx, client, Origin{Cluster: "prod"}); err == nil || errors.Is(err, ErrPlace) {
		t.Errorf("error %v", err)
	}
	if got := names(t, dir); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

// manifest writes a snapshot that nobody will read, with its record.
func manifest(t *testing.T, dir string, adjust func(*Manifest)) string {
	t.Helper()
	m := Manifest{Format: manifestFormat, Origin: Origin{Cluster: "prod"}, Contents: Contents{Size: 4, SHA256: "00"}}
	adjust(&m)
	if m.File == "" {
		m.File = m.ownName()
	}
	m.Path = filepath.Join(dir, m.File)
	if err := os.WriteFile(m.Path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.write(); err != nil {
		t.Fatal(err)
	}
	return m.File
}

func TestKeepRemovesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	old := manifest(t, dir, func(m *Manifest) { m.Time = day(1) })
	older := manifest(t, dir, func(m *Manifest) { m.Time = day(2) })
	last := manifest(t, dir, func(m *Manifest) { m.Time = day(9) })
	theirs := []string{
		manifest(t, dir, func(m *Manifest) { m.Time, m.Cluster = day(1), "other" }),
		manifest(t, dir, func(m *Manifest) { m.Time, m.File = day(1), "before-the-upgrade.db" }),
		manifest(t, dir, func(m *Manifest) { m.Time, m.Size = day(3), 5 }), // changed since
	}
	for name, text := range map[string]string{
		"prod-20260101T000000Z-r7.db": "no record", "notes.json": "{}", "broken.json": "{", "list.txt": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, name)
	}
	// The file is gone, the record is left by a kill.
	orphan := manifest(t, dir, func(m *Manifest) { m.Time = day(4) })
	if err := os.Remove(filepath.Join(dir, orphan)); err != nil {
		t.Fatal(err)
	}
	// A newest one is made.
	client := startEtcd(t)
	saved := mustSave(t, Place{Dir: dir, Keep: 2}, client)
	want := []string{filepath.Join(dir, older), filepath.Join(dir, old)}
	if !slices.Equal(saved.Removed, want) {
		t.Errorf("removed %q, want %q", saved.Removed, want)
	}
	left := names(t, dir)
	for _, name := range append(theirs, last, saved.File) {
		if !slices.Contains(left, name) {
			t.Errorf("%s is gone", name)
		}
	}
	for _, name := range []string{old + ".json", older + ".json", orphan + ".json"} {
		if slices.Contains(left, name) {
			t.Errorf("%s is left", name)
		}
	}
	listed, err := List(dir, "prod")
	if err != nil || len(listed) != 3 || listed[0].File != saved.File || listed[1].File != last {
		t.Errorf("listed %+v, %v", listed, err)
	}
}

func TestCheckRefuses(t *testing.T) {
	client := startEtcd(t)
	put(t, client, "k")
	saved := mustSave(t, Place{Dir: t.TempDir()}, client)
	content, err := os.ReadFile(saved.Path)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(database []byte) []byte {
		sum := sha256.Sum256(database)
		return append(slices.Clone(database), sum[:]...)
	}
	flipped := slices.Clone(content)
	flipped[len(flipped)/2] ^= 1
	other := filepath.Join(t.TempDir(), "other.db")
	db, err := bbolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	torn := slices.Clone(content[:len(content)-sha256.Size])
	clear(torn[2*4096:])
	for name, test := range map[string]struct {
		content []byte
		want    error
	}{
		"nothing":                  {nil, ErrIncomplete},
		"truncated":                {content[:len(content)-100], ErrIncomplete},
		"without a checksum":       {content[:len(content)-sha256.Size], ErrIncomplete},
		"a flipped bit":            {flipped, ErrChecksum},
		"another database":         {signed(foreign), ErrDatabase},
		"no database":              {signed(make([]byte, 64<<10)), ErrDatabase},
		"pages that are not there": {signed(torn), ErrDatabase},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.db")
			if err := os.WriteFile(path, test.content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Check(t.Context(), path)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %v with the path", err, test.want)
			}
		})
	}
	if _, err := Check(t.Context(), t.TempDir()); err == nil {
		t.Error("a directory is accepted")
	}
}

func TestPlaceFor(t *testing.T) {
	dir := t.TempDir()
	dotted := filepath.Join(dir, "backups.d")
	if err := os.Mkdir(dotted, 0o700); err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]Place{
		dir:                               {Dir: dir, Keep: 3},
		dotted:                            {Dir: dotted, Keep: 3},
		filepath.Join(dir, "new"):         {Dir: filepath.Join(dir, "new"), Keep: 3},
		filepath.Join(dir, "new.d") + "/": {Dir: filepath.Join(dir, "new.d"), Keep: 3},
		filepath.Join(dir, "one.db"):      {Dir: dir, File: "one.db"},
		"one.db":                          {Dir: ".", File: "one.db"},
	} {
		if got := PlaceFor(arg, 3); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v, want %+v", arg, got, want)
		}
	}
}

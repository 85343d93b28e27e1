package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// An etcd starts when neither the storage nor the cluster is of a newer version
// than it is. What a snapshot of musterd has is brought down to that, and not up.
func TestLowerStorage(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "snapshot.db")
	saveSnapshot(t, startMusterd(t, 1)[0], file)
	for _, target := range []struct{ server, cluster, storage string }{
		{"3.6.8", "3.6.0", "3.6.0"},
		{"3.5.21", "3.5.0", ""}, // which did not say it yet
		{"3.4.23", "3.4.0", ""},
	} {
		t.Run(target.server, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
				SnapshotPath: file, Name: "a", OutputDataDir: dir, PeerURLs: []string{"http://127.0.0.1:1"},
				InitialCluster: "a=http://127.0.0.1:1", InitialClusterToken: "token",
			})
			if err != nil {
				t.Fatal(err)
			}
			if cluster, storage := versions(dir); cluster != "3.7.0" || storage != "3.7.0" {
				t.Errorf("it was for %q in the storage of %q", cluster, storage)
			}
			for range 2 {
				command := newStorageCommand()
				command.SetArgs([]string{dir, target.server})
				if err := command.Execute(); err != nil {
					t.Fatal(err)
				}
				if cluster, storage := versions(dir); cluster != target.cluster || storage != target.storage {
					t.Errorf("it is for %q in the storage of %q, want %q and %q", cluster, storage, target.cluster, target.storage)
				}
			}
		})
	}
	for _, args := range [][]string{{t.TempDir(), "3.6.8"}, {t.TempDir(), "three"}} {
		command := newStorageCommand()
		command.SetArgs(args)
		if err := command.Execute(); err == nil {
			t.Errorf("no error for %q", args)
		}
	}
}

// versions are those of the cluster and the storage of a data directory; empty
// where it does not say.
func versions(dir string) (cluster, storage string) {
	be := backend.NewDefaultBackend(zap.NewNop(), filepath.Join(dir, "member", "snap", "db"))
	defer be.Close() //nolint:errcheck // it was only read
	text := func(v *semver.Version) string {
		if v == nil {
			return ""
		}
		return v.String()
	}
	return text(schema.NewMembershipBackend(zap.NewNop(), be).ClusterVersionFromBackend()), text(schema.ReadStorageVersion(be.ReadTx()))
}

func saveSnapshot(t *testing.T, endpoint, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	from, err := dial(t, endpoint).Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close() //nolint:errcheck // what was read is checked
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = io.Copy(file, from); err == nil {
		err = file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

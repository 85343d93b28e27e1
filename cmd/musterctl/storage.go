package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coreos/go-semver/semver"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// oldestStorage is the oldest version of the storage that etcd's tool writes,
// which older servers read as well.
var oldestStorage = semver.Version{Major: 3, Minor: 5}

// newStorageCommand makes a data directory fit for an older etcd, which refuses
// both a newer storage and a cluster that was of a newer version. Giving an etcd
// back that was adopted runs it. etcdutl migrate does the first alone: it counts
// on a cluster whose members have agreed on the older version.
func newStorageCommand() *cobra.Command {
	return &cobra.Command{
		Use:           "musterctl storage DIR VERSION",
		Short:         "make an unused data directory fit for an older etcd",
		Args:          cobra.ExactArgs(2),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(_ *cobra.Command, args []string) error {
			target, err := semver.NewVersion(args[1])
			if err != nil {
				return fmt.Errorf("%q is not a version; write one such as 3.6.8", args[1])
			}
			return lowerStorage(args[0], semver.Version{Major: target.Major, Minor: target.Minor})
		},
	}
}

// lowerStorage sets the version of the cluster, when it is newer, and that of the
// storage.
func lowerStorage(dir string, target semver.Version) error {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%s holds no data of etcd's: %w", dir, err)
	}
	be := backend.NewDefaultBackend(zap.NewNop(), path)
	cluster := schema.NewMembershipBackend(zap.NewNop(), be)
	if now := cluster.ClusterVersionFromBackend(); now != nil && target.LessThan(*now) {
		cluster.MustSaveClusterVersionToBackend(&target)
	}
	be.ForceCommit()
	if err := be.Close(); err != nil {
		return fmt.Errorf("close %s: %w", path, err)
	}
	if target.LessThan(oldestStorage) {
		target = oldestStorage
	}
	migrate := etcdutl.NewMigrateCommand() // exits when it fails
	migrate.SetArgs([]string{"--data-dir", dir, "--target-version", fmt.Sprintf("%d.%d", target.Major, target.Minor)})
	return migrate.Execute()
}

package kvserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
	"muster/kvserver/replica"
)

// restoreCacheBytes is enough to write a store once.
const restoreCacheBytes = 8 << 20

// origin is the snapshot that this member's cluster begins with.
type origin struct {
	digest string
	file   *etcdsnap.File // nil when the member has its data already
}

// origin returns nil when the cluster begins with nothing. The file of a new
// member is compared with its checksum, so that a bad one leaves no trace in
// the data directory; that of a member which has its data is only identified,
// and may be gone.
func (c *Config) origin(ctx context.Context) (*origin, error) {
	known, err := replica.LoadIdentity(c.DataDir)
	if err != nil {
		return nil, err
	}
	staged := false
	if c.RestoreSnapshot == "" {
		if staged, err = c.takeStaged(); err != nil {
			return nil, err
		}
	}
	if c.RestoreSnapshot == "" {
		return nil, nil
	}
	o := &origin{}
	switch {
	case known == nil || !known.Founded:
		if c.InitialClusterState != "new" {
			return nil, fmt.Errorf("--restore-snapshot founds a cluster, and --initial-cluster-state is %s; leave one of them out", c.InitialClusterState)
		}
		if o.file, err = etcdsnap.Open(ctx, c.RestoreSnapshot); err == nil {
			o.digest = c.restored(o.file.Digest())
		}
	default:
		o.digest, err = etcdsnap.Digest(c.RestoreSnapshot)
		o.digest = c.restored(o.digest)
		if errors.Is(err, fs.ErrNotExist) && known.Snapshot != "" {
			o.digest, err = known.Snapshot, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("--restore-snapshot: %w", err)
	}
	if staged && known != nil && known.Founded && known.Snapshot != o.digest {
		return nil, fmt.Errorf("%s holds data that does not come from the snapshot in its directory %s; remove that directory to go on with the data, or move everything else away to begin with the snapshot", c.DataDir, filepath.Dir(StagedSnapshot))
	}
	return o, nil
}

// The snapshot that a member without data begins with also when no flag names
// it, and the file whose content is the --restore-id of it, both in the data
// directory: the command line of a static pod is kubeadm's, and what lies beside
// the data directory is out of the container's sight. Data that is there already
// has to come from that snapshot, as it has to with the flag.
const (
	StagedSnapshot = "restore/snapshot.db"
	StagedID       = "restore/id"
)

// takeStaged takes a staged snapshot, if there is one, for what the flags name.
func (c *Config) takeStaged() (staged bool, err error) {
	path := filepath.Join(c.DataDir, StagedSnapshot)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	id, err := os.ReadFile(filepath.Join(c.DataDir, StagedID))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read the ID of the restore: %w", err)
	}
	c.RestoreSnapshot, c.RestoreID = path, strings.TrimSpace(string(id))
	return true, nil
}

// restored is what a cluster is known by that begins with a snapshot.
func (c *Config) restored(digest string) string {
	if c.RestoreID == "" {
		return digest
	}
	sum := sha256.Sum256([]byte(digest + " " + c.RestoreID))
	return hex.EncodeToString(sum[:])
}

// apply has the member begin with the snapshot.
func (o *origin) apply(config *replica.Config) {
	if o == nil {
		return
	}
	logger := config.Logger
	config.Cluster = config.Cluster.FromSnapshot(o.digest)
	config.Restore = &replica.Restore{Snapshot: o.digest, Build: func(ctx context.Context, dir string) error {
		return o.file.Restore(ctx, dir, machine.Options{Logger: logger, CacheBytes: restoreCacheBytes})
	}}
}

func (o *origin) close() {
	if o != nil && o.file != nil {
		_ = o.file.Close() // it was only read
	}
}

package kvserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

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
	if c.RestoreSnapshot == "" {
		return nil, nil
	}
	known, err := replica.LoadIdentity(c.DataDir)
	if err != nil {
		return nil, err
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
	return o, nil
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

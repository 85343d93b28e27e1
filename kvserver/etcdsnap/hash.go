package etcdsnap

import (
	"context"
	"fmt"
	"hash"
	"hash/crc32"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"muster/kvserver/machine"
)

// Hash is the answer to etcd's Hash: over everything a snapshot of the image
// would hold, but for what etcd leaves out because members may differ in it.
// An etcd that was given the same content has the same hash.
func Hash(ctx context.Context, image *machine.Image) (uint32, error) {
	h := &hasher{crc: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	if err := contents(ctx, image, h); err != nil {
		return 0, fmt.Errorf("hash the store: %w", err)
	}
	return h.crc.Sum32(), nil
}

type hasher struct {
	crc  hash.Hash32
	name []byte // of the present bucket
}

func (h *hasher) bucket(b backend.Bucket) error {
	h.name = b.Name()
	h.crc.Write(h.name)
	return nil
}

func (h *hasher) put(key, value []byte) error {
	if !schema.DefaultIgnores(h.name, key) {
		h.crc.Write(key)
		h.crc.Write(value)
	}
	return nil
}

package machine

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/mvcc"
)

// Chunk returns the beginning of a range, bounded in bytes; see
// mvcc.Store.Chunk. The request must have passed CheckRange. Errors are those
// of Range.
func (m *Machine) Chunk(ctx context.Context, r *pb.RangeRequest, maxBytes int) (mvcc.Chunk, error) {
	g, err := m.stores.acquire()
	if err != nil {
		return mvcc.Chunk{}, err
	}
	defer g.release()
	return g.store.Chunk(ctx, r, maxBytes)
}

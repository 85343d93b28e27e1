package mvcc

import (
	"bytes"
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Chunk is a part of what a range has.
type Chunk struct {
	// Revision is the current one.
	Revision int64
	// KeyValues are in key order.
	KeyValues []*mvccpb.KeyValue
	// Next is the first key that the range has beyond the chunk; nil when there
	// is none.
	Next []byte
}

// Chunk returns the beginning of a range: as many keys as the limit allows,
// but no more once they have maxBytes together. Unlike Range it counts nothing,
// and neither sorts nor filters. Errors are those of Range.
func (s *Store) Chunk(ctx context.Context, r *pb.RangeRequest, maxBytes int) (Chunk, error) {
	for {
		head := s.Head()
		chunk, err := View{reader: s.reads, head: head}.chunk(ctx, r, maxBytes)
		if s.Head().Compacted == head.Compacted {
			return chunk, err
		}
		// As in Range: versions may have been missing.
	}
}

func (v View) chunk(ctx context.Context, r *pb.RangeRequest, maxBytes int) (Chunk, error) {
	rev, err := v.resolve(r.Revision)
	if err != nil {
		return Chunk{}, err
	}
	limit := r.Limit
	if limit <= 0 {
		limit = math.MaxInt64
	}
	chunk, size := Chunk{Revision: v.head.Current}, 0
	err = v.visit(ctx, r.Key, r.RangeEnd, rev, func(raw []byte) (bool, error) {
		record, err := decodeRecord(raw)
		if err != nil {
			return false, err
		}
		if int64(len(chunk.KeyValues)) >= limit || size >= maxBytes {
			chunk.Next = bytes.Clone(record.Key)
			return false, nil
		}
		if r.KeysOnly {
			record.Value, record.Lease = nil, 0 // as in Range
		}
		size += len(record.Key) + len(record.Value)
		chunk.KeyValues = append(chunk.KeyValues, record.KeyValue())
		return true, nil
	})
	if err != nil {
		return Chunk{}, err
	}
	return chunk, nil
}

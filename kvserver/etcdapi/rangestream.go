package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
)

// chunkBytes is about how many bytes of keys and values one message of a stream
// has; a single larger one still fits.
const chunkBytes = 1 << 20

// RangeStream implements etcdserverpb.KVServer. Whatever the range has, this
// member holds one chunk of it at a time, and nothing of the store while it
// waits for the client: when the history is compacted meanwhile, the stream
// ends with ErrCompacted.
func (s *kvService) RangeStream(r *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if err := checkRangeStream(r); err != nil {
		return wireError(err)
	}
	ctx := stream.Context()
	if err := s.awaitRead(ctx, r.GetSerializable()); err != nil {
		return wireError(err)
	}
	err := s.permittedRead(ctx, func(rights auth.Rights) error {
		return rights.Read(r.GetKey(), r.GetRangeEnd())
	}, func() error {
		return s.streamRange(ctx, r, func(response *pb.RangeResponse) error {
			return stream.Send(&pb.RangeStreamResponse{RangeResponse: response})
		})
	})
	if err != nil {
		return wireError(err)
	}
	return nil
}

// checkRangeStream is machine.CheckRange, and refuses in etcd's words what
// needs all of a range at once. Without an order the target does not matter:
// the keys come in theirs. (etcd sorts each message by the target, and then
// goes on behind its last key, so that keys are left out or come twice.)
func checkRangeStream(r *pb.RangeRequest) error {
	if err := machine.CheckRange(r); err != nil {
		return err
	}
	inKeyOrder := r.GetSortOrder() == pb.RangeRequest_ASCEND && r.GetSortTarget() == pb.RangeRequest_KEY
	if r.GetSortOrder() != pb.RangeRequest_NONE && !inKeyOrder {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.GetMinModRevision() != 0 || r.GetMaxModRevision() != 0 || r.GetMinCreateRevision() != 0 || r.GetMaxCreateRevision() != 0 {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

// streamRange sends the range at one revision. Only the last message has the
// header, the count of all keys, and whether the limit left any out.
func (s *kvService) streamRange(ctx context.Context, r *pb.RangeRequest, send func(*pb.RangeResponse) error) error {
	if r.GetCountOnly() {
		counted, err := s.store.Range(ctx, r)
		if err != nil {
			return err
		}
		return send(&pb.RangeResponse{Header: s.stamp(counted.GetHeader()), Count: counted.GetCount()})
	}
	rest := proto.CloneOf(r)
	header := &pb.ResponseHeader{}
	count, last := int64(0), false
	for !last {
		chunk, err := s.store.Chunk(ctx, rest, chunkBytes)
		if err != nil {
			return err
		}
		if header.GetRevision() == 0 {
			header.Revision = chunk.Revision
			if rest.GetRevision() <= 0 {
				rest.Revision = chunk.Revision
			}
		}
		got := int64(len(chunk.KeyValues))
		count += got
		response := &pb.RangeResponse{Kvs: chunk.KeyValues}
		last = chunk.Next == nil || r.GetLimit() > 0 && got == rest.GetLimit()
		rest.Key, rest.Limit = chunk.Next, rest.GetLimit()-got
		if last {
			response.Header, response.Count, response.More = s.stamp(header), count, chunk.Next != nil
		}
		if response.GetMore() {
			left, err := s.store.Range(ctx, &pb.RangeRequest{Key: rest.GetKey(), RangeEnd: r.GetRangeEnd(), Revision: rest.GetRevision(), CountOnly: true})
			if err != nil {
				return err
			}
			response.Count += left.GetCount()
		}
		if err := send(response); err != nil {
			return err
		}
	}
	return nil
}

package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
)

type kvService struct {
	pb.UnimplementedKVServer
	*api
}

var _ pb.KVServer = (*kvService)(nil)

// Range implements etcdserverpb.KVServer.
func (s *kvService) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := machine.CheckRange(r); err != nil {
		return nil, wireError(err)
	}
	if err := s.awaitRead(ctx, r.GetSerializable()); err != nil {
		return nil, wireError(err)
	}
	var response *pb.RangeResponse
	err := s.permittedRead(ctx, func(rights auth.Rights) error {
		return rights.Read(r.GetKey(), r.GetRangeEnd())
	}, func() (err error) {
		response, err = s.store.Range(ctx, r)
		return err
	})
	if err != nil {
		return nil, wireError(err)
	}
	s.stamp(response.GetHeader())
	return response, nil
}

// Put implements etcdserverpb.KVServer.
func (s *kvService) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := s.checkSpace(ctx, putCost(r)); err != nil {
		return nil, wireError(err)
	}
	if err := machine.CheckPut(r); err != nil {
		return nil, wireError(err)
	}
	return write[*pb.PutResponse](ctx, s.api, &pb.InternalRaftRequest{Put: r})
}

// DeleteRange implements etcdserverpb.KVServer.
func (s *kvService) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := machine.CheckDeleteRange(r); err != nil {
		return nil, wireError(err)
	}
	return write[*pb.DeleteRangeResponse](ctx, s.api, &pb.InternalRaftRequest{DeleteRange: r})
}

// Txn implements etcdserverpb.KVServer. A transaction that cannot write does
// not go through the log.
func (s *kvService) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := s.checkSpace(ctx, txnCost(r)); err != nil {
		return nil, wireError(err)
	}
	if err := machine.CheckTxn(r, s.limits.MaxTxnOps); err != nil {
		return nil, wireError(err)
	}
	if !machine.TxnIsReadOnly(r) {
		return write[*pb.TxnResponse](ctx, s.api, &pb.InternalRaftRequest{Txn: r})
	}
	if err := s.awaitRead(ctx, machine.TxnIsSerializable(r)); err != nil {
		return nil, wireError(err)
	}
	var response *pb.TxnResponse
	err := s.permittedRead(ctx, func(rights auth.Rights) error {
		return rights.Txn(r, nil) // there is no put
	}, func() (err error) {
		response, err = s.store.ReadTxn(ctx, r)
		return err
	})
	if err != nil {
		return nil, wireError(err)
	}
	s.stamp(response.GetHeader())
	return response, nil
}

// Compact implements etcdserverpb.KVServer. With physical set it answers once
// this member has removed the history.
func (s *kvService) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	response, err := write[*pb.CompactionResponse](ctx, s.api, &pb.InternalRaftRequest{Compaction: r})
	if err != nil || !r.GetPhysical() {
		return response, err
	}
	if err := scrub(ctx, s.store.Space()); err != nil {
		return nil, wireError(err)
	}
	return response, nil
}

// scrub removes, on this member, what compactions have made unreadable.
func scrub(ctx context.Context, space machine.Space) error {
	for done := false; !done; {
		err := ctx.Err()
		if err == nil {
			done, err = space.ScrubStep(ctx, scrubKeys)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// scrubKeys is how much history one step removes.
const scrubKeys = 1000

// headed is a response with a header.
type headed interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}

// write replicates a request.
func write[R headed](ctx context.Context, a *api, request *pb.InternalRaftRequest) (R, error) {
	var none R
	applied, err := a.propose(ctx, request)
	if err != nil {
		return none, wireError(err)
	}
	response := applied.(R)
	a.stamp(response.GetHeader())
	return response, nil
}

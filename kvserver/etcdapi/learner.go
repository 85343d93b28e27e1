package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

func (a *api) isLearner() bool { return a.store.Membership().IsLearner(a.replica.Member()) }

// learnerUnary refuses what a learner does not answer: all but its status and
// what it may answer from its own store. It is etcd's rule.
func (a *api) learnerUnary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if a.isLearner() {
		switch r := request.(type) {
		case *pb.StatusRequest:
		case *pb.RangeRequest:
			if !r.GetSerializable() {
				return nil, rpctypes.ErrGRPCNotSupportedForLearner
			}
		default:
			return nil, rpctypes.ErrGRPCNotSupportedForLearner
		}
	}
	return handle(ctx, request)
}

// learnerStream is the rule for streams: only a snapshot may be taken.
func (a *api) learnerStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if info.FullMethod != pb.Maintenance_Snapshot_FullMethodName && a.isLearner() {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	return handle(server, stream)
}

package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// learnerRule refuses what a learner does not answer; it is etcd's.
type learnerRule struct{ isLearner func() bool }

// unary refuses all but the status and what may be answered from the own store.
func (l learnerRule) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if l.isLearner() {
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

// stream allows only a snapshot.
func (l learnerRule) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if info.FullMethod != pb.Maintenance_Snapshot_FullMethodName && l.isLearner() {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	return handle(server, stream)
}

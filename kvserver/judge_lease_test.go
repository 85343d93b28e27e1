package kvserver

import (
	"bytes"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// lessor makes a call of a method of the lease service.
func lessor[Q, R proto.Message](name string, method func(pb.LeaseClient, context.Context, Q, ...grpc.CallOption) (R, error), request Q) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		return method(pb.NewLeaseClient(conn), ctx, request)
	}}
}

func grant(name string, id, ttl int64) call {
	return lessor(name, pb.LeaseClient.LeaseGrant, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
}

func revoke(name string, id int64) call {
	return lessor(name, pb.LeaseClient.LeaseRevoke, &pb.LeaseRevokeRequest{ID: id})
}

// timeToLive reports whether the time left is what was granted, give or take
// what the test itself takes.
func timeToLive(name string, id int64, keys bool) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		response, err := pb.NewLeaseClient(conn).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
		if left := response.GetTTL(); left > response.GetGrantedTTL()-60 && left <= response.GetGrantedTTL() && left > 0 {
			response.TTL = response.GetGrantedTTL()
		}
		slices.SortFunc(response.GetKeys(), bytes.Compare) // etcd's order is none
		return response, err
	}}
}

// keepAlive opens a stream for each ID and returns the last answer.
func keepAlive(name string, ids ...int64) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		var response *pb.LeaseKeepAliveResponse
		stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
		for _, id := range ids {
			if err == nil {
				err = stream.Send(&pb.LeaseKeepAliveRequest{ID: id})
			}
			if err == nil {
				response, err = stream.Recv()
			}
		}
		return response, err
	}}
}

func leaseCalls() []call {
	key := []byte("leased")
	return []call{
		grant("lease: grant", 100, 1000),
		grant("lease: grant again", 100, 1000),
		grant("lease: below the minimum", 101, 1),
		grant("lease: no time", 102, 0),
		grant("lease: negative time", 103, -5),
		grant("lease: the longest", 104, 9_000_000_000),
		grant("lease: too long", 105, 9_000_000_001),
		grant("lease: negative ID", -1, 100),
		put("lease: put", &pb.PutRequest{Key: key, Value: []byte("v"), Lease: 100}),
		put("lease: put another", &pb.PutRequest{Key: append(key, '2'), Lease: 100}),
		put("lease: put with no such lease", &pb.PutRequest{Key: key, Lease: 999}),
		put("lease: put that keeps it", &pb.PutRequest{Key: key, Value: []byte("w"), IgnoreLease: true}),
		timeToLive("lease: time to live", 100, false),
		timeToLive("lease: time to live with keys", 100, true),
		timeToLive("lease: time to live of none", 999, true),
		keepAlive("lease: keep alive", 100),
		keepAlive("lease: keep alive none", 999),
		keepAlive("lease: keep alive none, then one", 999, 100),
		revoke("lease: revoke", 100),
		revoke("lease: revoke again", 100),
		revoke("lease: revoke none", 999),
		rangeOf("lease: the keys are gone", &pb.RangeRequest{Key: key, RangeEnd: []byte("leasee")}),
		timeToLive("lease: time to live of the revoked", 100, true),
	}
}

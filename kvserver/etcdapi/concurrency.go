package etcdapi

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// registerConcurrency serves locks and elections with etcd's own services,
// which are clients of the three given. Their calls come from the same process
// with the context, and so the identity, of whoever asked for the lock. Waiting
// ends with ctx.
func registerConcurrency(ctx context.Context, server *grpc.Server, kv pb.KVServer, leases *leaseService, watches pb.WatchServer) {
	client := clientv3.NewCtxClient(context.WithoutCancel(ctx))
	client.KV = clientv3.NewKVFromKVClient(adapter.KvServerToKvClient(kv), client)
	client.Lease = clientv3.NewLeaseFromLeaseClient(adapter.LeaseServerToLeaseClient(guardedLeases{leases}), client, time.Second)
	client.Watcher = watcherOfMany{clientv3.NewWatchFromWatchClient(adapter.WatchServerToWatchClient(watches), client)}
	context.AfterFunc(ctx, func() { _ = client.Close() })
	v3lockpb.RegisterLockServer(server, v3lock.NewLockServer(client))
	v3electionpb.RegisterElectionServer(server, v3election.NewElectionServer(client))
}

// guardedLeases asks for what the interceptors of the gRPC server ask for,
// which calls from inside do not pass.
type guardedLeases struct{ *leaseService }

// LeaseGrant implements etcdserverpb.LeaseServer.
func (s guardedLeases) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := s.admit(ctx, needOf(pb.Lease_LeaseGrant_FullMethodName, r)); err != nil {
		return nil, wireError(err)
	}
	return s.leaseService.LeaseGrant(ctx, r)
}

// watcherOfMany keeps those apart who watch through one client: it puts watches
// with equal outgoing metadata on one stream, which has the identity of the
// first of them.
type watcherOfMany struct{ clientv3.Watcher }

// Watch implements clientv3.Watcher.
func (w watcherOfMany) Watch(ctx context.Context, key string, options ...clientv3.OpOption) clientv3.WatchChan {
	shown, _ := metadata.FromIncomingContext(ctx)
	name, certified := certifiedName(ctx)
	apart := metadata.Join(shown, metadata.Pairs("certificate", fmt.Sprintf("%v %s", certified, name)))
	return w.Watcher.Watch(metadata.NewOutgoingContext(ctx, apart), key, options...)
}

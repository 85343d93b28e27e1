// Package etcdapi speaks etcd's gRPC API, version 3. It translates: requests
// are checked and handed to the replica, state is read from the store, and
// errors get etcd's texts and codes. One file holds one service.
package etcdapi

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // some clients compress, and etcd understands them
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
	"muster/kvserver/metrics"
	"muster/kvserver/mvcc"
	"muster/kvserver/replica"
	"muster/kvserver/watch"
)

// Replica replicates requests and makes reads linearizable.
type Replica interface {
	Propose(ctx context.Context, request *pb.InternalRaftRequest) (replica.Outcome, error)
	Reconfigure(ctx context.Context, change replica.Change) (replica.Changed, error)
	MoveLeader(ctx context.Context, to uint64) error
	Linearize(ctx context.Context) error
	Ready() <-chan struct{}
	Status() replica.Status
	Member() uint64
	Cluster() uint64
	// NextID returns a number that no member has returned before.
	NextID() uint64
}

// Store is the replicated state, read as this member has it.
type Store interface {
	Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error)
	Chunk(ctx context.Context, r *pb.RangeRequest, maxBytes int) (mvcc.Chunk, error)
	ReadTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error)
	Members() []machine.Member
	Membership() machine.Membership
	Alarms() []*pb.AlarmMember
	Leases() machine.Leases
	Auth() *auth.State
	Revision() int64
	Space() machine.Space
	History() machine.History
	Image() (*machine.Image, error)
}

// Limits bound one request; each is etcd's flag of the same name.
type Limits struct {
	// MaxRequestBytes bounds an encoded write.
	MaxRequestBytes int
	// MaxTxnOps bounds the operations of one branch of a transaction, nested
	// ones included.
	MaxTxnOps int
	// MaxConcurrentStreams bounds the requests under way on one connection.
	MaxConcurrentStreams uint32
	// KeepAliveMinTime is how often a client may ping; it is pinged itself every
	// KeepAliveInterval, and has to answer within KeepAliveTimeout. 0 is not at
	// all.
	KeepAliveMinTime                    time.Duration
	KeepAliveInterval, KeepAliveTimeout time.Duration
	// QuotaBytes is what the store may have in use before puts, leases and
	// transactions with puts are refused; negative for no bound.
	QuotaBytes int64
	// MinLeaseTTL is what a shorter lease is raised to, in seconds.
	MinLeaseTTL int64
	// ElectionTimeout is what a stream that requires a leader measures the
	// absence of one by.
	ElectionTimeout time.Duration
	// WatchProgressNotifyInterval is about how often a watcher that has nothing
	// to tell tells its progress.
	WatchProgressNotifyInterval time.Duration
	// RequestTimeout is how long a request may take before the client is told
	// that it timed out.
	RequestTimeout time.Duration
}

// grpcOverhead is what a message may be longer than the request it carries.
const grpcOverhead = 512 * 1024

// api is what every service needs.
type api struct {
	replica Replica
	store   Store
	limits  Limits
	access  Access
	logger  *slog.Logger
}

// Config is what the services serve. All fields are required.
type Config struct {
	Replica  Replica
	Store    Store
	Leases   LeaseKeeper
	Watches  *watch.Registry
	Exporter *etcdsnap.Exporter
	Limits   Limits
	Access   Access
	// Credentials tell what the listener's TLS has shown, which is done already.
	Credentials credentials.TransportCredentials
	// Metrics is what is counted.
	Metrics *metrics.RPC
	// Logger hears of failed logins, and of requests that take longer than
	// SlowRequest.
	Logger      *slog.Logger
	SlowRequest time.Duration
}

// requestWindow is how many bytes of requests a client may send ahead of being
// read. Left to itself gRPC looks for the best number by a ping, and its answer,
// for every small request.
const requestWindow = 1 << 20

// NewServer returns a gRPC server with every service registered. Clients that
// wait for a lock or an election wait no longer than until ctx ends, which is
// when the member stops.
func NewServer(ctx context.Context, c Config) *grpc.Server {
	a, limits := &api{replica: c.Replica, store: c.Store, limits: c.Limits, access: c.Access, logger: c.Logger}, c.Limits
	options := c.Metrics.Options()
	if limits.KeepAliveMinTime > 0 {
		options = append(options, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: limits.KeepAliveMinTime}))
	}
	if limits.KeepAliveInterval > 0 && limits.KeepAliveTimeout > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{Time: limits.KeepAliveInterval, Timeout: limits.KeepAliveTimeout}))
	}
	learner := learnerRule{isLearner: func() bool { return c.Store.Membership().IsLearner(c.Replica.Member()) }}
	server := grpc.NewServer(append(options,
		grpc.Creds(c.Credentials),
		grpc.MaxRecvMsgSize(limits.MaxRequestBytes+grpcOverhead),
		grpc.MaxConcurrentStreams(limits.MaxConcurrentStreams),
		grpc.StaticStreamWindowSize(requestWindow), grpc.StaticConnWindowSize(requestWindow),
		grpc.MaxHeaderListSize(http.DefaultMaxHeaderBytes),
		grpc.ChainUnaryInterceptor(learner.unary, (&slowRequests{expected: c.SlowRequest, logger: c.Logger}).watch, a.requireLeader, a.guardUnary),
		grpc.ChainStreamInterceptor(learner.stream, newLeaderRule(a.hasLeader, limits.ElectionTimeout).stream, a.guardStream),
	)...)
	kv, leases, watches := &kvService{api: a}, &leaseService{api: a, keeper: c.Leases}, &watchService{api: a, watches: c.Watches}
	pb.RegisterKVServer(server, kv)
	pb.RegisterClusterServer(server, &clusterService{api: a})
	pb.RegisterMaintenanceServer(server, &maintenanceService{api: a, exporter: c.Exporter})
	pb.RegisterWatchServer(server, watches)
	pb.RegisterLeaseServer(server, leases)
	pb.RegisterAuthServer(server, &authService{api: a})
	registerConcurrency(ctx, server, kv, leases, watches)
	healthpb.RegisterHealthServer(server, newHealth(ctx, c.Replica.Ready()))
	c.Metrics.Know(server)
	return server
}

// newHealth says, of the server as a whole, that it serves once the member is
// ready. etcd does not answer before.
func newHealth(ctx context.Context, ready <-chan struct{}) *health.Server {
	server := health.NewServer()
	server.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	go func() {
		select {
		case <-ready:
			server.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		case <-ctx.Done():
		}
	}()
	return server
}

// header is the header of an answer that has nothing to do with a revision.
func (a *api) header() *pb.ResponseHeader {
	return a.stamp(&pb.ResponseHeader{})
}

// headerNow is the header of an answer about the present.
func (a *api) headerNow() *pb.ResponseHeader {
	return a.stamp(&pb.ResponseHeader{Revision: a.store.Revision()})
}

// stamp completes a header that carries a revision already.
func (a *api) stamp(header *pb.ResponseHeader) *pb.ResponseHeader {
	header.ClusterId = a.replica.Cluster()
	header.MemberId = a.replica.Member()
	header.RaftTerm = a.replica.Status().Term
	return header
}

// awaitRead makes the store fit to be read. A serializable read needs the
// member to have caught up once since it started: before, the store may be
// older than what this member has shown already.
func (a *api) awaitRead(ctx context.Context, serializable bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.limits.RequestTimeout)
	defer cancel()
	if !serializable {
		return a.replica.Linearize(ctx)
	}
	select {
	case <-a.replica.Ready():
		return nil
	case <-ctx.Done():
		return replica.ErrTimeout
	}
}

// idSize is what the ID that the replica adds to a request takes at most.
const idSize = 1 + binary.MaxVarintLen64

// propose replicates a request and returns its response. The header says who
// asks, except for somebody who is about to say so.
func (a *api) propose(ctx context.Context, request *pb.InternalRaftRequest) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, a.limits.RequestTimeout)
	defer cancel()
	if request.GetAuthenticate() == nil {
		who, err := a.identity(ctx)
		if err != nil {
			return nil, err
		}
		request.Header = &pb.RequestHeader{Username: who.User, AuthRevision: who.Revision}
	}
	// As in etcd what counts is what goes into the log.
	if proto.Size(request)+idSize > a.limits.MaxRequestBytes {
		return nil, rpctypes.ErrGRPCRequestTooLarge
	}
	outcome, err := a.replica.Propose(ctx, request)
	if err == nil {
		err = outcome.Err
	}
	if err != nil {
		return nil, err
	}
	return outcome.Response, nil
}

// timedOut is err, or etcd's timeout when ctx is what ended the request.
func timedOut(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return replica.ErrTimeout
	}
	return err
}

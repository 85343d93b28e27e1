package etcdapi

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// patience is how many election timeouts a stream that requires a leader goes
// on without one; etcd's number. To connect again costs more than to wait.
const patience = 3

func (a *api) hasLeader() bool { return a.replica.Status().Leader != 0 }

// requireLeader refuses requests that carry the hasleader metadata while this
// member knows no leader.
func (a *api) requireLeader(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if requiresLeader(ctx) && !a.hasLeader() {
		return nil, rpctypes.ErrGRPCNoLeader
	}
	return handle(ctx, request)
}

// leaderRule does the same for streams, and ends those that have begun when
// there was no leader for a while.
type leaderRule struct {
	hasLeader func() bool
	interval  time.Duration // the election timeout

	mu      sync.Mutex
	streams map[*context.CancelCauseFunc]struct{}
	looking bool // while there are streams
}

func newLeaderRule(hasLeader func() bool, interval time.Duration) *leaderRule {
	return &leaderRule{hasLeader: hasLeader, interval: interval, streams: map[*context.CancelCauseFunc]struct{}{}}
}

func requiresLeader(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	want := md.Get(rpctypes.MetadataRequireLeaderKey)
	return len(want) > 0 && want[0] == rpctypes.MetadataHasLeader
}

// stream is a grpc.StreamServerInterceptor. A stream that is ended finds the
// error as the cause of its context's end.
func (l *leaderRule) stream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if !requiresLeader(stream.Context()) {
		return handle(server, stream)
	}
	if !l.hasLeader() {
		return rpctypes.ErrGRPCNoLeader
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	l.add(&cancel)
	defer l.remove(&cancel)
	return handle(server, streamWithContext{stream, ctx})
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s streamWithContext) Context() context.Context { return s.ctx }

// add begins to look out for a leader with the first stream.
func (l *leaderRule) add(cancel *context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams[cancel] = struct{}{}
	if !l.looking {
		l.looking = true
		l.lookAgain(0)
	}
}

func (l *leaderRule) remove(cancel *context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.streams, cancel)
}

// lookAgain looks out after a while, and again as long as there are streams;
// missed is how often in a row there was no leader.
func (l *leaderRule) lookAgain(missed int) {
	time.AfterFunc(l.interval, func() {
		if l.hasLeader() {
			missed = 0
		} else {
			missed++
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if missed >= patience {
			for cancel := range l.streams {
				(*cancel)(rpctypes.ErrGRPCNoLeader)
			}
			clear(l.streams)
		}
		if l.looking = len(l.streams) > 0; l.looking {
			l.lookAgain(missed)
		}
	})
}

package etcdapi

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// slowPause is how long nothing is said after a slow request: a member that is
// overloaded must not be busy with saying so.
const slowPause = 100 * time.Millisecond

// slowRequests logs requests that take longer than expected. What they are
// about stays out of the log: it may be a secret.
type slowRequests struct {
	expected time.Duration
	logger   *slog.Logger

	quiet  atomic.Int64 // until then, in Unix nanoseconds
	unsaid atomic.Int64 // slow requests since something was said
}

func (s *slowRequests) watch(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := time.Now()
	response, err := handle(ctx, request)
	ended := time.Now()
	if ended.Sub(began) <= s.expected {
		return response, err
	}
	if until := s.quiet.Load(); ended.UnixNano() < until || !s.quiet.CompareAndSwap(until, ended.Add(slowPause).UnixNano()) {
		s.unsaid.Add(1)
		return response, err
	}
	size := 0
	if message, ok := request.(proto.Message); ok {
		size = proto.Size(message)
	}
	s.logger.Warn("a request took long", "method", info.FullMethod, "took", ended.Sub(began), "expected", s.expected,
		"bytes", size, "from", caller(ctx), "code", status.Code(err).String(), "others-not-logged", s.unsaid.Swap(0))
	return response, err
}

// caller is the address that a request comes from.
func caller(ctx context.Context) string {
	from, ok := peer.FromContext(ctx)
	if !ok || from.Addr == nil {
		return "unknown"
	}
	return from.Addr.String()
}

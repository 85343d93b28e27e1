package etcdapi

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// A slow request is logged, without what it is about; of many at once, one.
func TestSlowRequestsAreLogged(t *testing.T) {
	var log bytes.Buffer
	requests := &slowRequests{expected: time.Hour, logger: slog.New(slog.NewTextHandler(&log, nil))}
	call := func() {
		_, _ = requests.watch(t.Context(), &pb.PutRequest{Key: []byte("a-key"), Value: []byte("a-secret")}, &grpc.UnaryServerInfo{FullMethod: "/put"}, func(context.Context, any) (any, error) { return nil, nil })
	}
	call()
	if log.Len() > 0 {
		t.Errorf("a quick request is logged: %s", &log)
	}
	requests.expected = -1
	call()
	if !strings.Contains(log.String(), "method=/put") || strings.Contains(log.String(), "a-") {
		t.Errorf("said %s", &log)
	}
	requests.quiet.Store(time.Now().Add(time.Hour).UnixNano())
	call()
	call()
	requests.quiet.Store(0)
	call()
	if n := strings.Count(log.String(), "took long"); n != 2 || !strings.Contains(log.String(), "others-not-logged=2") {
		t.Errorf("said %d times: %s", n, &log)
	}
}

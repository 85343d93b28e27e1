package metrics

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Clients cannot make up series by what they say of themselves.
func TestVersionsOfClients(t *testing.T) {
	m := NewRPC(prometheus.NewRegistry(), false)
	for _, told := range []string{"3.7", "3.7", "3.5.21", "", "3.7.x", "4.0", "3.100", "sneaky"} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("client-api-version", told))
		m.unaryBy.count(ctx)
	}
	m.streamBy.count(t.Context())
	for version, want := range map[string]float64{"3.7": 2, "3.5.21": 1, "unknown": 5} {
		if got := testutil.ToFloat64(m.unaryBy.calls.WithLabelValues("unary", version)); got != want {
			t.Errorf("%v calls of version %s, want %v", got, version, want)
		}
	}
	if n := testutil.CollectAndCount(m.unaryBy.calls); n != 4 {
		t.Errorf("%d series, want 4", n)
	}
}

// What counting costs a call.
func BenchmarkUnary(b *testing.B) {
	m := NewRPC(prometheus.NewRegistry(), false)
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs("client-api-version", "3.7"))
	info := &grpc.UnaryServerInfo{FullMethod: pb.KV_Put_FullMethodName}
	count := m.calls.UnaryServerInterceptor()
	handle := func(context.Context, any) (any, error) { return nil, nil }
	b.ReportAllocs()
	for b.Loop() {
		_, _ = count(ctx, nil, info, func(ctx context.Context, request any) (any, error) { return m.unary(ctx, request, info, handle) })
	}
}

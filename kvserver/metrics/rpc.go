package metrics

import (
	"context"
	"maps"
	"regexp"
	"sync/atomic"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that is wrapped
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// RPC is what the serving of clients counts.
type RPC struct {
	calls          *grpcprom.ServerMetrics
	sent, received prometheus.Counter
	defragmenting  prometheus.Gauge
	promoted       prometheus.Counter
	notPromoted    *prometheus.CounterVec
	unaryBy        byVersion
	streamBy       byVersion
	// durations are of methods that take long.
	durations map[string]prometheus.Observer
}

// NewRPC makes the collectors and registers them; nil registers nowhere.
// Extensive adds histograms of how long calls take.
func NewRPC(registry prometheus.Registerer, extensive bool) *RPC {
	f := factory{promauto.With(registry)}
	longer := prometheus.ExponentialBuckets(0.01, 2, 15)
	m := &RPC{
		sent:          f.counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of the answers to gRPC clients."),
		received:      f.counter("etcd_network_client_grpc_received_bytes_total", "Bytes of the requests of gRPC clients."),
		defragmenting: f.gauge("etcd_disk_defrag_inflight", "1 while the store is being defragmented."),
		promoted:      f.counter("etcd_server_learner_promote_successes", "Learners that this member promoted."),
		notPromoted:   f.counters("etcd_server_learner_promote_failures", "Learners that this member could not promote.", "Reason"),
		durations: map[string]prometheus.Observer{
			pb.Maintenance_Defragment_FullMethodName: f.histogram("etcd_disk_backend_defrag_duration_seconds", "How long defragmentations took.", prometheus.ExponentialBuckets(0.1, 2, 13)),
			pb.Maintenance_Snapshot_FullMethodName:   f.histogram("etcd_disk_backend_snapshot_duration_seconds", "How long it took to hand out a snapshot.", prometheus.ExponentialBuckets(0.01, 2, 17)),
			pb.Maintenance_Hash_FullMethodName:       f.histogram("etcd_mvcc_hash_duration_seconds", "How long it took to hash the store.", longer),
			pb.Maintenance_HashKV_FullMethodName:     f.histogram("etcd_mvcc_hash_rev_duration_seconds", "How long it took to hash the keys up to a revision.", longer),
		},
	}
	versions := f.counters("etcd_server_client_requests_total", "Calls by the API version that the client says it speaks.", "type", "client_api_version")
	m.unaryBy.kind, m.unaryBy.calls = "unary", versions
	m.streamBy.kind, m.streamBy.calls = "stream", versions
	var options []grpcprom.ServerMetricsOption
	if extensive {
		options = append(options, grpcprom.WithServerHandlingTimeHistogram())
	}
	m.calls = grpcprom.NewServerMetrics(options...)
	if registry != nil {
		registry.MustRegister(m.calls)
	}
	return m
}

// Options make a server count. They come before those that refuse calls, so
// that these are counted too.
func (m *RPC) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(m.calls.UnaryServerInterceptor(), m.unary),
		grpc.ChainStreamInterceptor(m.calls.StreamServerInterceptor(), m.stream),
		grpc.ForceServerCodecV2(countingCodec{encoding.GetCodecV2("proto"), m}),
	}
}

// Know makes every method of the server appear before it is called.
func (m *RPC) Know(server *grpc.Server) { m.calls.InitializeMetrics(server) }

func (m *RPC) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	m.unaryBy.count(ctx)
	duration, timed := m.durations[info.FullMethod]
	switch {
	case timed:
	case info.FullMethod == pb.Cluster_MemberPromote_FullMethodName:
		response, err := handle(ctx, request)
		if err != nil {
			m.notPromoted.WithLabelValues(status.Convert(err).Message()).Inc()
		} else {
			m.promoted.Inc()
		}
		return response, err
	default:
		return handle(ctx, request)
	}
	if info.FullMethod == pb.Maintenance_Defragment_FullMethodName {
		m.defragmenting.Inc()
		defer m.defragmenting.Dec()
	}
	began := time.Now()
	response, err := handle(ctx, request)
	if err == nil {
		duration.Observe(time.Since(began).Seconds())
	}
	return response, err
}

func (m *RPC) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	m.streamBy.count(stream.Context())
	began := time.Now()
	err := handle(service, stream)
	if duration, timed := m.durations[info.FullMethod]; timed && err == nil {
		duration.Observe(time.Since(began).Seconds())
	}
	return err
}

// byVersion counts calls of one kind by the version that etcd's clients tell.
// What is not a version counts as unknown: clients must not be able to make up
// series.
type byVersion struct {
	kind  string
	calls *prometheus.CounterVec
	known atomic.Pointer[map[string]prometheus.Counter] // replaced as a whole
}

func (b *byVersion) count(ctx context.Context) {
	version := ""
	if told := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(told) == 1 {
		version = told[0]
	}
	if known := b.known.Load(); known != nil {
		if counter, ok := (*known)[version]; ok {
			counter.Inc()
			return
		}
	}
	if !versionShape.MatchString(version) {
		b.calls.WithLabelValues(b.kind, "unknown").Inc()
		return
	}
	counter := b.calls.WithLabelValues(b.kind, version)
	counter.Inc()
	next := map[string]prometheus.Counter{version: counter}
	if known := b.known.Load(); known != nil {
		maps.Copy(next, *known)
	}
	b.known.Store(&next) // one that is lost to another is found again
}

var versionShape = regexp.MustCompile(`^3\.[0-9]{1,2}(\.[0-9]{1,2})?$`)

// countingCodec counts messages as they are on the wire, without framing.
type countingCodec struct {
	encoding.CodecV2
	*RPC
}

// Marshal implements encoding.CodecV2.
func (c countingCodec) Marshal(message any) (mem.BufferSlice, error) {
	data, err := c.CodecV2.Marshal(message)
	c.sent.Add(float64(data.Len()))
	return data, err
}

// Unmarshal implements encoding.CodecV2.
func (c countingCodec) Unmarshal(data mem.BufferSlice, message any) error {
	c.received.Add(float64(data.Len()))
	return c.CodecV2.Unmarshal(data, message)
}

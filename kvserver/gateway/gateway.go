// Package gateway serves etcd's gRPC API as JSON over HTTP, under etcd's paths.
package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/tmc/grpc-websocket-proxy/wsproxy"
	etcdgw "go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	electiongw "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb/gw"
	lockgw "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
)

// pipeBytes is the buffer of the way to the gRPC server, in each direction.
const pipeBytes = 64 * 1024

// Gateway translates between JSON and a gRPC server in the same process. What
// reaches that server through it has no certificate, so that nobody is taken
// for the user whom a certificate names; a token in the Authorization header is
// passed on.
type Gateway struct {
	handler http.Handler
	pipe    *bufconn.Listener
	close   func() error
}

// New returns a gateway to whatever gRPC server is served on Listener.
func New(logger *slog.Logger) (*Gateway, error) {
	pipe := bufconn.Listen(pipeBytes)
	conn, err := grpc.NewClient("passthrough:gateway",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect the JSON gateway: %w", err)
	}
	// The form of the JSON is etcd's: names as in the .proto files, nothing for
	// a zero, unknown fields are passed over.
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{
		Marshaler: &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		},
	}))
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		etcdgw.RegisterKVHandler,
		etcdgw.RegisterWatchHandler,
		etcdgw.RegisterLeaseHandler,
		etcdgw.RegisterClusterHandler,
		etcdgw.RegisterMaintenanceHandler,
		etcdgw.RegisterAuthHandler,
		lockgw.RegisterLockHandler,
		electiongw.RegisterElectionHandler,
	} {
		if err := register(context.Background(), mux, conn); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	return &Gateway{pipe: pipe, close: sync.OnceValue(conn.Close), handler: wsproxy.WebsocketProxy(mux,
		// A websocket begins with GET, every method of etcd's is a POST.
		wsproxy.WithRequestMutator(func(_, outgoing *http.Request) *http.Request {
			outgoing.Method = http.MethodPost
			return outgoing
		}),
		wsproxy.WithMaxRespBodyBufferSize(math.MaxInt32),
		wsproxy.WithLogger(socketLog{logger}),
	)}, nil
}

// Listener is where the gRPC server has to be served.
func (g *Gateway) Listener() net.Listener { return g.pipe }

// ServeHTTP implements http.Handler for the paths below /v3/.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.handler.ServeHTTP(w, r) }

// Close ends the requests under way. It may be called again.
func (g *Gateway) Close() error { return g.close() }

// socketLog is the log of the websockets. Their debugging lines have what
// clients say in them, passwords included, and are dropped.
type socketLog struct{ logger *slog.Logger }

func (l socketLog) Warnln(words ...any) { l.logger.Warn("JSON gateway: " + fmt.Sprint(words...)) }

func (l socketLog) Debugln(...any) {}

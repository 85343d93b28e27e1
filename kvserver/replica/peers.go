package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"muster/kvserver/peerport"
	"muster/kvserver/replica/peerpb"
)

// maxPeerMessage bounds one message of the members' own protocol, in bytes:
// a batch, whose last request may be as large as a client is allowed.
const maxPeerMessage = 64 << 20

// peerWindow is how many bytes may be sent ahead of being read. Left to itself
// gRPC looks for the best number by a ping, and its answer, for every small
// message.
const peerWindow = 4 << 20

// peerPing is how often an idle connection between members is probed.
const peerPing = 10 * time.Second

// peers holds one connection of the members' own protocol to each other
// member, made when it is first needed.
type peers struct {
	port *peerport.Port

	mu    sync.Mutex
	conns map[uint64]*peerConn
}

type peerConn struct {
	*grpc.ClientConn
	peerURLs []string
}

func newPeers(port *peerport.Port) *peers {
	return &peers{port: port, conns: map[uint64]*peerConn{}}
}

// client returns a client of the member at its peer URLs.
func (p *peers) client(member uint64, peerURLs []string) (peerpb.PeerClient, error) {
	conn, err := p.conn(member, peerURLs)
	if err != nil {
		return nil, err
	}
	return peerpb.NewPeerClient(conn), nil
}

// ready waits until there is a connection to the member: a request that has
// never been sent is known not to have happened.
func (p *peers) ready(ctx context.Context, member uint64, peerURLs []string) (peerpb.PeerClient, error) {
	conn, err := p.readyConn(ctx, member, peerURLs)
	if err != nil {
		return nil, err
	}
	return peerpb.NewPeerClient(conn), nil
}

func (p *peers) readyConn(ctx context.Context, member uint64, peerURLs []string) (*peerConn, error) {
	conn, err := p.conn(member, peerURLs)
	if err != nil {
		return nil, err
	}
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return conn, nil
		}
		conn.Connect()
		if !conn.WaitForStateChange(ctx, state) {
			return nil, fmt.Errorf("no connection to member %x at %s: %w", member, strings.Join(peerURLs, ", "), ctx.Err())
		}
	}
}

func (p *peers) conn(member uint64, peerURLs []string) (*peerConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn := p.conns[member]; conn != nil {
		if slices.Equal(conn.peerURLs, peerURLs) {
			return conn, nil
		}
		_ = conn.Close()
	}
	conn, err := grpc.NewClient("passthrough:///"+strconv.FormatUint(member, 16),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the peer port has done TLS
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialInTurn(ctx, peerURLs, func(ctx context.Context, address string) (net.Conn, error) {
				return p.port.Dial(ctx, peerport.RPC, address, member)
			})
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: peerPing, Timeout: peerPing / 2, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage), grpc.MaxCallSendMsgSize(maxPeerMessage)),
		grpc.WithStaticStreamWindowSize(peerWindow), grpc.WithStaticConnWindowSize(peerWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to member %x at %s: %w", member, strings.Join(peerURLs, ", "), err)
	}
	p.conns[member] = &peerConn{conn, peerURLs}
	return p.conns[member], nil
}

// forget closes the connection to a member that was removed.
func (p *peers) forget(member uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn := p.conns[member]; conn != nil {
		_ = conn.Close()
		delete(p.conns, member)
	}
}

func (p *peers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, conn := range p.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

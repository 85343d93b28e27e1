// Package clientport is a member's client address: gRPC, HTTP/1 and HTTP/2 on
// one port, as etcd has it.
package clientport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/soheilhy/cmux"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
)

const (
	openTimeout = 10 * time.Second
	// idleTimeout ends an HTTP connection on which nothing is asked.
	idleTimeout = 5 * time.Minute
	// maxOpening bounds the connections that have not shown their first bytes.
	maxOpening = 1024
)

// Config describes a port.
type Config struct {
	// TLS is nil for plain TCP. It negotiates one of Protocols.
	TLS *tls.Config
	// Handler answers what is not gRPC; nil if nothing else is served.
	Handler http.Handler
	// MaxConns bounds the connections that are open at a time; more wait in the
	// system's queue. 0 is no bound.
	MaxConns int
	// MaxConcurrentStreams bounds the HTTP/2 requests under way on one
	// connection; 0 is Go's bound.
	MaxConcurrentStreams uint32
	// Sockets opens the socket; nil is net.Listen.
	Sockets func(network, address string) (net.Listener, error)
	// OpenTimeout bounds the TLS handshake together with the wait for the
	// client's first bytes; 0 is 10 s.
	OpenTimeout time.Duration
	Logger      *slog.Logger
}

// Protocols are the ones that clients may negotiate.
func Protocols() []string { return []string{"h2", "http/1.1"} }

// Port serves clients on one address.
type Port struct {
	listener *openingListener
	mux      cmux.CMux
	http     *http.Server
}

// Listen opens address (host:port).
func Listen(address string, config Config) (*Port, error) {
	if config.OpenTimeout == 0 {
		config.OpenTimeout = openTimeout
	}
	if config.Sockets == nil {
		config.Sockets = net.Listen
	}
	raw, err := config.Sockets("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for clients on %s: %w", address, err)
	}
	if config.MaxConns > 0 {
		raw = netutil.LimitListener(raw, config.MaxConns)
	}
	listener := newOpeningListener(raw, config)
	if config.Handler == nil {
		return &Port{listener: listener}, nil
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // TLS is already off the connection here
	return &Port{
		listener: listener,
		mux:      cmux.New(listener),
		http: &http.Server{
			Handler: withTLSState(config.Handler), ConnContext: keepTLSState,
			Protocols: protocols, ReadHeaderTimeout: config.OpenTimeout, IdleTimeout: idleTimeout,
			// Go takes anything above the largest int32 for its own default.
			HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: int(min(config.MaxConcurrentStreams, math.MaxInt32))},
			ErrorLog: slog.NewLogLogger(config.Logger.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Addr is the listening address.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// Serve answers until Close. The server may be shared by several ports; nil
// leaves everything to the Handler.
func (p *Port) Serve(grpcServer *grpc.Server) error {
	var err error
	switch {
	case p.http == nil:
		err = grpcServer.Serve(opened{p.listener})
	case grpcServer == nil:
		if err = p.http.Serve(opened{p.listener}); errors.Is(err, http.ErrServerClosed) {
			return nil
		}
	default:
		err = p.serveBoth(grpcServer)
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Port) serveBoth(grpcServer *grpc.Server) error {
	grpcConns := p.mux.MatchWithWriters(isGRPC)
	httpConns := p.mux.Match(cmux.Any())
	var serving sync.WaitGroup
	serving.Add(2)
	go func() { defer serving.Done(); _ = grpcServer.Serve(matched{Listener: grpcConns}) }()
	go func() { defer serving.Done(); _ = p.http.Serve(matched{Listener: httpConns, settle: true}) }()
	err := p.mux.Serve()
	serving.Wait()
	return err
}

// Close stops listening and ends the HTTP connections, waiting at most until
// ctx ends for requests under way.
func (p *Port) Close(ctx context.Context) error {
	err := p.listener.Close()
	if p.http == nil {
		return err
	}
	if shutdown := p.http.Shutdown(ctx); shutdown != nil {
		err = errors.Join(err, p.http.Close())
	}
	return err
}

// openingListener accepts connections whose TLS handshake is done, so that a
// client that stalls in it delays nobody.
type openingListener struct {
	net.Listener
	config Config
	opened chan net.Conn
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	opening map[net.Conn]struct{} // not yet known to be gRPC or HTTP; nil once closed
}

func newOpeningListener(raw net.Listener, config Config) *openingListener {
	l := &openingListener{
		Listener: raw, config: config, opening: map[net.Conn]struct{}{},
		opened: make(chan net.Conn), slots: make(chan struct{}, maxOpening), closed: make(chan struct{}),
	}
	go l.acceptRaw()
	return l
}

func (l *openingListener) acceptRaw() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			select {
			case <-l.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, most likely
				l.config.Logger.Warn("accept on the client port failed", "error", err)
				continue
			}
		}
		select {
		case l.slots <- struct{}{}:
			go func() {
				defer func() { <-l.slots }()
				l.open(conn)
			}()
		default:
			_ = conn.Close()
		}
	}
}

func (l *openingListener) open(raw net.Conn) {
	l.mu.Lock()
	if l.opening == nil {
		l.mu.Unlock()
		_ = raw.Close()
		return
	}
	l.opening[raw] = struct{}{}
	l.mu.Unlock()

	conn := raw
	deadline := time.Now().Add(l.config.OpenTimeout)
	_ = conn.SetDeadline(deadline)
	if l.config.TLS != nil {
		secured := tls.Server(conn, l.config.TLS)
		if err := secured.Handshake(); err != nil {
			level := slog.LevelWarn
			if errors.Is(err, io.EOF) { // a load balancer, looking whether somebody listens
				level = slog.LevelDebug
			}
			l.config.Logger.Log(context.Background(), level, "refused a client connection", "from", conn.RemoteAddr().String(), "error", err)
			_ = conn.Close()
			l.done(raw)
			return
		}
		conn = secured
	}
	_ = conn.SetDeadline(time.Time{})
	_ = conn.SetReadDeadline(deadline)
	select {
	case l.opened <- &openingConn{Conn: conn, raw: raw, listener: l}:
	case <-l.closed:
		_ = conn.Close()
		l.done(raw)
	}
}

func (l *openingListener) done(raw net.Conn) {
	l.mu.Lock()
	delete(l.opening, raw)
	l.mu.Unlock()
}

// Accept implements net.Listener.
func (l *openingListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.opened:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It ends the connections whose clients have not
// said yet what they want: cmux would wait for them forever.
func (l *openingListener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		err = l.Listener.Close()
		l.mu.Lock()
		for conn := range l.opening {
			_ = conn.Close()
		}
		l.opening = nil
		l.mu.Unlock()
	})
	return err
}

// openingConn has a read deadline until the client has shown which protocol it
// speaks: after that an idle connection is a good connection.
type openingConn struct {
	net.Conn
	raw      net.Conn
	listener *openingListener
}

func (c *openingConn) showed() { _ = c.Conn.SetReadDeadline(time.Time{}) }

// Close implements net.Conn.
func (c *openingConn) Close() error {
	c.listener.done(c.raw)
	return c.Conn.Close()
}

// opened hands on connections whose protocol need not be found out.
type opened struct{ *openingListener }

// Accept implements net.Listener.
func (o opened) Accept() (net.Conn, error) {
	conn, err := o.openingListener.Accept()
	if err != nil {
		return nil, err
	}
	opening := conn.(*openingConn)
	opening.listener.done(opening.raw)
	opening.showed()
	if secured, ok := opening.Conn.(*tls.Conn); ok {
		return securedConn{conn, secured.ConnectionState()}, nil
	}
	return conn, nil
}

// matched hands on the connections whose protocol is known.
type matched struct {
	net.Listener
	settle bool // see settledConn
}

// Accept implements net.Listener.
func (m matched) Accept() (net.Conn, error) {
	conn, err := m.Listener.Accept()
	if err != nil {
		return nil, err
	}
	var secured *tls.Conn
	if sniffed, ok := conn.(*cmux.MuxConn); ok {
		if opened, ok := sniffed.Conn.(*openingConn); ok {
			opened.listener.done(opened.raw)
			opened.showed() // from here on the protocols have limits of their own
			secured, _ = opened.Conn.(*tls.Conn)
		}
	}
	if m.settle {
		conn = newSettledConn(conn)
	}
	if secured != nil {
		return securedConn{conn, secured.ConnectionState()}, nil
	}
	return conn, nil
}

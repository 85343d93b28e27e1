// Package peerport is a member's peer address: one listener that carries raft
// and the members' own RPC, and the dialing side of both.
//
// Every connection opens with a line that names the protocol and its version,
// the cluster, and the two members. The listening side answers with a line
// too, so a connection between members of different clusters, or to the wrong
// member, is refused before any raft message is decoded, and the refused side
// can say why. Under TLS the protocol is negotiated by ALPN as well, both
// sides present certificates, and Authorize decides whether the certificate
// belongs to a member: raft's decoder trusts whoever reaches it.
package peerport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Protocol is what a peer connection carries. The names are part of the wire.
type Protocol string

// The protocols of the peer port, each with its version.
const (
	Raft Protocol = "muster-raft/1"
	RPC  Protocol = "muster-peer/1"
	// Join is for somebody who knows an address only: of its opening line
	// neither cluster nor members are looked at.
	Join Protocol = "muster-join/1"
)

var protocols = []Protocol{Raft, RPC, Join}

// Protocols are the names that a ServerTLS has to negotiate.
func Protocols() []string {
	names := make([]string, len(protocols))
	for i, protocol := range protocols {
		names[i] = string(protocol)
	}
	return names
}

const (
	handshakeTimeout = 10 * time.Second
	// maxHandshakes bounds the connections that have not been admitted yet.
	maxHandshakes = 256
	maxLine       = 512
)

// ErrRefused is returned to the dialing side when the other member answered
// the opening line with a refusal; the reason is part of the error.
var ErrRefused = errors.New("peer refused the connection")

// ErrRemoved is returned to the dialing side when the other member knows that
// it is no member any more.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster")

// Config describes one member's peer port.
type Config struct {
	// Cluster and Member are this member's ids.
	Cluster, Member uint64
	// ServerTLS and ClientTLS are both nil for plain TCP. ServerTLS negotiates
	// one of the protocols.
	ServerTLS, ClientTLS *tls.Config
	// CheckAddress judges where a client certificate is used from. Nil admits
	// any address.
	CheckAddress func(context.Context, *x509.Certificate, net.Addr) error
	// Authorize judges a verified client certificate; it is called only when
	// the client presented one. Nil admits any that the CA signed.
	Authorize func(*x509.Certificate) error
	// Traffic returns what counts the bytes that go to and come from a member.
	// Nil counts for nobody.
	Traffic func(member uint64) (sent, received Counter)
	// Sockets opens the sockets; nil is net.Listen.
	Sockets func(network, address string) (net.Listener, error)
	// Removed tells whether an id was a member's that has been removed; nil is
	// nobody. OnRemoved is called when another member says so of this one.
	Removed   func(member uint64) bool
	OnRemoved func()
	// OpenTimeout bounds TLS and the opening line together, so that a stalled
	// stranger holds a slot for a bounded time; 0 is 10 s.
	OpenTimeout time.Duration
	Logger      *slog.Logger
}

// Port is a listening peer port.
type Port struct {
	config    Config
	listeners []net.Listener
	accepted  map[Protocol]*queue
	slots     chan struct{}
	closed    chan struct{}
	closeOnce sync.Once
	serving   sync.WaitGroup

	mu      sync.Mutex
	opening map[net.Conn]struct{} // not admitted yet; nil once the port is closed
	inside  map[*admitted]struct{}
}

// Listen opens the addresses (host:port) and starts admitting connections.
func Listen(addresses []string, config Config) (*Port, error) {
	if config.OpenTimeout == 0 {
		config.OpenTimeout = handshakeTimeout
	}
	if config.Sockets == nil {
		config.Sockets = net.Listen
	}
	p := &Port{
		config:  config,
		slots:   make(chan struct{}, maxHandshakes),
		closed:  make(chan struct{}),
		opening: map[net.Conn]struct{}{},
		inside:  map[*admitted]struct{}{},
	}
	for _, address := range addresses {
		listener, err := config.Sockets("tcp", address)
		if err != nil {
			_ = p.Close()
			return nil, fmt.Errorf("listen for peers on %s: %w", address, err)
		}
		p.listeners = append(p.listeners, listener)
	}
	if len(p.listeners) == 0 {
		return nil, errors.New("listen for peers: no address given")
	}
	p.accepted = map[Protocol]*queue{}
	for _, protocol := range protocols {
		p.accepted[protocol] = newQueue(p.listeners[0].Addr(), p.closed)
	}
	for _, listener := range p.listeners {
		p.serving.Add(1)
		go p.serve(listener)
	}
	return p, nil
}

// Listener yields the admitted connections of one protocol. Closing it does
// not close the port.
func (p *Port) Listener(protocol Protocol) net.Listener { return p.accepted[protocol] }

// Addr is the first listening address.
func (p *Port) Addr() net.Addr { return p.listeners[0].Addr() }

// Close stops listening and ends the connections that were not admitted yet;
// it does not close the others.
func (p *Port) Close() error {
	var errs []error
	p.closeOnce.Do(func() {
		close(p.closed)
		for _, listener := range p.listeners {
			errs = append(errs, listener.Close())
		}
		p.mu.Lock()
		for conn := range p.opening {
			_ = conn.Close()
		}
		p.opening = nil
		p.mu.Unlock()
		p.serving.Wait()
	})
	return errors.Join(errs...)
}

// Expel ends the connections that a former member has opened. It is not
// admitted again, as Removed is asked.
func (p *Port) Expel(member uint64) {
	p.mu.Lock()
	var gone []net.Conn
	for conn := range p.inside {
		if conn.from == member {
			gone = append(gone, conn.Conn)
		}
	}
	p.mu.Unlock()
	for _, conn := range gone {
		_ = conn.Close()
	}
}

// Dial connects to the member with the given id at address (host:port). The
// error can be ErrRefused or ErrRemoved.
func (p *Port) Dial(ctx context.Context, protocol Protocol, address string, member uint64) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.OpenTimeout)
	defer cancel()
	conn, err := dial(ctx, p.config.ClientTLS, address, opening{protocol, p.config.Cluster, p.config.Member, member})
	if errors.Is(err, ErrRemoved) && p.config.OnRemoved != nil {
		p.config.OnRemoved()
	}
	if err != nil {
		return nil, err
	}
	return p.counted(conn, member), nil
}

// Knock connects to whichever member listens at address (host:port), for the
// protocol Join. clientTLS is as in Config. The error can be ErrRefused.
func Knock(ctx context.Context, clientTLS *tls.Config, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return dial(ctx, clientTLS, address, opening{protocol: Join})
}

func dial(ctx context.Context, clientTLS *tls.Config, address string, line opening) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if clientTLS != nil {
		config := clientTLS.Clone()
		config.NextProtos = []string{string(line.protocol)}
		if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
			_ = conn.Close()
			return nil, err
		}
		conn = tls.Client(conn, config)
	}
	if err := introduce(ctx, conn, line); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("open %s to %s: %w", line.protocol, address, err)
	}
	return conn, nil
}

func introduce(ctx context.Context, conn net.Conn, line opening) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := conn.Write([]byte(line.String())); err != nil {
		return err
	}
	answer, err := readLine(conn)
	if err != nil {
		return err
	}
	if answer == removedAnswer {
		return ErrRemoved
	}
	if answer != accepted {
		return fmt.Errorf("%w: %s", ErrRefused, strings.TrimPrefix(answer, refusedPrefix))
	}
	return conn.SetDeadline(time.Time{})
}

func (p *Port) serve(listener net.Listener) {
	defer p.serving.Done()
	for {
		conn, err := listener.Accept()
		if err != nil {
			select {
			case <-p.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, most likely
				p.config.Logger.Warn("accept on the peer port failed", "error", err)
				continue
			}
		}
		select {
		case p.slots <- struct{}{}:
			p.serving.Add(1)
			go func() {
				defer p.serving.Done()
				defer func() { <-p.slots }()
				p.admit(conn)
			}()
		default:
			_ = conn.Close()
		}
	}
}

func (p *Port) admit(raw net.Conn) {
	p.mu.Lock()
	if p.opening == nil {
		p.mu.Unlock()
		_ = raw.Close()
		return
	}
	p.opening[raw] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.opening, raw)
		p.mu.Unlock()
	}()
	conn, line, err := p.handshake(raw)
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, io.EOF) { // a load balancer, looking whether somebody listens
			level = slog.LevelDebug
		}
		p.config.Logger.Log(context.Background(), level, "refused a connection on the peer port", "from", raw.RemoteAddr().String(), "error", err)
		_ = raw.Close()
		return
	}
	inside := &admitted{Conn: conn, port: p, from: line.from}
	p.mu.Lock()
	p.inside[inside] = struct{}{}
	p.mu.Unlock()
	// It may have been removed while its connection was opened.
	if p.isRemoved(line) {
		_ = inside.Close()
		return
	}
	p.accepted[line.protocol].push(inside)
}

// admitted is a connection that the other side has opened.
type admitted struct {
	net.Conn
	port *Port
	from uint64
}

// Close implements net.Conn.
func (c *admitted) Close() error {
	c.port.mu.Lock()
	delete(c.port.inside, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

func (p *Port) handshake(raw net.Conn) (net.Conn, opening, error) {
	if err := raw.SetDeadline(time.Now().Add(p.config.OpenTimeout)); err != nil {
		return nil, opening{}, err
	}
	conn := raw
	var negotiated string
	var unauthorized error
	if p.config.ServerTLS != nil {
		secured := tls.Server(raw, p.config.ServerTLS)
		if err := secured.Handshake(); err != nil {
			return nil, opening{}, err
		}
		state := secured.ConnectionState()
		negotiated = state.NegotiatedProtocol
		if len(state.PeerCertificates) > 0 {
			unauthorized = p.admits(state.PeerCertificates[0], raw.RemoteAddr())
		}
		conn = secured
	}
	text, err := readLine(conn)
	if err != nil {
		return nil, opening{}, errors.Join(unauthorized, err)
	}
	line, err := parseOpening(text)
	switch {
	case err != nil:
	case p.isRemoved(line):
		_, _ = conn.Write([]byte(removedAnswer + "\n"))
		return nil, line, fmt.Errorf("member %x was removed from the cluster", line.from)
	case unauthorized != nil: // whoever asks has a certificate of ours and may know
		err = unauthorized
	default:
		err = p.judge(line, negotiated)
	}
	if err != nil {
		_, _ = conn.Write([]byte(refusedPrefix + err.Error() + "\n"))
		return nil, line, err
	}
	if _, err := conn.Write([]byte(accepted + "\n")); err != nil {
		return nil, line, err
	}
	return p.counted(conn, line.from), line, conn.SetDeadline(time.Time{})
}

func (p *Port) isRemoved(line opening) bool {
	return line.cluster == p.config.Cluster && p.config.Removed != nil && p.config.Removed(line.from)
}

func (p *Port) admits(certificate *x509.Certificate, from net.Addr) error {
	if p.config.Authorize != nil {
		if err := p.config.Authorize(certificate); err != nil {
			return err
		}
	}
	if p.config.CheckAddress == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.config.OpenTimeout) // names may have to be looked up
	defer cancel()
	return p.config.CheckAddress(ctx, certificate, from)
}

func (p *Port) judge(line opening, negotiated string) error {
	switch {
	case !slices.Contains(protocols, line.protocol):
		return fmt.Errorf("protocol %q is not spoken here; this member speaks %s, %s and %s", line.protocol, Raft, RPC, Join)
	case p.config.ServerTLS != nil && negotiated != string(line.protocol):
		return fmt.Errorf("protocol %q does not match the negotiated %q", line.protocol, negotiated)
	case line.protocol == Join:
		return nil
	case line.cluster != p.config.Cluster:
		return fmt.Errorf("cluster id mismatch: you are in %x, this member is in %x; check --initial-cluster, --initial-cluster-token and --restore-snapshot", line.cluster, p.config.Cluster)
	case line.to != p.config.Member:
		return fmt.Errorf("member id mismatch: you want %x, this is %x; check the peer URLs", line.to, p.config.Member)
	}
	return nil
}

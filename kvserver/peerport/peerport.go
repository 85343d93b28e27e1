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
	"log/slog"
	"net"
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
)

const (
	handshakeTimeout = 10 * time.Second
	// maxHandshakes bounds the connections that have not been admitted yet.
	maxHandshakes = 256
	maxLine       = 512
)

// ErrRefused is returned to the dialing side when the other member answered
// the opening line with a refusal; the reason is part of the error.
var ErrRefused = errors.New("peer refused the connection")

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
	p.accepted = map[Protocol]*queue{
		Raft: newQueue(p.listeners[0].Addr(), p.closed),
		RPC:  newQueue(p.listeners[0].Addr(), p.closed),
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

// Dial connects to the member with the given id at address (host:port).
func (p *Port) Dial(ctx context.Context, protocol Protocol, address string, member uint64) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.OpenTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if p.config.ClientTLS != nil {
		config := p.config.ClientTLS.Clone()
		config.NextProtos = []string{string(protocol)}
		if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
			_ = conn.Close()
			return nil, err
		}
		conn = tls.Client(conn, config)
	}
	if err := p.open(ctx, conn, opening{protocol, p.config.Cluster, p.config.Member, member}); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("open %s to %s: %w", protocol, address, err)
	}
	return p.counted(conn, member), nil
}

func (p *Port) open(ctx context.Context, conn net.Conn, line opening) error {
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
	conn, protocol, err := p.handshake(raw)
	if err != nil {
		p.config.Logger.Warn("refused a connection on the peer port", "from", raw.RemoteAddr().String(), "error", err)
		_ = raw.Close()
		return
	}
	p.accepted[protocol].push(conn)
}

func (p *Port) handshake(raw net.Conn) (net.Conn, Protocol, error) {
	if err := raw.SetDeadline(time.Now().Add(p.config.OpenTimeout)); err != nil {
		return nil, "", err
	}
	conn := raw
	var negotiated string
	if p.config.ServerTLS != nil {
		secured := tls.Server(raw, p.config.ServerTLS)
		if err := secured.Handshake(); err != nil {
			return nil, "", err
		}
		state := secured.ConnectionState()
		negotiated = state.NegotiatedProtocol
		if len(state.PeerCertificates) > 0 {
			if err := p.admits(state.PeerCertificates[0], raw.RemoteAddr()); err != nil {
				return nil, "", err
			}
		}
		conn = secured
	}
	text, err := readLine(conn)
	if err != nil {
		return nil, "", err
	}
	line, err := parseOpening(text)
	if err == nil {
		err = p.judge(line, negotiated)
	}
	if err != nil {
		_, _ = conn.Write([]byte(refusedPrefix + err.Error() + "\n"))
		return nil, "", err
	}
	if _, err := conn.Write([]byte(accepted + "\n")); err != nil {
		return nil, "", err
	}
	return p.counted(conn, line.from), line.protocol, conn.SetDeadline(time.Time{})
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
	case line.protocol != Raft && line.protocol != RPC:
		return fmt.Errorf("protocol %q is not spoken here; this member speaks %s and %s", line.protocol, Raft, RPC)
	case p.config.ServerTLS != nil && negotiated != string(line.protocol):
		return fmt.Errorf("protocol %q does not match the negotiated %q", line.protocol, negotiated)
	case line.cluster != p.config.Cluster:
		return fmt.Errorf("cluster id mismatch: you are in %x, this member is in %x; check --initial-cluster, --initial-cluster-token and --restore-snapshot", line.cluster, p.config.Cluster)
	case line.to != p.config.Member:
		return fmt.Errorf("member id mismatch: you want %x, this is %x; check the peer URLs", line.to, p.config.Member)
	}
	return nil
}

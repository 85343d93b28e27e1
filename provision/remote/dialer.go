package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// Options of a Dialer. The zero value is what the ssh command would do.
type Options struct {
	Log *slog.Logger
	// Prompt asks for a passphrase; nil when nobody can be asked.
	Prompt Prompt
	// SSHDir is where default identities and known_hosts are; default ~/.ssh.
	SSHDir string
	// ConfigFiles are read in order, the first value wins; default
	// SSHDir/config and /etc/ssh/ssh_config.
	ConfigFiles []string
	// AgentSocket defaults to $SSH_AUTH_SOCK; "none" means no agent.
	AgentSocket string
	// ConnectTimeout is how long a host may take to answer at all. Default
	// DefaultConnectTimeout.
	ConnectTimeout time.Duration
	// HandshakeTimeout bounds what follows up to the login, without the time
	// the operator takes to type. Default 20 s.
	HandshakeTimeout time.Duration
	// RetryFor is how long a host that refuses connections, or drops them
	// before the handshake, is tried again. Default 5 s.
	RetryFor time.Duration
	// KeepAlive is the interval of keepalive requests; a connection that
	// misses three is closed. Default 15 s.
	KeepAlive time.Duration
}

// DefaultConnectTimeout has room for two packets that are lost.
const DefaultConnectTimeout = 5 * time.Second

// Dialer makes connections. Bastions are connected to once and shared by the
// hosts behind them.
type Dialer struct {
	opts   Options
	config clientConfig
	keys   *keyring

	mu       sync.Mutex
	bastions map[string]*bastion
}

type bastion struct {
	once   sync.Once
	client *ssh.Client
	err    error
}

// NewDialer reads the user's ssh configuration.
func NewDialer(opts Options) (*Dialer, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.SSHDir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("find ~/.ssh: %w; set HOME", err)
		}
		opts.SSHDir = filepath.Join(home, ".ssh")
	}
	if opts.ConfigFiles == nil {
		opts.ConfigFiles = []string{filepath.Join(opts.SSHDir, "config"), "/etc/ssh/ssh_config"}
	}
	if opts.AgentSocket == "" {
		opts.AgentSocket = os.Getenv("SSH_AUTH_SOCK")
	}
	if opts.AgentSocket == "none" {
		opts.AgentSocket = ""
	}
	if opts.ConnectTimeout == 0 {
		opts.ConnectTimeout = DefaultConnectTimeout
	}
	if opts.HandshakeTimeout == 0 {
		opts.HandshakeTimeout = 20 * time.Second
	}
	if opts.RetryFor == 0 {
		opts.RetryFor = 5 * time.Second
	}
	if opts.KeepAlive == 0 {
		opts.KeepAlive = 15 * time.Second
	}
	return &Dialer{
		opts:     opts,
		config:   readClientConfig(opts.SSHDir, opts.ConfigFiles, opts.Log),
		keys:     newKeyring(opts),
		bastions: map[string]*bastion{},
	}, nil
}

// Dial connects and logs in to one host and finds out how to become root
// there. The context bounds the dialling only.
func (d *Dialer) Dial(ctx context.Context, t Target) (*Host, error) {
	route, err := d.config.route(t)
	if err != nil {
		return nil, err
	}
	var via *ssh.Client
	for i, h := range route[:len(route)-1] {
		if via, err = d.bastion(ctx, via, route[:i+1]); err != nil {
			return nil, fmt.Errorf("%s: bastion %s: %w", t.Name, h.address(), err)
		}
	}
	last := route[len(route)-1]
	client, err := d.connect(ctx, via, last)
	if err != nil {
		return nil, err
	}
	h := newHost(t.Name, client, d.opts.Log)
	go keepAlive(client, d.opts.KeepAlive)
	if h.privilege, err = h.findPrivilege(ctx); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

// Close closes the connections to bastions. The hosts behind them lose
// theirs.
func (d *Dialer) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for key, b := range d.bastions {
		if b.client != nil {
			errs = append(errs, ignoreClosed(b.client.Close()))
		}
		delete(d.bastions, key)
	}
	return errors.Join(errs...)
}

// bastion returns the shared connection to the last of route, through via.
func (d *Dialer) bastion(ctx context.Context, via *ssh.Client, route []hop) (*ssh.Client, error) {
	var key strings.Builder
	for _, h := range route {
		key.WriteString(h.key() + "|")
	}
	d.mu.Lock()
	b := d.bastions[key.String()]
	if b == nil {
		b = &bastion{}
		d.bastions[key.String()] = b
	}
	d.mu.Unlock()
	b.once.Do(func() {
		client, err := d.connect(ctx, via, route[len(route)-1])
		d.mu.Lock() // Close may read client at any time
		defer d.mu.Unlock()
		b.client, b.err = client, err
		if err == nil {
			go keepAlive(client, d.opts.KeepAlive)
		}
	})
	return b.client, b.err
}

// retryPause is the time between attempts on a host that refuses connections.
const retryPause = 200 * time.Millisecond

// connect logs in to one server. It tries again while the server is starting,
// and asks for another host key type when the one presented is not the one on
// record.
func (d *Dialer) connect(ctx context.Context, via *ssh.Client, h hop) (*ssh.Client, error) {
	check, err := newHostKeyCheck(h)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(d.opts.RetryFor)
	var refused error // the first refusal of a host key is the one to tell
	for i := 0; i < len(check.offers); {
		client, err := d.attempt(ctx, via, h, check, check.offers[i])
		if err == nil {
			return client, nil
		}
		var none *ssh.AlgorithmNegotiationError
		switch {
		case errors.Is(err, ErrHostKey):
			if refused == nil {
				refused = err
			}
			i++
		case errors.As(err, &none) && slices.Equal(none.SupportedAlgorithms, check.offers[i]):
			if refused == nil {
				refused = check.mismatched(none.RequestedAlgorithms)
			}
			i++
		case worthRetry(err) && time.Now().Before(deadline) && ctx.Err() == nil:
			select {
			case <-ctx.Done():
			case <-time.After(retryPause):
			}
		default:
			return nil, d.loginError(ctx, h, err)
		}
	}
	return nil, refused
}

// worthRetry says whether a host that is booting, or shedding load, would
// answer like this.
func worthRetry(err error) bool {
	var channel *ssh.OpenChannelError
	if errors.As(err, &channel) { // the bastion's view of the host
		return channel.Reason == ssh.ConnectionFailed
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)
}

func (d *Dialer) attempt(ctx context.Context, via *ssh.Client, h hop, check *hostKeyCheck, offer []string) (*ssh.Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := dialHop(ctx, via, h.address(), d.opts.ConnectTimeout)
	if err != nil {
		return nil, err
	}
	// Channels through a bastion have no deadlines, so a timer closes.
	go d.watch(ctx, cancel)
	signers, release, err := d.keys.signers(ctx, h)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	defer release()

	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	var mistrust error
	c, chans, reqs, err := ssh.NewClientConn(conn, h.address(), &ssh.ClientConfig{
		User:              h.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyAlgorithms: offer,
		HostKeyCallback: func(name string, addr net.Addr, key ssh.PublicKey) error {
			mistrust = check.verify(name, addr, key)
			return mistrust
		},
		ClientVersion: "SSH-2.0-muster",
	})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	switch {
	case mistrust != nil:
		return nil, mistrust
	case err != nil:
		_ = conn.Close()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	return ssh.NewClient(c, chans, reqs), nil
}

var errHandshakeTimeout = errors.New("no answer to the SSH handshake in time; is it an SSH server, and is a firewall in the way?")

// watch cancels the attempt when the handshake takes too long. While the
// operator is typing a passphrase, it waits.
func (d *Dialer) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(d.opts.HandshakeTimeout):
			if d.keys.asking.Load() == 0 {
				cancel(errHandshakeTimeout)
				return
			}
		}
	}
}

func dialHop(ctx context.Context, via *ssh.Client, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if via == nil {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
	return via.DialContext(ctx, "tcp", address)
}

// loginError says what was attempted and what to do next.
func (d *Dialer) loginError(ctx context.Context, h hop, err error) error {
	var slow net.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: connect: %w", h.title(), err)
	case errors.As(err, &slow) && slow.Timeout():
		return fmt.Errorf("%s: connect: no answer within %v (%w); check the address, the port and that the host is up, or let it take longer with --connect-timeout", h.title(), d.opts.ConnectTimeout, err)
	}
	if strings.Contains(err.Error(), "unable to authenticate") {
		return fmt.Errorf("%s: log in as %s: %w; put the public key of %s into ~%s/.ssh/authorized_keys there, or name another user or identityFile",
			h.title(), h.user, err, strings.Join(h.identityFiles, " or "), h.user)
	}
	return fmt.Errorf("%s: connect: %w; check the address, the port and that sshd is running", h.title(), err)
}

// keepAlive closes a connection whose other end has not answered for three
// intervals, so that whoever waits on it is told.
func keepAlive(client *ssh.Client, interval time.Duration) {
	gone := make(chan struct{})
	go func() {
		_ = client.Wait()
		close(gone)
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	answers := make(chan struct{}, 1)
	var missed int
	for {
		select {
		case <-gone:
			return
		case <-answers:
			missed = 0
		case <-ticker.C:
			if missed == 3 {
				_ = client.Close()
				return
			}
			missed++
			go func() {
				if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					select {
					case answers <- struct{}{}:
					default:
					}
				}
			}()
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

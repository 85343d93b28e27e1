package practice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// handshakeLimit bounds a login, as sshd's LoginGraceTime does.
const handshakeLimit = 30 * time.Second

// sshServer is a host's sshd.
type sshServer struct {
	host      *Host
	user      string        // who may log in
	login     ssh.PublicKey // and with which key
	key       ssh.Signer
	otherKey  ssh.Signer // shown by Faults.ChangedHostKey
	listeners []net.Listener
	work      sync.WaitGroup // connections and what runs in them

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	down  bool // no connections are accepted
}

// start accepts connections until close.
func (s *sshServer) start() {
	for _, l := range s.listeners {
		s.work.Go(func() { s.accept(l) })
	}
}

// setDown stops or resumes accepting; going down drops what is connected.
func (s *sshServer) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	if !down {
		return
	}
	for c := range s.conns {
		_ = c.Close() // the other end may have been first
	}
}

// stopListening gives the ports back.
func (s *sshServer) stopListening() error {
	var failed []error
	for _, l := range s.listeners {
		failed = append(failed, l.Close())
	}
	return errors.Join(failed...)
}

func (s *sshServer) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.host.log.Error("accept", "error", err)
			}
			return
		}
		if !s.admit(conn) {
			_ = conn.Close() // refused on purpose
			continue
		}
		s.work.Go(func() {
			defer s.release(conn)
			if err := s.serve(conn); err != nil {
				s.host.log.Debug("connection ended", "error", err)
			}
		})
	}
}

func (s *sshServer) admit(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down || s.host.faults.get().RefuseConnections {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *sshServer) release(conn net.Conn) {
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	_ = conn.Close() // may be closed already
}

func (s *sshServer) serverConfig() *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if s.login == nil || meta.User() != s.user || !bytes.Equal(key.Marshal(), s.login.Marshal()) {
				return nil, fmt.Errorf("%s may not log in with %s", meta.User(), ssh.FingerprintSHA256(key))
			}
			return &ssh.Permissions{}, nil
		},
	}
	if s.host.faults.get().ChangedHostKey {
		config.AddHostKey(s.otherKey)
	} else {
		config.AddHostKey(s.key)
	}
	return config
}

// serve speaks SSH on one connection until it ends.
func (s *sshServer) serve(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return err
	}
	server, channels, requests, err := ssh.NewServerConn(conn, s.serverConfig())
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	// Requests such as keepalives are answered, with a no.
	go ssh.DiscardRequests(requests)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for c := range channels {
		switch c.ChannelType() {
		case "session":
			work.Go(func() { s.session(ctx, conn, server.User(), c) })
		case "direct-tcpip":
			work.Go(func() { s.forward(ctx, c) })
		default:
			if err := c.Reject(ssh.UnknownChannelType, "practice host: "+c.ChannelType()+" is not known"); err != nil {
				return err
			}
		}
	}
	return server.Wait()
}

// session serves one session channel: environment, then one program.
func (s *sshServer) session(ctx context.Context, conn net.Conn, user string, c ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer channel.Close() //nolint:errcheck // the other end may have been first
	sh := newUserShell(s.host, user)
	var program sync.WaitGroup
	defer program.Wait()
	started := false
	for r := range requests {
		var start func()
		ok := true
		switch r.Type {
		case "env":
			var p struct{ Name, Value string }
			if ok = ssh.Unmarshal(r.Payload, &p) == nil; ok {
				sh.env[p.Name] = p.Value
			}
		case "pty-req", "window-change":
		case "signal":
			cancel()
		case "exec", "shell", "subsystem":
			start = sh.asked(ctx, conn, r, channel)
			ok = start != nil && !started
		default:
			ok = false
		}
		// The answer goes first: a program that is over at once closes the
		// channel.
		if r.WantReply {
			if err := r.Reply(ok, nil); err != nil {
				return
			}
		}
		if ok && start != nil {
			started = true
			program.Go(start)
		}
	}
}

// asked is what a request asks to run on the channel, nil if that is
// nothing known. It closes the channel when it ends.
func (s *userShell) asked(ctx context.Context, conn net.Conn, r *ssh.Request, channel ssh.Channel) func() {
	var p struct{ Text string }
	if r.Type != "shell" && ssh.Unmarshal(r.Payload, &p) != nil {
		return nil
	}
	if r.Type == "subsystem" {
		if p.Text != "sftp" {
			return nil
		}
		return func() {
			defer channel.Close() //nolint:errcheck // the other end may have been first
			s.host.ssh.serveSFTP(conn, s, channel)
		}
	}
	return func() {
		defer channel.Close() //nolint:errcheck // the other end may have been first
		status := s.login(ctx, conn, r.Type, p.Text, channel)
		// A client that is gone needs no status.
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
	}
}

// login runs what the client asked for: a command line, or a script on
// standard input when it asked for a shell.
func (s *userShell) login(ctx context.Context, conn net.Conn, kind, text string, channel ssh.Channel) int {
	in := &upload{Reader: channel, host: s.host, conn: conn}
	if kind == "shell" {
		text = "sh -s"
	}
	return s.run(ctx, text, nil, s.env["HOME"], stdio{in: in, out: channel, err: channel.Stderr()})
}

// upload counts what the client sends against Faults.DropUploadAfter.
type upload struct {
	io.Reader
	host *Host
	conn net.Conn
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if u.host.faults.upload(n) {
		return n, errors.Join(errors.New("practice host: the connection drops here"), u.conn.Close())
	}
	return n, err
}

func (s *sshServer) serveSFTP(conn net.Conn, sh *userShell, channel ssh.Channel) {
	files := &sftpFiles{host: s.host, files: sh.files, conn: conn}
	server := sftp.NewRequestServer(channel,
		sftp.Handlers{FileGet: files, FilePut: files, FileCmd: files, FileList: files},
		sftp.WithStartDirectory(sh.env["HOME"]))
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		s.host.log.Debug("sftp ended", "error", err)
	}
	if err := server.Close(); err != nil && !errors.Is(err, io.EOF) {
		s.host.log.Debug("sftp ended", "error", err)
	}
}

// forward serves direct-tcpip: a connection from the host to a loopback
// address.
func (s *sshServer) forward(ctx context.Context, c ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(c.ExtraData(), &to); err != nil {
		_ = c.Reject(ssh.ConnectionFailed, err.Error()) // the client is told or gone
		return
	}
	if ip := net.ParseIP(to.Host); to.Host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		_ = c.Reject(ssh.Prohibited, "practice host: only loopback addresses can be reached") // as above
		return
	}
	switch f := s.host.faults.get(); {
	case f.NoForwarding:
		_ = c.Reject(ssh.Prohibited, "open failed") // as above
		return
	case slices.Contains(f.Unreachable, int(to.Port)):
		_ = c.Reject(ssh.ConnectionFailed, "No route to host") // as above
		return
	}
	var d net.Dialer
	target, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
	if err != nil {
		_ = c.Reject(ssh.ConnectionFailed, err.Error()) // as above
		return
	}
	defer target.Close() //nolint:errcheck // both directions have ended
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer channel.Close() //nolint:errcheck // both directions have ended
	go ssh.DiscardRequests(requests)
	stop := context.AfterFunc(ctx, func() { _ = target.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(target, channel) // an end is an end
		if half, ok := target.(*net.TCPConn); ok {
			_ = half.CloseWrite() // may be closed already
		}
	})
	both.Go(func() {
		_, _ = io.Copy(channel, target) // an end is an end
		_ = channel.CloseWrite()        // may be closed already
	})
	both.Wait()
}

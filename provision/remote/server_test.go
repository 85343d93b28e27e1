package remote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// server is an SSH server on loopback that runs what it is told in a shell of
// this machine.
type server struct {
	t        *testing.T
	listener net.Listener
	config   *ssh.ServerConfig
	keys     map[string]ssh.Signer // host keys by type
	path     string                // goes before $PATH, for fake commands

	// cutAfter, when positive, closes a connection after it has received
	// that many bytes.
	cutAfter atomic.Int64
	logins   atomic.Int32 // authentications tried, successful or not
	conns    sync.WaitGroup
}

func newServer(t *testing.T, client ssh.PublicKey, hostKeys ...ssh.Signer) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, listener: listener, keys: map[string]ssh.Signer{}, path: t.TempDir()}
	s.config = &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			s.logins.Add(1)
			if string(key.Marshal()) != string(client.Marshal()) {
				return nil, errors.New("not authorized")
			}
			return nil, nil
		},
	}
	for _, k := range hostKeys {
		s.config.AddHostKey(k)
		s.keys[k.PublicKey().Type()] = k
	}
	go s.serve(listener)
	t.Cleanup(func() {
		_ = listener.Close()
		s.conns.Wait()
	})
	return s
}

func (s *server) target(name string) Target {
	host, port, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		s.t.Fatal(err)
	}
	return Target{Name: name, Address: host, Port: n}
}

func (s *server) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		if limit := s.cutAfter.Load(); limit > 0 {
			conn = &cutConn{Conn: conn, left: limit}
		}
		s.conns.Add(1)
		go func() {
			defer s.conns.Done()
			s.connection(conn)
		}()
	}
}

// cutConn dies once it has read its share.
type cutConn struct {
	net.Conn
	left int64
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left -= int64(n); c.left < 0 {
		_ = c.Close()
		return 0, io.EOF
	}
	return n, err
}

func (s *server) connection(conn net.Conn) {
	c, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		_ = conn.Close()
		return
	}
	defer c.Close() //nolint:errcheck // the test is over
	go func() {
		for r := range requests {
			_ = r.Reply(r.Type == "keepalive@openssh.com", nil)
		}
	}()
	for ch := range channels {
		switch ch.ChannelType() {
		case "session":
			go s.session(ch)
		case "direct-tcpip":
			go s.forward(ch)
		default:
			_ = ch.Reject(ssh.UnknownChannelType, "no")
		}
	}
}

func (s *server) forward(ch ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(ch.ExtraData(), &to); err != nil {
		_ = ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(to.Host, fmt.Sprint(to.Port)))
	if err != nil {
		_ = ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := ch.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	go func() {
		_, _ = io.Copy(conn, channel)
		_ = conn.Close()
	}()
	_, _ = io.Copy(channel, conn)
	_ = channel.Close()
	_ = conn.Close()
}

func (s *server) session(ch ssh.NewChannel) {
	channel, requests, err := ch.Accept()
	if err != nil {
		return
	}
	defer channel.Close() //nolint:errcheck // the test is over
	for r := range requests {
		var payload struct{ Text string }
		if err := ssh.Unmarshal(r.Payload, &payload); err != nil {
			_ = r.Reply(false, nil)
			continue
		}
		switch {
		case r.Type == "exec":
			_ = r.Reply(true, nil)
			cmd := exec.Command("sh", "-c", payload.Text)
			cmd.Env = append(os.Environ(), "PATH="+s.path+":"+os.Getenv("PATH"))
			cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
			stdin, err := cmd.StdinPipe()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(stdin, channel)
				_ = stdin.Close()
			}()
			status := make([]byte, 4)
			var exit *exec.ExitError
			if err := cmd.Run(); errors.As(err, &exit) {
				binary.BigEndian.PutUint32(status, uint32(exit.ExitCode()))
			}
			_, _ = channel.SendRequest("exit-status", false, status)
			return
		case r.Type == "subsystem" && payload.Text == "sftp":
			_ = r.Reply(true, nil)
			srv, err := sftp.NewServer(channel)
			if err != nil {
				return
			}
			_ = srv.Serve()
			return
		default:
			_ = r.Reply(false, nil)
		}
	}
}

func ed25519Key(t *testing.T) (ssh.Signer, crypto.PrivateKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer(t, private), private
}

func ecdsaKey(t *testing.T) ssh.Signer {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer(t, private)
}

func signer(t *testing.T, private crypto.PrivateKey) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// workstation is a home directory with an identity.
type workstation struct {
	t       *testing.T
	sshDir  string
	key     ssh.Signer
	private crypto.PrivateKey
	prompt  Prompt
}

func newWorkstation(t *testing.T) *workstation {
	t.Helper()
	w := &workstation{t: t, sshDir: filepath.Join(t.TempDir(), ".ssh")}
	if err := os.Mkdir(w.sshDir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.key, w.private = ed25519Key(t)
	w.identity("id_ed25519", "")
	return w
}

// identity writes the workstation's private key to a file.
func (w *workstation) identity(name, passphrase string) {
	w.t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(w.private, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(w.private, "test", []byte(passphrase))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(name, string(pem.EncodeToMemory(block)))
}

func (w *workstation) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.sshDir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *workstation) dialer() *Dialer {
	w.t.Helper()
	d, err := NewDialer(Options{
		SSHDir: w.sshDir, ConfigFiles: []string{filepath.Join(w.sshDir, "config")}, AgentSocket: "none",
		Prompt: w.prompt, HandshakeTimeout: 5 * time.Second, RetryFor: 200 * time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = d.Close() })
	return d
}

package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dialed(t *testing.T, w *workstation, target Target) *Host {
	t.Helper()
	h, err := w.dialer().Dial(testContext(t), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestHostKeys(t *testing.T) {
	ed, _ := ed25519Key(t)
	other, _ := ed25519Key(t)
	ec := ecdsaKey(t)
	both := []ssh.Signer{ed, ec}
	line := func(s *server, key ssh.Signer) string {
		return knownhosts.Line([]string{s.listener.Addr().String()}, key.PublicKey()) + "\n"
	}
	for _, test := range []struct {
		name    string
		keys    []ssh.Signer
		known   func(*server) string
		pin     ssh.Signer
		wantErr string
	}{
		{name: "stored", keys: both, known: func(s *server) string { return line(s, ed) }},
		{name: "stored type is not the preferred one", keys: both, known: func(s *server) string { return line(s, ec) }},
		{name: "stored hashed", keys: both, known: func(s *server) string {
			return knownhosts.HashHostname(knownhosts.Normalize(s.listener.Addr().String())) + " " + string(ssh.MarshalAuthorizedKey(ec.PublicKey()))
		}},
		{name: "unknown", keys: both, wantErr: "host key is not known"},
		{name: "changed", keys: both, known: func(s *server) string { return line(s, other) }, wantErr: "host key has changed"},
		{name: "type gone", keys: []ssh.Signer{ec}, known: func(s *server) string { return line(s, ed) }, wantErr: "host key has changed"},
		{name: "revoked", keys: []ssh.Signer{ed}, known: func(s *server) string { return "@revoked * " + string(ssh.MarshalAuthorizedKey(ed.PublicKey())) }, wantErr: "revoked"},
		{name: "pinned", keys: both, pin: ed},
		{name: "pinned type is not the preferred one", keys: both, pin: ec},
		{name: "pinned wins over known_hosts", keys: both, known: func(s *server) string { return line(s, other) }, pin: ed},
		{name: "pinned mismatch", keys: both, pin: other, known: func(s *server) string { return line(s, ed) }, wantErr: "does not match the fingerprint pinned"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorkstation(t)
			s := newServer(t, w.key.PublicKey(), test.keys...)
			if test.known != nil {
				w.write("known_hosts", test.known(s))
			}
			w.write("config", "UserKnownHostsFile ~/.ssh/known_hosts\nGlobalKnownHostsFile /nonexistent\n")
			target := s.target("controller-0")
			if test.pin != nil {
				target.HostKey = ssh.FingerprintSHA256(test.pin.PublicKey())
			}
			h, err := w.dialer().Dial(testContext(t), target)
			if test.wantErr == "" {
				if err != nil {
					t.Fatal(err)
				}
				_ = h.Close()
				return
			}
			if err == nil {
				_ = h.Close()
				t.Fatal("the connection was accepted")
			}
			var refused *HostKeyError
			if !errors.As(err, &refused) || !errors.Is(err, ErrHostKey) {
				t.Fatalf("%T %v, want a *HostKeyError", err, err)
			}
			if !strings.Contains(err.Error(), test.wantErr) || !strings.Contains(err.Error(), "controller-0 (127.0.0.1:") {
				t.Errorf("error %q, want the host and %q", err, test.wantErr)
			}
			if refused.Hint() == "" {
				t.Error("no hint")
			}
			if n := s.logins.Load(); n != 0 {
				t.Errorf("%d logins were tried at a host that is not trusted", n)
			}
		})
	}
}

func TestUnknownHostKeySaysWhatToWrite(t *testing.T) {
	w := newWorkstation(t)
	key, _ := ed25519Key(t)
	s := newServer(t, w.key.PublicKey(), key)
	target := s.target("controller-0")
	_, err := w.dialer().Dial(testContext(t), target)
	var refused *HostKeyError
	if !errors.As(err, &refused) {
		t.Fatalf("%T %v", err, err)
	}
	for _, want := range []string{
		"hostKey: " + ssh.FingerprintSHA256(key.PublicKey()),
		fmt.Sprintf("ssh-keyscan -p %d 127.0.0.1 >> ~/.ssh/known_hosts", target.Port),
		"ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
	} {
		if !strings.Contains(refused.Hint(), want) {
			t.Errorf("hint %q lacks %q", refused.Hint(), want)
		}
	}
}

func TestHostCertificate(t *testing.T) {
	w := newWorkstation(t)
	ca, _ := ed25519Key(t)
	key, _ := ed25519Key(t)
	cert := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"127.0.0.1"},
		ValidBefore: ssh.CertTimeInfinity,
	}
	if err := cert.SignCert(strings.NewReader(strings.Repeat("n", 1000)), ca); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, w.key.PublicKey(), key, certified)
	host := knownhosts.Normalize(s.listener.Addr().String())
	w.write("known_hosts", "@cert-authority "+host+" "+string(ssh.MarshalAuthorizedKey(ca.PublicKey())))
	w.write("config", "UserKnownHostsFile ~/.ssh/known_hosts\n")
	dialed(t, w, s.target("controller-0"))
}

// pinned returns a server and a target that trusts it.
func pinned(t *testing.T, w *workstation) (*server, Target) {
	t.Helper()
	key, _ := ed25519Key(t)
	s := newServer(t, w.key.PublicKey(), key)
	target := s.target("controller-0")
	target.HostKey = ssh.FingerprintSHA256(key.PublicKey())
	return s, target
}

func TestPassphraseIsAskedOnce(t *testing.T) {
	w := newWorkstation(t)
	w.identity("id_ed25519", "secret")
	var asked atomic.Int32
	w.prompt = func(question string) ([]byte, error) {
		asked.Add(1)
		if !strings.Contains(question, "id_ed25519") {
			t.Errorf("question %q does not name the key", question)
		}
		return []byte("secret"), nil
	}
	d := w.dialer()
	var wg sync.WaitGroup
	for range 3 {
		_, target := pinned(t, w)
		wg.Go(func() {
			h, err := d.Dial(testContext(t), target)
			if err != nil {
				t.Error(err)
				return
			}
			_ = h.Close()
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the passphrase was asked for %d times, want 1", n)
	}
}

func TestPassphraseWithoutTerminal(t *testing.T) {
	w := newWorkstation(t)
	w.identity("id_ed25519", "secret")
	_, target := pinned(t, w)
	_, err := w.dialer().Dial(testContext(t), target)
	if err == nil || !strings.Contains(err.Error(), "ssh-add") {
		t.Fatalf("error %v, want one that says to run ssh-add", err)
	}
}

func TestAgent(t *testing.T) {
	w := newWorkstation(t)
	if err := os.Remove(filepath.Join(w.sshDir, "id_ed25519")); err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: w.private}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // the test is over
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, conn) }()
		}
	}()
	_, target := pinned(t, w)
	d, err := NewDialer(Options{SSHDir: w.sshDir, ConfigFiles: []string{}, AgentSocket: socket})
	if err != nil {
		t.Fatal(err)
	}
	h, err := d.Dial(testContext(t), target)
	if err != nil {
		t.Fatal(err)
	}
	_ = h.Close()
}

func TestBastionIsShared(t *testing.T) {
	w := newWorkstation(t)
	jump, jumpTarget := pinned(t, w)
	jumpTarget.Name = "bastion"
	d := w.dialer()
	for i := range 3 {
		_, target := pinned(t, w)
		target.Name = fmt.Sprintf("controller-%d", i)
		target.Bastion = &jumpTarget
		h, err := d.Dial(testContext(t), target)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close() //nolint:errcheck // the test is over
		if _, err := h.Run(testContext(t), Command{Label: "test", Script: "true"}); err != nil {
			t.Fatal(err)
		}
	}
	// One login: the key is offered once and then used once.
	if n := jump.logins.Load(); n != 1 {
		t.Errorf("%d logins at the bastion, want 1", n)
	}
}

func TestProxyJump(t *testing.T) {
	w := newWorkstation(t)
	jump, _ := pinned(t, w)
	s, _ := pinned(t, w)
	jt, st := jump.target(""), s.target("")
	w.write("known_hosts", fmt.Sprintf("%s%s",
		knownhosts.Line([]string{jump.listener.Addr().String()}, jump.keys[ssh.KeyAlgoED25519].PublicKey())+"\n",
		knownhosts.Line([]string{s.listener.Addr().String()}, s.keys[ssh.KeyAlgoED25519].PublicKey())+"\n"))
	w.write("config", fmt.Sprintf("UserKnownHostsFile ~/.ssh/known_hosts\nHost inner\n HostName 127.0.0.1\n Port %d\n User admin\n ProxyJump gate\nHost gate\n HostName 127.0.0.1\n Port %d\n", st.Port, jt.Port))
	dialed(t, w, Target{Name: "controller-0", Address: "inner"})
	if jump.logins.Load() == 0 {
		t.Error("the connection did not go through the jump host")
	}
}

func TestRoute(t *testing.T) {
	w := newWorkstation(t)
	w.write("config", `
Host loop
  ProxyJump loop
Host chain
  ProxyJump a@one:2201,two
Host command
  ProxyCommand nc %h %p
Host direct
  HostName %h.example.com
  User bob
  IdentityFile ~/.ssh/id_direct
`)
	config := w.dialer().config
	for _, test := range []struct{ address, want, wantErr string }{
		{address: "plain", want: "root@plain:22"},
		{address: "direct", want: "bob@direct.example.com:22"},
		{address: "chain", want: "a@one:2201 root@two:22 root@chain:22"},
		{address: "loop", wantErr: "more than 8 bastions"},
		{address: "command", wantErr: "ProxyCommand"},
		{address: "::1", want: "root@[::1]:22"},
	} {
		route, err := config.route(Target{Name: "controller-0", Address: test.address})
		if test.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("%s: error %v, want %q", test.address, err, test.wantErr)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.address, err)
		}
		var got []string
		for _, h := range route {
			got = append(got, h.user+"@"+h.address())
		}
		if text := strings.Join(got, " "); text != test.want {
			t.Errorf("%s: route %q, want %q", test.address, text, test.want)
		}
	}
}

func TestWrongIdentity(t *testing.T) {
	w := newWorkstation(t)
	_, target := pinned(t, newWorkstation(t)) // wants somebody else's key
	_, err := w.dialer().Dial(testContext(t), target)
	if err == nil || !strings.Contains(err.Error(), "authorized_keys") || !strings.Contains(err.Error(), "log in as root") {
		t.Fatalf("error %v", err)
	}
}

func TestSilentServer(t *testing.T) {
	w := newWorkstation(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // the test is over
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	s := &server{t: t, listener: listener}
	d := w.dialer()
	d.opts.HandshakeTimeout = 100 * time.Millisecond
	if _, err := d.Dial(testContext(t), s.target("controller-0")); !errors.Is(err, errHandshakeTimeout) {
		t.Fatalf("error %v, want %v", err, errHandshakeTimeout)
	}
}

// How long a host may take to answer is a setting, which the error names.
func TestConnectTimeout(t *testing.T) {
	w := newWorkstation(t)
	_, target := pinned(t, w)
	d := w.dialer()
	d.opts.ConnectTimeout = time.Nanosecond
	_, err := d.Dial(testContext(t), target)
	if err == nil || !strings.Contains(err.Error(), "no answer within 1ns") || !strings.Contains(err.Error(), "--connect-timeout") {
		t.Fatalf("error %v", err)
	}
	d.opts.ConnectTimeout = 20 * time.Second
	h, err := d.Dial(testContext(t), target)
	if err != nil {
		t.Fatal(err)
	}
	_ = h.Close()
}

// An agent that takes connections and never answers is done without.
func TestStuckAgent(t *testing.T) {
	w := newWorkstation(t)
	_, target := pinned(t, w)
	socket := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // the test is over
	d := w.dialer()
	d.keys.agentSocket, d.keys.agentTimeout = socket, 100*time.Millisecond
	for range 2 {
		h, err := d.Dial(testContext(t), target)
		if err != nil {
			t.Fatal(err)
		}
		_ = h.Close()
	}
	if !d.keys.agentStuck.Load() {
		t.Error("the agent was not asked")
	}
}

// An agent that lists its keys and never signs ends with the attempt.
func TestAgentThatNeverSigns(t *testing.T) {
	w := newWorkstation(t)
	_, target := pinned(t, w)
	socket := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // the test is over
	held := agent.NewKeyring()
	if err := held.Add(agent.AddedKey{PrivateKey: w.private}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(undecided{held, ended}, conn) }()
		}
	}()
	d := w.dialer()
	d.keys.agentSocket, d.opts.HandshakeTimeout = socket, 300*time.Millisecond
	if _, err := d.Dial(testContext(t), target); !errors.Is(err, errHandshakeTimeout) {
		t.Fatalf("error %v, want %v", err, errHandshakeTimeout)
	}
}

// undecided is an agent whose user does not answer.
type undecided struct {
	agent.Agent
	ended chan struct{}
}

func (u undecided) Sign(ssh.PublicKey, []byte) (*ssh.Signature, error) {
	<-u.ended
	return nil, errors.New("the test is over")
}

func TestRefusedConnectionIsRetried(t *testing.T) {
	w := newWorkstation(t)
	s, target := pinned(t, w)
	address := s.listener.Addr().String()
	_ = s.listener.Close()
	d := w.dialer()
	if _, err := d.Dial(testContext(t), target); err == nil || !strings.Contains(err.Error(), "check the address, the port and that sshd is running") {
		t.Fatalf("error %v", err)
	}
	d.opts.RetryFor = 20 * time.Second
	done := make(chan error, 1)
	go func() {
		h, err := d.Dial(testContext(t), target)
		if err == nil {
			err = h.Close()
		}
		done <- err
	}()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go s.serve(listener)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUnparsableConfigIsLeftOut(t *testing.T) {
	w := newWorkstation(t)
	w.write("config", "Match exec \"true\"\n  User bob\n")
	_, target := pinned(t, w)
	dialed(t, w, target)
}

// Without an ssh_config, known_hosts is where ssh has it.
func TestKnownHostsWithoutConfiguration(t *testing.T) {
	w := newWorkstation(t)
	key, _ := ed25519Key(t)
	s := newServer(t, w.key.PublicKey(), key)
	w.write("known_hosts", knownhosts.Line([]string{s.listener.Addr().String()}, key.PublicKey())+"\n")
	dialed(t, w, s.target("controller-0"))
}

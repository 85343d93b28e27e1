package peerport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/pki"
)

const patience = 20 * time.Second

// captured is a log that may be read while it is written.
type captured struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (c *captured) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *captured) awaits(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		c.mu.Lock()
		found := strings.Contains(c.text.String(), text)
		c.mu.Unlock()
		if found {
			return
		}
	}
	t.Errorf("the log does not say %q", text)
}

func open(t *testing.T, config Config) (*Port, *captured) {
	t.Helper()
	log := &captured{}
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	port, err := Listen([]string{"127.0.0.1:0"}, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := port.Close(); err != nil {
			t.Error(err)
		}
	})
	return port, log
}

// echo answers one connection of the protocol.
func echo(t *testing.T, port *Port, protocol Protocol) {
	t.Helper()
	go func() {
		conn, err := port.Listener(protocol).Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
	}()
}

func checkEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Errorf("answer %q, %v", got, err)
	}
}

func TestDialReachesTheProtocol(t *testing.T) {
	server, _ := open(t, Config{Cluster: 7, Member: 1})
	client, _ := open(t, Config{Cluster: 7, Member: 2})
	for _, protocol := range []Protocol{Raft, RPC} {
		echo(t, server, protocol)
		conn, err := client.Dial(t.Context(), protocol, server.Addr().String(), 1)
		if err != nil {
			t.Fatalf("%s: %v", protocol, err)
		}
		checkEcho(t, conn)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Both sides can read why a connection was refused.
func TestOpeningIsJudged(t *testing.T) {
	server, log := open(t, Config{Cluster: 7, Member: 1})
	for name, test := range map[string]struct {
		cluster, to uint64
		protocol    Protocol
		want        string
	}{
		"another cluster":  {8, 1, Raft, "cluster id mismatch: you are in 8, this member is in 7; check --initial-cluster, --initial-cluster-token and --restore-snapshot"},
		"another member":   {7, 3, Raft, "member id mismatch: you want 3, this is 1; check the peer URLs"},
		"another protocol": {7, 1, "muster-raft/2", `protocol \"muster-raft/2\" is not spoken here; this member speaks muster-raft/1, muster-peer/1 and muster-join/1`},
	} {
		t.Run(name, func(t *testing.T) {
			client, _ := open(t, Config{Cluster: test.cluster, Member: 2})
			_, err := client.Dial(t.Context(), test.protocol, server.Addr().String(), test.to)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), strings.ReplaceAll(test.want, `\`, "")) {
				t.Errorf("the dialing side hears %v", err)
			}
			log.awaits(t, test.want)
		})
	}
}

func TestStrangersAreTurnedAway(t *testing.T) {
	server, log := open(t, Config{Cluster: 7, Member: 1})
	for name, test := range map[string]struct{ send, want, logged string }{
		"HTTP":           {"GET / HTTP/1.1\r\n", "refused: this is a muster peer port;", "this is a muster peer port"},
		"garbage":        {"\x16\x03\x01\x02\x00\x01\xff\n", "refused: this is a muster peer port;", "this is a muster peer port"},
		"empty line":     {"\n", "refused: this is a muster peer port;", "this is a muster peer port"},
		"oversized line": {strings.Repeat("x", maxLine), "", "the opening line is longer than 512 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(test.send)); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn)
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatal("the connection is kept open")
			}
			if !strings.HasPrefix(string(answer), test.want) {
				t.Errorf("answer %q, want %q", answer, test.want)
			}
			log.awaits(t, test.logged)
		})
	}
}

// Somebody who says nothing is thrown out in the end, and delays nobody until
// then.
func TestStalledOpeningIsBounded(t *testing.T) {
	server, _ := open(t, Config{Cluster: 7, Member: 1, OpenTimeout: 300 * time.Millisecond})
	client, _ := open(t, Config{Cluster: 7, Member: 2})
	var stalled []net.Conn
	for range 10 {
		conn, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stalled = append(stalled, conn)
	}
	echo(t, server, RPC)
	conn, err := client.Dial(t.Context(), RPC, server.Addr().String(), 1)
	if err != nil {
		t.Fatalf("a member behind stalled strangers: %v", err)
	}
	defer conn.Close()
	for _, conn := range stalled {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a stalled connection ends with %v, want EOF", err)
		}
	}
	checkEcho(t, conn) // the deadline was for the opening only
}

// The dialing side is bounded too: whatever it reached may never answer.
func TestDialToASilentListenerEnds(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, _ := open(t, Config{Cluster: 7, Member: 2, OpenTimeout: 100 * time.Millisecond})
	if _, err := client.Dial(t.Context(), Raft, listener.Addr().String(), 1); err == nil {
		t.Error("a listener that says nothing was taken for a member")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Dial(ctx, Raft, listener.Addr().String(), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a dial that was given up: %v", err)
	}
}

func TestCloseEndsWhatIsBeingOpened(t *testing.T) {
	server, _ := open(t, Config{Cluster: 7, Member: 1})
	conn, err := net.Dial("tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("muster")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(handshakeTimeout / 2)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection outlives the port")
	}
	if _, err := server.Listener(Raft).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
}

func TestListenFails(t *testing.T) {
	if _, err := Listen(nil, Config{}); err == nil {
		t.Error("a port without an address")
	}
	server, _ := open(t, Config{Cluster: 7, Member: 1})
	_, err := Listen([]string{server.Addr().String()}, Config{Cluster: 7, Member: 2})
	if err == nil || !strings.Contains(err.Error(), "listen for peers on "+server.Addr().String()) {
		t.Errorf("an address in use: %v", err)
	}
}

// certificates are a cluster's own, and those of another CA.
type certificates struct {
	own, foreign pki.Bundle
}

func makeCertificates(t *testing.T) certificates {
	t.Helper()
	issue := func(dir string) pki.Bundle {
		bundle, _, err := pki.Ensure(t.Context(), dir, pki.Spec{
			Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour,
			Hosts: []pki.Host{{Name: "m1", SANs: []string{"127.0.0.1"}}, {Name: "m2", SANs: []string{"127.0.0.1"}}, {Name: "stranger"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return bundle
	}
	return certificates{issue(filepath.Join(t.TempDir(), "own")), issue(filepath.Join(t.TempDir(), "foreign"))}
}

func configs(t *testing.T, ca []byte, pair *pki.Pair) (server, client *tls.Config) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	server = &tls.Config{NextProtos: Protocols(), MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	client = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if pair != nil {
		certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		server.Certificates = []tls.Certificate{certificate}
		client.Certificates = []tls.Certificate{certificate}
	}
	return server, client
}

// Over TLS only a peer's certificate of the cluster's CA, accepted by
// Authorize, comes as far as the opening line.
func TestCertificatesAreJudged(t *testing.T) {
	certs := makeCertificates(t)
	m1, m2, stranger := certs.own.Hosts["m1"].Peer, certs.own.Hosts["m2"].Peer, certs.own.Hosts["stranger"].Peer
	foreign := certs.foreign.Hosts["m2"].Peer
	serverTLS, _ := configs(t, certs.own.CA, &m1)
	var elsewhere atomic.Bool
	server, log := open(t, Config{
		Cluster: 7, Member: 1, ServerTLS: serverTLS,
		Authorize: func(c *x509.Certificate) error {
			if c.Subject.CommonName != "m2" {
				return fmt.Errorf("the certificate of %q belongs to no member", c.Subject.CommonName)
			}
			return nil
		},
		CheckAddress: func(_ context.Context, _ *x509.Certificate, from net.Addr) error {
			if elsewhere.Load() {
				return fmt.Errorf("%s is not an address of m2", from)
			}
			return nil
		},
	})
	for name, test := range map[string]struct {
		pair   *pki.Pair
		logged string
	}{
		"no certificate":                 {nil, "client didn't provide a certificate"},
		"certificate of another CA":      {&foreign, "certificate signed by unknown authority"},
		"certificate of a stranger":      {&stranger, `the certificate of \\\"stranger\\\" belongs to no member`},
		"certificate of the healthcheck": {&certs.own.HealthcheckClient, `the certificate of \\\"kube-etcd-healthcheck-client\\\" belongs to no member`},
	} {
		t.Run(name, func(t *testing.T) {
			_, clientTLS := configs(t, certs.own.CA, test.pair)
			client, _ := open(t, Config{Cluster: 7, Member: 2, ClientTLS: clientTLS})
			if conn, err := client.Dial(t.Context(), Raft, server.Addr().String(), 1); err == nil {
				_ = conn.Close()
				t.Error("admitted")
			}
			log.awaits(t, strings.ReplaceAll(test.logged, `\\\`, `\`))
		})
	}
	t.Run("member", func(t *testing.T) {
		_, clientTLS := configs(t, certs.own.CA, &m2)
		client, _ := open(t, Config{Cluster: 7, Member: 2, ClientTLS: clientTLS})
		for _, protocol := range []Protocol{Raft, RPC} {
			echo(t, server, protocol)
			conn, err := client.Dial(t.Context(), protocol, server.Addr().String(), 1)
			if err != nil {
				t.Fatal(err)
			}
			checkEcho(t, conn)
			_ = conn.Close()
		}
	})
	t.Run("member that calls from elsewhere", func(t *testing.T) {
		elsewhere.Store(true)
		defer elsewhere.Store(false)
		_, clientTLS := configs(t, certs.own.CA, &m2)
		client, _ := open(t, Config{Cluster: 7, Member: 2, ClientTLS: clientTLS})
		if conn, err := client.Dial(t.Context(), Raft, server.Addr().String(), 1); err == nil {
			_ = conn.Close()
			t.Error("admitted")
		}
		log.awaits(t, "is not an address of m2")
	})
	t.Run("the line names another protocol than ALPN", func(t *testing.T) {
		_, clientTLS := configs(t, certs.own.CA, &m2)
		clientTLS.ServerName, clientTLS.NextProtos = "127.0.0.1", []string{string(RPC)}
		conn, err := tls.Dial("tcp", server.Addr().String(), clientTLS)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(opening{Raft, 7, 2, 1}.String())); err != nil {
			t.Fatal(err)
		}
		if answer, _ := readLine(conn); !strings.Contains(answer, "does not match the negotiated") {
			t.Errorf("answer %q", answer)
		}
	})
	t.Run("the dialing side checks the server", func(t *testing.T) {
		_, clientTLS := configs(t, certs.foreign.CA, &foreign)
		client, _ := open(t, Config{Cluster: 7, Member: 2, ClientTLS: clientTLS})
		if _, err := client.Dial(t.Context(), Raft, server.Addr().String(), 1); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("a server of another CA: %v", err)
		}
	})
}

// Somebody who knows no more than an address is let in, for that protocol only.
func TestKnock(t *testing.T) {
	server, _ := open(t, Config{Cluster: 7, Member: 1, Removed: func(uint64) bool { return false }})
	echo(t, server, Join)
	conn, err := Knock(t.Context(), nil, server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// Under TLS who knocks needs the certificate of a member that has been added, and
// hears why it is not let in.
func TestKnockWithACertificate(t *testing.T) {
	certs := makeCertificates(t)
	m1, m2, foreign := certs.own.Hosts["m1"].Peer, certs.own.Hosts["m2"].Peer, certs.foreign.Hosts["m2"].Peer
	serverTLS, _ := configs(t, certs.own.CA, &m1)
	var added atomic.Bool
	server, _ := open(t, Config{Cluster: 7, Member: 1, ServerTLS: serverTLS, Authorize: func(c *x509.Certificate) error {
		if !added.Load() {
			return fmt.Errorf("the certificate of %q belongs to no member", c.Subject.CommonName)
		}
		return nil
	}})
	_, clientTLS := configs(t, certs.own.CA, &m2)
	if _, err := Knock(t.Context(), clientTLS, server.Addr().String()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `the certificate of "m2" belongs to no member`) {
		t.Errorf("before it is added: %v", err)
	}
	added.Store(true)
	echo(t, server, Join)
	conn, err := Knock(t.Context(), clientTLS, server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	_, strangerTLS := configs(t, certs.own.CA, &foreign)
	if _, err := Knock(t.Context(), strangerTLS, server.Addr().String()); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("with another CA's certificate: %v", err)
	}
}

// A former member is thrown out, and is told so when it comes back.
func TestRemovedMemberIsTold(t *testing.T) {
	var removed, told atomic.Bool
	server, _ := open(t, Config{Cluster: 7, Member: 1, Removed: func(member uint64) bool { return removed.Load() && member == 2 }})
	former, _ := open(t, Config{Cluster: 7, Member: 2, OnRemoved: func() { told.Store(true) }})
	other, _ := open(t, Config{Cluster: 7, Member: 3})
	echo(t, server, RPC)
	inside, err := former.Dial(t.Context(), RPC, server.Addr().String(), 1)
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, inside)
	echo(t, server, RPC)
	bystander, err := other.Dial(t.Context(), RPC, server.Addr().String(), 1)
	if err != nil {
		t.Fatal(err)
	}
	removed.Store(true)
	server.Expel(2)
	if _, err := inside.Read(make([]byte, 1)); err == nil {
		t.Error("the connection of a removed member goes on")
	}
	checkEcho(t, bystander)
	if told.Load() {
		t.Error("told before it asked")
	}
	if _, err := former.Dial(t.Context(), Raft, server.Addr().String(), 1); !errors.Is(err, ErrRemoved) || !told.Load() {
		t.Errorf("a removed member that comes back: %v, told %v", err, told.Load())
	}
	stranger, _ := open(t, Config{Cluster: 8, Member: 2})
	if _, err := stranger.Dial(t.Context(), Raft, server.Addr().String(), 1); errors.Is(err, ErrRemoved) || !errors.Is(err, ErrRefused) {
		t.Errorf("the same id in another cluster: %v", err)
	}
	for _, conn := range []net.Conn{inside, bystander} {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

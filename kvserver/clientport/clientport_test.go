package clientport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"muster/pki"
)

const patience = 20 * time.Second

// start serves gRPC health and a handler that tells the HTTP version.
func start(t *testing.T, config *tls.Config, openTimeout time.Duration) *Port {
	t.Helper()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })
	port, err := Listen("127.0.0.1:0", Config{TLS: config, Handler: handler, OpenTimeout: openTimeout, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- port.Serve(server) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for range 2 {
			if err := port.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("close: %v", err)
			}
		}
		server.Stop()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("serve does not return after close")
		}
	})
	return port
}

// serverAndClient are TLS configurations of one CA; the client's has a certificate.
func serverAndClient(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	bundle, _, err := pki.Ensure(t.Context(), filepath.Join(t.TempDir(), "pki"), pki.Spec{
		Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour,
		Hosts: []pki.Host{{Name: "m1", SANs: []string{"127.0.0.1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle.CA)
	load := func(pair pki.Pair) []tls.Certificate {
		certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{certificate}
	}
	server = &tls.Config{NextProtos: Protocols(), MinVersion: tls.VersionTLS12, Certificates: load(bundle.Hosts["m1"].Server), ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	client = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: load(bundle.HealthcheckClient), RootCAs: pool}
	return server, client
}

func dialGRPC(t *testing.T, port *Port, client *tls.Config) *grpc.ClientConn {
	t.Helper()
	security := insecure.NewCredentials()
	if client != nil {
		security = credentials.NewTLS(client)
	}
	conn, err := grpc.NewClient(port.Addr().String(), grpc.WithTransportCredentials(security))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func checkGRPC(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("gRPC: %v", err)
	}
}

// checkManyOnOneConnection gives the server time to find fault with the
// connection: it reads what came with the first request after answering it.
func checkManyOnOneConnection(t *testing.T, port *Port, config *tls.Config) {
	t.Helper()
	client, base := httpClient(port, config, "HTTP/2.0")
	defer client.CloseIdleConnections()
	for range 20 {
		get(t, client, base, "HTTP/2.0")
	}
}

func checkHTTP(t *testing.T, port *Port, config *tls.Config, want string) {
	t.Helper()
	client, base := httpClient(port, config, want)
	defer client.CloseIdleConnections()
	get(t, client, base, want)
}

// httpClient speaks one version of HTTP only.
func httpClient(port *Port, client *tls.Config, version string) (*http.Client, string) {
	scheme := "http"
	transport := &http.Transport{Protocols: new(http.Protocols)}
	switch {
	case version == "HTTP/1.1":
		transport.Protocols.SetHTTP1(true)
	case client == nil:
		transport.Protocols.SetUnencryptedHTTP2(true)
	default:
		transport.Protocols.SetHTTP2(true)
	}
	if client != nil {
		scheme, transport.TLSClientConfig = "https", client.Clone()
	}
	return &http.Client{Transport: transport, Timeout: patience}, scheme + "://" + port.Addr().String() + "/"
}

func get(t *testing.T, client *http.Client, url, want string) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		t.Errorf("%s: %v", want, err)
		return
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != want {
		t.Errorf("the request arrived as %q (%v), want %s", body, err, want)
	}
}

func TestEveryProtocolOnOnePort(t *testing.T) {
	server, client := serverAndClient(t)
	for name, configs := range map[string]struct{ server, client *tls.Config }{"plain": {}, "TLS": {server, client}} {
		t.Run(name, func(t *testing.T) {
			port := start(t, configs.server, 0)
			conn := dialGRPC(t, port, configs.client)
			checkGRPC(t, conn)
			checkHTTP(t, port, configs.client, "HTTP/1.1")
			for range 20 {
				checkHTTP(t, port, configs.client, "HTTP/2.0")
			}
			checkManyOnOneConnection(t, port, configs.client)
			checkGRPC(t, conn)
		})
	}
}

func TestClientCertificateIsRequired(t *testing.T) {
	server, client := serverAndClient(t)
	port := start(t, server, 0)
	anonymous := client.Clone()
	anonymous.Certificates = nil
	transport := &http.Transport{TLSClientConfig: anonymous}
	defer transport.CloseIdleConnections()
	if response, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + port.Addr().String() + "/"); err == nil {
		_ = response.Body.Close()
		t.Error("a client without a certificate was served")
	}
	checkHTTP(t, port, client, "HTTP/1.1")
}

// The bound on opening a connection ends silent clients, not idle ones.
func TestIdleConnectionSurvivesTheOpeningBound(t *testing.T) {
	const bound = 200 * time.Millisecond
	server, client := serverAndClient(t)
	for name, configs := range map[string]struct{ server, client *tls.Config }{"plain": {}, "TLS": {server, client}} {
		t.Run(name, func(t *testing.T) {
			port := start(t, configs.server, bound)
			used, unused := dialGRPC(t, port, configs.client), dialGRPC(t, port, configs.client)
			checkGRPC(t, used)
			unused.Connect() // the client's preface, and no request
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for state := unused.GetState(); state != connectivity.Ready; state = unused.GetState() {
				if !unused.WaitForStateChange(ctx, state) {
					t.Fatalf("the connection is %v", state)
				}
			}
			// A silent client shows that the bound has passed.
			silent, err := net.Dial("tcp", port.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			if err := silent.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(silent); err != nil {
				t.Errorf("a silent client's connection ends with %v, want it closed", err)
			}
			for name, conn := range map[string]*grpc.ClientConn{"used": used, "unused": unused} {
				if state := conn.GetState(); state != connectivity.Ready {
					t.Errorf("the %s connection is %v after the bound", name, state)
				}
				checkGRPC(t, conn)
			}
		})
	}
}

// Clients that stall in the handshake delay nobody.
func TestStalledHandshakeDelaysNobody(t *testing.T) {
	server, client := serverAndClient(t)
	port := start(t, server, 0)
	for range 20 {
		conn, err := net.Dial("tcp", port.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{0x16, 0x03}); err != nil {
			t.Fatal(err)
		}
	}
	checkGRPC(t, dialGRPC(t, port, client))
	checkHTTP(t, port, client, "HTTP/1.1")
}

// A client that has connected and asked for nothing yet does not hold up the
// end; start's cleanup fails when it does.
func TestCloseWithAnUnusedConnection(t *testing.T) {
	var conn net.Conn
	t.Cleanup(func() { _ = conn.Close() }) // after that of start
	port := start(t, nil, 0)
	var err error
	if conn, err = net.Dial("tcp", port.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// The preface and empty SETTINGS; the answer shows that both were read.
	if _, err := io.WriteString(conn, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, frameHeaderBytes)); err != nil {
		t.Fatal(err)
	}
}

func TestListenNamesTheAddress(t *testing.T) {
	port := start(t, nil, 0)
	if _, err := Listen(port.Addr().String(), Config{Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("an address in use was taken")
	}
}

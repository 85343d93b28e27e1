package tlsfiles

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/pki"
)

// lay makes certificates in a new directory and returns the server's files and
// those of a client.
func lay(t *testing.T) (server, client Files) {
	t.Helper()
	dir := t.TempDir()
	bundle, _, err := pki.Ensure(t.Context(), filepath.Join(dir, "pki"), pki.Spec{
		Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour,
		Hosts: []pki.Host{{Name: "m0", SANs: []string{"127.0.0.1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	save := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := save("ca.crt", bundle.CA)
	pair := bundle.Hosts["m0"].Server
	server = Files{Cert: save("server.crt", pair.Cert), Key: save("server.key", pair.Key), CA: ca, RequireClientCert: true}
	client = Files{Cert: save("client.crt", bundle.HealthcheckClient.Cert), Key: save("client.key", bundle.HealthcheckClient.Key), CA: ca}
	return server, client
}

// handshake returns the certificate that the server presented, or why there
// was no connection; the server's verdict on the client is part of it.
func handshake(t *testing.T, server, client *tls.Config) (serial string, err error) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if conn.(*tls.Conn).Handshake() == nil {
			_, _ = conn.Write([]byte("!"))
		}
	}()
	raw, err := net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	client.ServerName = "127.0.0.1"
	conn := tls.Client(raw, client)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return "", err
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func open(t *testing.T, files Files, log io.Writer) *Credentials {
	t.Helper()
	credentials, err := files.Open(slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return credentials
}

func configs(t *testing.T, server, client Files) (*tls.Config, *tls.Config) {
	t.Helper()
	return open(t, server, io.Discard).Server("x"), open(t, client, io.Discard).Client()
}

func TestMutualTLS(t *testing.T) {
	server, client := lay(t)
	s, c := configs(t, server, client)
	if _, err := handshake(t, s, c); err != nil {
		t.Errorf("a client of the same CA: %v", err)
	}
	_, stranger := lay(t)
	stranger.CA = client.CA // trusts the server, but was signed by another CA
	_, c = configs(t, server, stranger)
	if _, err := handshake(t, s, c); err == nil {
		t.Error("a client of another CA was admitted")
	}
	_, c = configs(t, server, client)
	c.GetClientCertificate = nil
	if _, err := handshake(t, s, c); err == nil {
		t.Error("a client without a certificate was admitted")
	}
	server.RequireClientCert, server.CA = false, ""
	s, _ = configs(t, server, client)
	if _, err := handshake(t, s, c); err != nil {
		t.Errorf("a client without a certificate where none is required: %v", err)
	}
	c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := handshake(t, s, c); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
}

func TestFilesThatDoNotWork(t *testing.T) {
	server, client := lay(t)
	with := func(change func(*Files)) Files {
		files := server
		change(&files)
		return files
	}
	for name, test := range map[string]struct {
		files Files
		want  string
	}{
		"no key":               {Files{Cert: server.Cert}, "a certificate and a key are both needed"},
		"no certificate":       {Files{Key: server.Key}, "a certificate and a key are both needed"},
		"missing file":         {Files{Cert: "/no/file", Key: server.Key}, "read the certificate /no/file with the key " + server.Key},
		"another's key":        {Files{Cert: server.Cert, Key: client.Key}, "private key does not match public key"},
		"no key for dialing":   {with(func(f *Files) { f.ClientCert = client.Cert }), "a certificate and a key are both needed"},
		"missing CA":           {with(func(f *Files) { f.CA = "/no/ca" }), "read the trusted CA: open /no/ca"},
		"CA is not PEM":        {with(func(f *Files) { f.CA = "tlsfiles.go" }), "(tlsfiles.go): it holds no PEM certificate"},
		"clients without a CA": {with(func(f *Files) { f.CA = "" }), "add the trusted-ca-file flag"},
		"missing CRL":          {with(func(f *Files) { f.CRL = "/no/crl" }), "read the revocation list: open /no/crl"},
		"CRL is not one":       {with(func(f *Files) { f.CRL = server.Cert }), "read the revocation list (" + server.Cert + "): x509: "},
		"no such suite":        {with(func(f *Files) { f.CipherSuites = []string{"ROT13"} }), `unexpected TLS cipher suite "ROT13"`},
		"no such version":      {with(func(f *Files) { f.MinVersion = "TLS1.1" }), `unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)`},
		"no version left":      {with(func(f *Files) { f.MinVersion, f.MaxVersion = "TLS1.3", "TLS1.2" }), "min version (TLS1.3) is greater than max version (TLS1.2)"},
		"suites of no version": {with(func(f *Files) {
			f.MinVersion, f.CipherSuites = "TLS1.3", []string{"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"}
		}), "cipher suites cannot be configured when only TLS1.3 is enabled"},
		"two kinds of names": {with(func(f *Files) { f.AllowedCNs, f.AllowedHostnames = []string{"a"}, []string{"b"} }), "are mutually exclusive"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := test.files.Open(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	if (Files{}).Enabled() || !server.Enabled() {
		t.Error("Enabled is wrong")
	}
}

func TestVersionsAndSuites(t *testing.T) {
	server, client := lay(t)
	const suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"
	server.MaxVersion, server.CipherSuites = "TLS1.2", []string{suite}
	s, c := configs(t, server, client)
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if state.Version != tls.VersionTLS12 || state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
			t.Errorf("version %x and suite %x were negotiated", state.Version, state.CipherSuite)
		}
		return nil
	}
	if _, err := handshake(t, s, c); err != nil {
		t.Error(err)
	}
	server.MaxVersion, server.MinVersion, server.CipherSuites = "", "TLS1.3", nil
	s, c = configs(t, server, client)
	c.MaxVersion = tls.VersionTLS12
	if _, err := handshake(t, s, c); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

// What the log of a reload says is read by the test while handshakes write it.
type log struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

package tlsfiles

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
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

func configs(t *testing.T, server, client Files) (*tls.Config, *tls.Config) {
	t.Helper()
	s, err := server.Server()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Client()
	if err != nil {
		t.Fatal(err)
	}
	return s, c
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
	server.RequireClientCert = false
	s, _ = configs(t, server, client)
	if _, err := handshake(t, s, c); err != nil {
		t.Errorf("a client without a certificate where none is required: %v", err)
	}
	c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := handshake(t, s, c); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
}

// A renewed certificate is served without a restart.
func TestRenewedCertificateIsServed(t *testing.T) {
	server, client := lay(t)
	s, c := configs(t, server, client)
	before, err := handshake(t, s, c)
	if err != nil {
		t.Fatal(err)
	}
	renewed, trust := lay(t)
	for to, from := range map[string]string{server.Cert: renewed.Cert, server.Key: renewed.Key} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client.CA = trust.CA
	if c, err = client.Client(); err != nil {
		t.Fatal(err)
	}
	after, err := handshake(t, s, c)
	if err != nil || after == before {
		t.Errorf("after the renewal the server presents %s (%v), before %s", after, err, before)
	}
}

func TestFilesThatDoNotWork(t *testing.T) {
	server, client := lay(t)
	for name, test := range map[string]struct {
		files Files
		want  string
	}{
		"no key":               {Files{Cert: server.Cert}, "a certificate and a key are both needed"},
		"no certificate":       {Files{Key: server.Key}, "a certificate and a key are both needed"},
		"missing file":         {Files{Cert: "/no/file", Key: server.Key}, "load the certificate /no/file with the key " + server.Key},
		"another's key":        {Files{Cert: server.Cert, Key: client.Key}, "private key does not match public key"},
		"missing CA":           {Files{Cert: server.Cert, Key: server.Key, CA: "/no/ca"}, "read the trusted CA: open /no/ca"},
		"CA is not PEM":        {Files{Cert: server.Cert, Key: server.Key, CA: "tlsfiles.go"}, "tlsfiles.go holds no PEM certificate"},
		"clients without a CA": {Files{Cert: server.Cert, Key: server.Key, RequireClientCert: true}, "add the trusted-ca-file flag"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := test.files.Server(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	if (Files{}).Enabled() || !server.Enabled() {
		t.Error("Enabled is wrong")
	}
}

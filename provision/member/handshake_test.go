package member

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/pki"
)

// authorities returns what two CAs have issued.
func authorities(t *testing.T) (own, other pki.Bundle) {
	t.Helper()
	spec := pki.Spec{Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour, Hosts: []pki.Host{{Name: "a"}}}
	bundles := make([]pki.Bundle, 2)
	for i := range bundles {
		var err error
		if bundles[i], _, err = pki.Ensure(t.Context(), filepath.Join(t.TempDir(), "pki"), spec); err != nil {
			t.Fatal(err)
		}
	}
	return bundles[0], bundles[1]
}

// listen serves TLS that wants certificates of the bundle's CA, as a member
// does, and returns its URL. The server says nothing after the handshake.
func listen(t *testing.T, b pki.Bundle, change func(*tls.Config)) string {
	t.Helper()
	cert, err := tls.X509KeyPair(b.Hosts["a"].Server.Cert, b.Hosts["a"].Server.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b.CA)
	config := &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	change(config)
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close() //nolint:errcheck // nothing is lost
				_, _ = conn.Read(make([]byte, 1))
			}()
		}
	}()
	return "https://" + l.Addr().String()
}

func dialer(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// A handshake tells what is served and whether a client's CA is known there,
// whichever version of TLS is spoken.
func TestShake(t *testing.T) {
	own, other := authorities(t)
	for name, change := range map[string]func(*tls.Config){
		"any version":  func(*tls.Config) {},
		"TLS 1.2 only": func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"TLS 1.3 only": func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := listen(t, own, change)
			for _, test := range []struct {
				what     string
				client   pki.Pair
				stranger bool
			}{
				{"a client of its CA", own.HealthcheckClient, false},
				{"a client of another CA", other.HealthcheckClient, true},
			} {
				h, err := Shake(t.Context(), url, test.client, dialer)
				if err != nil {
					t.Fatalf("%s: %v", test.what, err)
				}
				if h.Stranger != test.stranger {
					t.Errorf("%s: stranger %v", test.what, h.Stranger)
				}
				if !h.ServedBy(own.CA) || h.ServedBy(other.CA) {
					t.Errorf("%s: the wrong CA is found to have signed %s", test.what, h.Served.Issuer)
				}
				if text := string(h.PEM()); strings.TrimSpace(text) != strings.TrimSpace(string(own.Hosts["a"].Server.Cert)) {
					t.Errorf("%s: served\n%s", test.what, text)
				}
			}
		})
	}
}

// Another reason to refuse a client is no verdict on its CA.
func TestShakeTellsReasonsApart(t *testing.T) {
	own, _ := authorities(t)
	url := listen(t, own, func(c *tls.Config) {
		c.VerifyConnection = func(tls.ConnectionState) error { return context.Canceled }
	})
	h, err := Shake(t.Context(), url, own.HealthcheckClient, dialer)
	if err != nil || h.Stranger || h.Served == nil {
		t.Errorf("%+v, %v", h, err)
	}
}

// Where nobody speaks TLS there is nothing to judge.
func TestShakeWithoutTLS(t *testing.T) {
	own, _ := authorities(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	url := "https://" + l.Addr().String()
	if _, err := Shake(t.Context(), url, own.HealthcheckClient, dialer); err == nil || !strings.Contains(err.Error(), "handshake with "+url) {
		t.Errorf("a port that speaks HTTP: %v", err)
	}
	_ = l.Close()
	if _, err := Shake(t.Context(), url, own.HealthcheckClient, dialer); err == nil {
		t.Error("a closed port was judged")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close() //nolint:errcheck // nothing is lost
	if _, err := Shake(ctx, "https://"+silent.Addr().String(), own.HealthcheckClient, dialer); err == nil {
		t.Error("a silent port was judged")
	}
}

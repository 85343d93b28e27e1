package member

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"muster/pki"
)

// Handshake is what a TLS handshake with one port of a member showed.
type Handshake struct {
	// Served is the certificate of the member, which nobody has verified.
	Served *x509.Certificate
	// Chain are the certificates that came with it.
	Chain []*x509.Certificate
	// Stranger says that the member does not know the CA of the certificate
	// that it was shown.
	Stranger bool
}

// ServedBy reports whether the certificate leads to one of the CAs, whether or
// not it has expired.
func (h Handshake) ServedBy(bundle []byte) bool {
	roots, chain := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, c := range h.Chain {
		chain.AddCert(c)
	}
	_, err := h.Served.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: chain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: h.Served.NotBefore.Add(h.Served.NotAfter.Sub(h.Served.NotBefore) / 2),
	})
	return err == nil
}

// PEM is the certificate and what came with it, as a file would have it.
func (h Handshake) PEM() []byte {
	var text []byte
	for _, c := range append([]*x509.Certificate{h.Served}, h.Chain...) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// Shake makes one TLS handshake with the port of a URL and shows the
// certificate of the pair. It neither asks for nor sends anything else, so it
// works with peer ports and with members that are not ready. An error means
// that there was no handshake to judge.
func Shake(ctx context.Context, endpoint string, pair pki.Pair, dial Dial) (Handshake, error) {
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return Handshake{}, fmt.Errorf("the client certificate: %w", err)
	}
	// In TLS 1.2 the handshake ends with the member's verdict on ours.
	h, err := shake(ctx, endpoint, cert, tls.VersionTLS12, dial)
	if saysAlert(err, "protocol version") {
		h, err = shake(ctx, endpoint, cert, tls.VersionTLS13, dial)
	}
	if err != nil {
		return Handshake{}, fmt.Errorf("handshake with %s: %w", endpoint, err)
	}
	return h, nil
}

// verdictTimeout is how long a member that speaks TLS 1.3 only may take to
// refuse a certificate after the handshake. One that does not refuse it waits
// for a request.
const verdictTimeout = 2 * time.Second

func shake(ctx context.Context, endpoint string, cert tls.Certificate, version uint16, dial Dial) (Handshake, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return Handshake{}, err
	}
	raw, err := dial(ctx, "tcp", u.Host)
	if err != nil {
		return Handshake{}, err
	}
	defer raw.Close() //nolint:errcheck // nothing is lost
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	var h Handshake
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: version, ServerName: u.Hostname(),
		// Whoever asks for the handshake judges the certificate: it may well be
		// one that must not be served any more.
		InsecureSkipVerify: true, //nolint:gosec // nothing is sent or believed
		// Also when the member names other CAs as the ones it knows.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
		VerifyPeerCertificate: func(served [][]byte, _ [][]*x509.Certificate) error {
			for i, der := range served {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				if i == 0 {
					h.Served = c
				} else {
					h.Chain = append(h.Chain, c)
				}
			}
			return nil
		},
	})
	err = conn.HandshakeContext(ctx)
	if err == nil && version == tls.VersionTLS13 {
		if err = conn.SetReadDeadline(time.Now().Add(verdictTimeout)); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if !isAlert(err) {
			err = nil // it said nothing about the certificate
		}
	}
	h.Stranger = saysAlert(err, "unknown certificate authority")
	if h.Stranger || isAlert(err) && h.Served != nil && !saysAlert(err, "protocol version") {
		err = nil // a verdict, be it another one
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return h, err
}

// isAlert reports whether an error is the other side's, told by TLS.
func isAlert(err error) bool {
	var told *net.OpError
	return errors.As(err, &told) && told.Op == "remote error"
}

func saysAlert(err error, text string) bool {
	return isAlert(err) && strings.Contains(err.Error(), text)
}

// Package tlsfiles makes TLS configurations from certificate files.
//
// Every handshake uses the files as they are then: a renewed certificate, CA
// bundle or revocation list counts from the next connection on, without a
// restart. What cannot be read leaves the last good one in use, and is logged
// once.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
)

// Files names PEM files, and says whom they admit. The zero value means no
// TLS.
type Files struct {
	Cert, Key string
	// ClientCert and ClientKey are what the dialing side presents; Cert and Key
	// when both are empty.
	ClientCert, ClientKey string
	// CA is the bundle that the other side's certificate must chain to. A
	// server with a bundle requires certificates of its clients, as etcd's do.
	CA string
	// RequireClientCert refuses clients without a certificate of the CA.
	RequireClientCert bool
	// CRL lists certificates that are refused although the CA signed them, in
	// DER or PEM.
	CRL string
	// AllowedCNs and AllowedHostnames, of which one at most may be given,
	// narrow down whose certificates are admitted.
	AllowedCNs, AllowedHostnames []string
	// SkipAddressCheck admits peers whatever address they call from; see
	// CheckAddress.
	SkipAddressCheck bool
	// Auto makes a certificate where none is given; see SelfSign.
	Auto bool
	// Unverified trusts every server, for certificates that nobody signed.
	Unverified bool

	// CipherSuites are names of TLS 1.2 suites; Go's choice when empty.
	CipherSuites []string
	// MinVersion and MaxVersion are TLS1.2 or TLS1.3; empty means 1.2 and the
	// newest.
	MinVersion, MaxVersion string
}

// Enabled reports whether a certificate is configured.
func (f Files) Enabled() bool { return f.Cert != "" || f.Key != "" }

// Credentials are Files that have been read.
type Credentials struct {
	files       Files
	base        *tls.Config
	server      *reloaded[*tls.Certificate]
	client      *reloaded[*tls.Certificate]
	pool        *reloaded[*x509.CertPool]
	revocations *reloaded[revocations]
}

// Open reads the files. It fails when one is missing, does not parse, or does
// not belong to its key.
func (f Files) Open(logger *slog.Logger) (*Credentials, error) {
	c := &Credentials{files: f}
	var err error
	if c.base, err = f.base(); err != nil {
		return nil, err
	}
	if c.server, err = openPair(f.Cert, f.Key, logger); err != nil {
		return nil, err
	}
	c.client = c.server
	if f.ClientCert != "" || f.ClientKey != "" {
		if c.client, err = openPair(f.ClientCert, f.ClientKey, logger); err != nil {
			return nil, err
		}
	}
	switch {
	case f.CA != "":
		if c.pool, err = openReloaded("the trusted CA", []string{f.CA}, parsePool, logger); err != nil {
			return nil, err
		}
	case f.RequireClientCert:
		return nil, errors.New("client certificates are required but no trusted CA file is given; add the trusted-ca-file flag")
	}
	if f.CRL != "" {
		if c.revocations, err = openReloaded("the revocation list", []string{f.CRL}, parseRevocations, logger); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// base is what both sides have in common.
func (f Files) base() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if f.MinVersion != "" {
		if config.MinVersion, err = tlsutil.GetTLSVersion(f.MinVersion); err != nil {
			return nil, err
		}
	}
	if config.MaxVersion, err = tlsutil.GetTLSVersion(f.MaxVersion); err != nil {
		return nil, err
	}
	if config.MaxVersion != 0 && config.MinVersion > config.MaxVersion {
		return nil, fmt.Errorf("min version (%s) is greater than max version (%s)", f.MinVersion, f.MaxVersion)
	}
	if len(f.CipherSuites) > 0 {
		if config.MinVersion == tls.VersionTLS13 {
			return nil, errors.New("cipher suites cannot be configured when only TLS1.3 is enabled")
		}
		if config.CipherSuites, err = tlsutil.GetCipherSuites(f.CipherSuites); err != nil {
			return nil, err
		}
	}
	if len(f.AllowedCNs) > 0 && len(f.AllowedHostnames) > 0 {
		return nil, fmt.Errorf("allowed CNs and allowed hostnames are mutually exclusive (cns=%q, hostnames=%q); leave one out", f.AllowedCNs, f.AllowedHostnames)
	}
	return config, nil
}

// Server returns the configuration of the listening side, which negotiates one
// of the protocols. They are given here, and not set by the caller, because
// every handshake may have a configuration of its own.
func (c *Credentials) Server(protocols ...string) *tls.Config {
	outer := c.base.Clone()
	outer.NextProtos = protocols
	outer.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.server.get(), nil }
	outer.VerifyConnection = c.verify
	if c.pool == nil {
		return outer
	}
	// A configuration keeps the keys of the sessions that may be resumed, so it
	// lasts until the bundle changes.
	var mu sync.Mutex
	var pool *x509.CertPool
	var config *tls.Config
	outer.ClientAuth = tls.RequireAndVerifyClientCert
	outer.ClientCAs = c.pool.get()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		if now := c.pool.get(); now != pool {
			pool, config = now, outer.Clone()
			config.GetConfigForClient, config.ClientCAs = nil, now
		}
		return config, nil
	}
	return outer
}

// Client returns the configuration of the dialing side: it presents the client
// certificate and trusts only the CA (the system's roots when CA is empty).
func (c *Credentials) Client() *tls.Config {
	config := c.base.Clone()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.client.get(), nil }
	config.VerifyConnection = c.verify
	switch {
	case c.files.Unverified:
		config.InsecureSkipVerify = true
	case c.pool != nil:
		// The library would verify with the bundle of the time when config was
		// made; the same is done below with the present one.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			options := x509.VerifyOptions{DNSName: state.ServerName, Roots: c.pool.get(), Intermediates: x509.NewCertPool()}
			for _, certificate := range state.PeerCertificates[1:] {
				options.Intermediates.AddCert(certificate)
			}
			if _, err := state.PeerCertificates[0].Verify(options); err != nil {
				return err
			}
			return c.verify(state)
		}
	}
	return config
}

func openPair(cert, key string, logger *slog.Logger) (*reloaded[*tls.Certificate], error) {
	if cert == "" || key == "" {
		return nil, fmt.Errorf("a certificate and a key are both needed; have cert %q and key %q", cert, key)
	}
	what := fmt.Sprintf("the certificate %s with the key %s", cert, key)
	return openReloaded(what, []string{cert, key}, func(contents [][]byte) (*tls.Certificate, error) {
		pair, err := tls.X509KeyPair(contents[0], contents[1])
		return &pair, err
	}, logger)
}

func parsePool(contents [][]byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(contents[0]) {
		return nil, errors.New("it holds no PEM certificate")
	}
	return pool, nil
}

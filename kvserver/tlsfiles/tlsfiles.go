// Package tlsfiles makes TLS configurations from certificate files.
//
// A certificate and its key are read again at each handshake, as etcd does,
// so that a renewed certificate is served without a restart. The CA bundle is
// read once.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Files names PEM files. The zero value means no TLS.
type Files struct {
	Cert, Key string
	// CA is the bundle that the other side's certificate must chain to.
	CA string
	// RequireClientCert refuses clients without a certificate of the CA.
	RequireClientCert bool
}

// Enabled reports whether a certificate is configured.
func (f Files) Enabled() bool { return f.Cert != "" || f.Key != "" }

// Server returns the configuration of the listening side. It fails when a
// file is missing, does not parse, or does not belong to its key.
func (f Files) Server() (*tls.Config, error) {
	pool, err := f.check()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return f.load()
		},
	}
	if f.RequireClientCert {
		if pool == nil {
			return nil, errors.New("client certificates are required but no trusted CA file is given; add the trusted-ca-file flag")
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = pool
	}
	return config, nil
}

// Client returns the configuration of the dialing side: it presents the same
// certificate and trusts only the CA (the system's roots when CA is empty).
func (f Files) Client() (*tls.Config, error) {
	pool, err := f.check()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return f.load()
		},
	}, nil
}

func (f Files) check() (*x509.CertPool, error) {
	if _, err := f.load(); err != nil {
		return nil, err
	}
	if f.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("read the trusted CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the trusted CA: %s holds no PEM certificate", f.CA)
	}
	return pool, nil
}

func (f Files) load() (*tls.Certificate, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, fmt.Errorf("a certificate and a key are both needed; have cert %q and key %q", f.Cert, f.Key)
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("load the certificate %s with the key %s: %w", f.Cert, f.Key, err)
	}
	return &pair, nil
}

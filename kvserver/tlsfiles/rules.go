package tlsfiles

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
)

// revocations are the serial numbers of a revocation list.
type revocations map[string]struct{}

func parseRevocations(contents [][]byte) (revocations, error) {
	der := contents[0]
	if block, _ := pem.Decode(der); block != nil {
		der = block.Bytes
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	revoked := revocations{}
	for _, entry := range list.RevokedCertificateEntries {
		revoked[serial(entry.SerialNumber)] = struct{}{}
	}
	return revoked, nil
}

func serial(number *big.Int) string { return string(number.Bytes()) }

// verify judges a certificate that the CA has signed. It is called for every
// connection, resumed ones included.
func (c *Credentials) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil // where one is required, its absence has ended the handshake
	}
	if c.revocations != nil {
		revoked := c.revocations.get()
		for _, certificate := range state.PeerCertificates {
			if _, listed := revoked[serial(certificate.SerialNumber)]; listed {
				return fmt.Errorf("the certificate of %q with the serial number %x is revoked", certificate.Subject.CommonName, certificate.SerialNumber)
			}
		}
	}
	if !c.admits(state.PeerCertificates[0]) {
		return errors.New("client certificate authentication failed")
	}
	return nil
}

func (c *Credentials) admits(certificate *x509.Certificate) bool {
	switch {
	case len(c.files.AllowedCNs) > 0:
		return slices.Contains(c.files.AllowedCNs, certificate.Subject.CommonName)
	case len(c.files.AllowedHostnames) > 0:
		return slices.ContainsFunc(c.files.AllowedHostnames, func(name string) bool { return certificate.VerifyHostname(name) == nil })
	}
	return true
}

// CheckAddress judges whether a peer's certificate is for the address it calls
// from, as etcd does it (client/pkg/transport/listener_tls.go): one of the
// certificate's addresses, or an address of one of its names. A certificate
// without either is good anywhere.
func (c *Credentials) CheckAddress(ctx context.Context, certificate *x509.Certificate, from net.Addr) error {
	if c.files.SkipAddressCheck || len(certificate.IPAddresses) == 0 && len(certificate.DNSNames) == 0 {
		return nil
	}
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		return err
	}
	if len(certificate.IPAddresses) > 0 && certificate.VerifyHostname(host) == nil || leadsTo(ctx, host, certificate.DNSNames) {
		return nil
	}
	return fmt.Errorf("the certificate of %q is for %v %q, not for the address %s that it is used from; name that address in it, or see --peer-skip-client-san-verification",
		certificate.Subject.CommonName, certificate.IPAddresses, certificate.DNSNames, host)
}

// leadsTo reports whether a name is of the host: by what the host is called,
// or, for names without a wildcard, by where the name leads.
func leadsTo(ctx context.Context, host string, names []string) bool {
	if len(names) == 0 {
		return false
	}
	called, _ := net.DefaultResolver.LookupAddr(ctx, host)
	for _, name := range names {
		suffix, wildcard := strings.CutPrefix(name, "*")
		for _, own := range called {
			own = strings.TrimSuffix(own, ".")
			if own == name || wildcard && strings.HasSuffix(own, suffix) {
				return true
			}
		}
	}
	for _, name := range names {
		if addresses, err := net.DefaultResolver.LookupHost(ctx, name); err == nil && slices.Contains(addresses, host) {
			return true
		}
	}
	return false
}

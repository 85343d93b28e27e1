package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cloudflare/cfssl/config"
	"github.com/cloudflare/cfssl/csr"
	"github.com/cloudflare/cfssl/helpers"
	cfssllog "github.com/cloudflare/cfssl/log"
	"github.com/cloudflare/cfssl/signer"
	"github.com/cloudflare/cfssl/signer/local"
)

const (
	caCommonName = "etcd-ca"

	// backdate tolerates hosts whose clock is behind the workstation's.
	backdate = 5 * time.Minute

	reasonMissing = "missing"
)

// quietly stops cfssl from printing what it does. Its failures are returned
// as errors as well, so nothing is lost.
var quietly = sync.OnceFunc(func() { cfssllog.Level = cfssllog.LevelFatal })

// authority is a CA.
type authority struct {
	bundle  []byte // PEM: every CA to trust, the one that signs first
	cert    *x509.Certificate
	trusted []*x509.Certificate // those of the bundle
	// key is nil when the directory does not hold it, or holds it encrypted.
	key crypto.Signer
	// sealed is the encrypted key.
	sealed []byte
}

// parseAuthority reads a CA and checks that its parts belong together. The
// key may be empty, or encrypted: then the check waits until it is opened.
func parseAuthority(bundle, key []byte) (authority, error) {
	certs, err := parseCAs(bundle)
	if err != nil {
		return authority{}, fmt.Errorf("%s %w", caCert, err)
	}
	ca := authority{bundle: bundle, cert: certs[0], trusted: certs}
	switch {
	case len(key) == 0:
	case isSealed(key):
		ca.sealed = key
	default:
		err = ca.setKey(key)
	}
	return ca, err
}

// parseCAs reads one or more certificates of CAs.
func parseCAs(bundle []byte) ([]*x509.Certificate, error) {
	certs, err := helpers.ParseCertificatesPEM(bundle)
	if err == nil && len(certs) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("holds no certificate: %w", err)
	}
	for _, cert := range certs {
		if !cert.IsCA {
			return nil, fmt.Errorf("is the certificate of %q, which is not a CA", cert.Subject.CommonName)
		}
	}
	return certs, nil
}

// setKey gives the CA its key, in PEM.
func (ca *authority) setKey(keyPEM []byte) error {
	key, err := helpers.ParsePrivateKeyPEM(keyPEM)
	if err != nil {
		return fmt.Errorf("%s holds no private key: %w", caKey, err)
	}
	if !samePublicKey(ca.cert.PublicKey, key.Public()) {
		return fmt.Errorf("%s and %s do not belong together", caCert, caKey)
	}
	ca.key = key
	return nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// newKey returns a new private key in PEM.
func newKey(a Algorithm) ([]byte, error) {
	quietly()
	_, key, err := csr.ParseRequest(&csr.CertificateRequest{KeyRequest: a.request()})
	return key, err
}

func (a Algorithm) request() *csr.KeyRequest {
	switch a {
	case RSA2048:
		return &csr.KeyRequest{A: "rsa", S: 2048}
	case RSA4096:
		return &csr.KeyRequest{A: "rsa", S: 4096}
	default:
		return &csr.KeyRequest{A: "ecdsa", S: 256}
	}
}

// of says whether a public key is of this algorithm.
func (a Algorithm) of(key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return a == ECDSAP256 && k.Curve == elliptic.P256()
	case *rsa.PublicKey:
		return a == RSA2048 && k.N.BitLen() == 2048 || a == RSA4096 && k.N.BitLen() == 4096
	}
	return false
}

// selfSign returns the certificate of a new CA that has the given key. It has
// what kubeadm's has, the name of the CA among the names included. cfssl leaves
// the names out of every CA, but not an extension that a profile admits.
func selfSign(keyPEM []byte, lifetime time.Duration) ([]byte, error) {
	quietly()
	key, err := helpers.ParsePrivateKeyPEM(keyPEM)
	if err != nil {
		return nil, err
	}
	request, err := csr.Generate(key, &csr.CertificateRequest{CN: caCommonName})
	if err != nil {
		return nil, err
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: dnsNameTag, Bytes: []byte(caCommonName)}})
	if err != nil {
		return nil, err
	}
	profile := &config.SigningProfile{
		Usage:              []string{"digital signature", "key encipherment", "cert sign"},
		Expiry:             lifetime,
		CAConstraint:       config.CAConstraint{IsCA: true},
		ExtensionWhitelist: map[string]bool{asn1.ObjectIdentifier(subjectAltName).String(): true},
	}
	s, err := local.NewSigner(key, nil, signer.DefaultSigAlgo(key), &config.Signing{Default: profile})
	if err != nil {
		return nil, err
	}
	now := time.Now() // cfssl would round it to a minute
	return s.Sign(signer.SignRequest{
		Request:    string(request),
		NotBefore:  now.Add(-backdate),
		NotAfter:   now.Add(lifetime),
		Extensions: []signer.Extension{{ID: subjectAltName, Value: hex.EncodeToString(names)}},
	})
}

// Of the subject alternative name, RFC 5280, 4.2.1.6.
var subjectAltName = config.OID{2, 5, 29, 17}

const dnsNameTag = 2

// issue makes a key and a certificate for it.
func (ca authority) issue(want leaf, algorithm Algorithm, now time.Time, lifetime time.Duration) (Pair, error) {
	quietly()
	request, key, err := csr.ParseRequest(&csr.CertificateRequest{
		CN: want.commonName, Hosts: want.sans, KeyRequest: algorithm.request(),
	})
	if err != nil {
		return Pair{}, err
	}
	cert, err := ca.signRequest(request, want.usages, nil, now, lifetime)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: cert, Key: key}, nil
}

// signRequest signs a request in PEM. The names given, if any, replace those
// in the request.
func (ca authority) signRequest(request []byte, usages []x509.ExtKeyUsage, hosts []string, now time.Time, lifetime time.Duration) ([]byte, error) {
	profile := &config.SigningProfile{
		Usage:  append([]string{"digital signature", "key encipherment"}, usageNames(usages)...),
		Expiry: lifetime,
	}
	s, err := local.NewSigner(ca.key, ca.cert, signer.DefaultSigAlgo(ca.key), &config.Signing{Default: profile})
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(lifetime)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	return s.Sign(signer.SignRequest{
		Request:   string(request),
		Hosts:     hosts,
		NotBefore: now.Add(-backdate),
		NotAfter:  notAfter,
	})
}

func usageNames(usages []x509.ExtKeyUsage) []string {
	var names []string
	for _, u := range usages {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			names = append(names, "server auth")
		case x509.ExtKeyUsageClientAuth:
			names = append(names, "client auth")
		}
	}
	return names
}

// misfit says why a pair cannot stay what the leaf needs, or "".
func (ca authority) misfit(pair Pair, want leaf, algorithm Algorithm, now time.Time) string {
	cert, err := parseLeaf(pair)
	if err != nil {
		return err.Error()
	}
	return ca.misfitCert(cert, nil, want, algorithm, now)
}

// misfitCert is misfit for a certificate alone. What came with it in its file
// is of no importance: this CA signs by itself.
func (ca authority) misfitCert(cert *x509.Certificate, _ []byte, want leaf, algorithm Algorithm, now time.Time) string {
	lifetime := cert.NotAfter.Sub(cert.NotBefore)
	left := cert.NotAfter.Sub(now)
	renewable := cert.NotAfter.Before(ca.cert.NotAfter) // another would last longer
	switch {
	case cert.CheckSignatureFrom(ca.cert) != nil:
		return "signed by another CA"
	case !algorithm.of(cert.PublicKey):
		return "its key is not " + string(algorithm)
	case cert.Subject.CommonName != want.commonName:
		return fmt.Sprintf("made for %q", cert.Subject.CommonName)
	case !slices.Equal(sansOf(cert), want.sans):
		return "its names have changed"
	case !slices.Equal(cert.ExtKeyUsage, want.usages):
		return "its usages have changed"
	case left <= 0:
		return "expired on " + cert.NotAfter.Format(time.DateOnly)
	case left < lifetime/3 && renewable:
		return "expires on " + cert.NotAfter.Format(time.DateOnly)
	}
	return ""
}

// parseLeaf returns the certificate of a pair whose key fits.
func parseLeaf(pair Pair) (*x509.Certificate, error) {
	if block, _ := pem.Decode(pair.Cert); block == nil || !bytes.HasPrefix(pair.Cert, []byte("-----BEGIN")) {
		return nil, errors.New("not a certificate")
	}
	loaded, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, errors.New("certificate and key do not belong together")
	}
	return loaded.Leaf, nil
}

// sansOf returns every name of a certificate, sorted, as Host.sans does.
func sansOf(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	return names
}

package pki

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/cloudflare/cfssl/csr"
	"github.com/cloudflare/cfssl/helpers"
)

// externalMisfit says why a pair that another CA signed cannot be used, or "".
// What that CA adds to what was asked for is its own affair.
func (ca authority) externalMisfit(pair Pair, want leaf, algorithm Algorithm, now time.Time) string {
	cert, err := parseLeaf(pair)
	if err != nil {
		return err.Error()
	}
	_, rest := pem.Decode(pair.Cert)
	return ca.externalMisfitCert(cert, rest, want, algorithm, now)
}

// externalMisfitCert is externalMisfit for a certificate alone, and those that
// follow it in its file.
func (ca authority) externalMisfitCert(cert *x509.Certificate, rest []byte, want leaf, _ Algorithm, now time.Time) string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range ca.trusted {
		roots.AddCert(c)
	}
	intermediates.AppendCertsFromPEM(rest)
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: middle(cert), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		say("it was signed by %q, which does not lead to a CA in %s", cert.Issuer.String(), caCert)
	}
	if cert.Subject.CommonName != want.commonName {
		say("its common name is %q, not %q", cert.Subject.CommonName, want.commonName)
	}
	if missing := missingFrom(sansOf(cert), want.sans); len(missing) > 0 {
		say("it lacks the names %s", strings.Join(missing, ", "))
	}
	for _, usage := range want.usages {
		if !slices.Contains(cert.ExtKeyUsage, usage) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
			say("it is not for %s", strings.Join(usageNames([]x509.ExtKeyUsage{usage}), ""))
		}
	}
	if cert.IsCA {
		say("it is a CA")
	}
	switch {
	case now.After(cert.NotAfter):
		say("it expired on %s", cert.NotAfter.Format(time.DateOnly))
	case now.Before(cert.NotBefore):
		say("it is not valid before %s", cert.NotBefore.Format(time.DateTime))
	}
	return strings.Join(wrong, "; ")
}

// middle is a time at which a certificate was, or will be, valid: who signed
// it is one question, whether it has expired another.
func middle(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

func missingFrom(have, want []string) []string {
	var missing []string
	for _, name := range want {
		if !slices.Contains(have, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// Requests writes a certificate request beside every leaf that does not fit,
// and beside those for which due returns true, and returns their paths. A key
// that is there is asked for again: whatever is in use stays in use until its
// successor has been signed. It needs no CA.
func (s *Store) Requests(ctx context.Context, spec Spec, due func(path string, expires time.Time) bool) ([]string, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	var paths []string
	err := s.locked(ctx, func(d directory) error {
		run := &issuing{spec: spec, dir: d, now: s.now(), due: due}
		run.spec.External = true
		var noCA *Error
		if err := run.loadCA(); err != nil && !errors.As(err, &noCA) {
			return err
		}
		clients, err := d.clients()
		if err != nil {
			return err
		}
		for _, want := range append(spec.leaves(), clients...) {
			reason := reasonMissing
			if run.ca.cert != nil {
				if _, reason, err = run.existing(want); err != nil {
					return err
				}
			}
			if reason == "" {
				continue
			}
			if err := run.request(want); err != nil {
				return fmt.Errorf("write the request %s: %w", want.requestPath(), err)
			}
			paths = append(paths, d.path(want.requestPath()))
		}
		return nil
	})
	return paths, err
}

// request writes the request for one leaf, and its key when there is none.
func (r *issuing) request(want leaf) error {
	quietly()
	key, err := r.dir.read(want.keyPath())
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = newKey(r.spec.Algorithm); err == nil {
			err = r.dir.write(want.keyPath(), key, secretMode)
		}
	}
	if err != nil {
		return err
	}
	signer, err := helpers.ParsePrivateKeyPEM(key)
	if err != nil {
		return fmt.Errorf("%s holds no private key: %w", want.keyPath(), err)
	}
	usages, err := usageExtension(want.usages)
	if err != nil {
		return err
	}
	text, err := csr.Generate(signer, &csr.CertificateRequest{
		CN: want.commonName, Hosts: want.sans, Extensions: []pkix.Extension{usages},
	})
	if err != nil {
		return err
	}
	if have, err := r.dir.read(want.requestPath()); err == nil && sameRequest(have, text) {
		return nil
	}
	return r.dir.write(want.requestPath(), text, publicMode)
}

func (l leaf) requestPath() string { return l.path + ".csr" }

// sameRequest compares what is asked for; signatures are never the same.
func sameRequest(a, b []byte) bool {
	var parts [2][]byte
	for i, text := range [][]byte{a, b} {
		block, _ := pem.Decode(text)
		if block == nil {
			return false
		}
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return false
		}
		parts[i] = request.RawTBSCertificateRequest
	}
	return bytes.Equal(parts[0], parts[1])
}

// usageExtension asks for extended key usages, RFC 5280 4.2.1.12.
func usageExtension(usages []x509.ExtKeyUsage) (pkix.Extension, error) {
	purpose := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3}
	var ids []asn1.ObjectIdentifier
	for _, usage := range usages {
		switch usage {
		case x509.ExtKeyUsageServerAuth:
			ids = append(ids, append(slices.Clone(purpose), 1))
		case x509.ExtKeyUsageClientAuth:
			ids = append(ids, append(slices.Clone(purpose), 2))
		}
	}
	value, err := asn1.Marshal(ids)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: value}, err
}

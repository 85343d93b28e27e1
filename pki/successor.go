package pki

import (
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"time"
)

// Succeeds says whether a certificate that somebody else has made with the
// cluster's CA, as kubeadm certs renew does, serves in place of the bundle's: it
// is signed by the CA that signs now, has the names and usages, and is valid for
// longer. The name is that of its file, such as "server", the host whose it is.
func (b Bundle) Succeeds(spec Spec, host, name string, theirs []byte, now time.Time) bool {
	authorities, err := parseCAs(b.CA)
	if err != nil {
		return false
	}
	block, rest := pem.Decode(theirs)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	signing := authority{cert: authorities[0], trusted: authorities[:1]}
	for _, want := range spec.leaves() {
		if filepath.Base(want.path) != name || want.host != host && want.host != "" {
			continue
		}
		ours, err := parseLeaf(want.load(b))
		return err == nil && cert.NotAfter.After(ours.NotAfter) && signing.externalMisfitCert(cert, rest, want, spec.Algorithm, now) == ""
	}
	return false
}

// Package pki makes and keeps the certificates of one cluster in a directory
// on the operator's workstation: the CA, a server and a peer certificate for
// each host, and certificates of clients. It renews them, replaces the CA in
// phases, opens and closes the CA's key, and asks other CAs.
package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Algorithm is the kind of private key to make. kubeadm loads these only.
type Algorithm string

const (
	ECDSAP256 Algorithm = "ecdsa-p256" // ECDSA on the curve P-256
	RSA2048   Algorithm = "rsa-2048"   // RSA with 2048 bits
	RSA4096   Algorithm = "rsa-4096"   // RSA with 4096 bits
)

// Spec says which certificates a cluster needs.
type Spec struct {
	Algorithm Algorithm
	// CALifetime and LeafLifetime run from now; NotBefore lies five minutes
	// further back. A leaf is cut short rather than outlive its CA.
	CALifetime   time.Duration
	LeafLifetime time.Duration
	Hosts        []Host
	// External says that somebody else signs: the directory holds the CA's
	// certificate and, unless it is complete, requests for what is missing.
	// The algorithm and the lifetimes are then those of new keys only.
	External bool
}

// Host is one machine that gets a server and a peer certificate.
type Host struct {
	// Name is the common name and the directory below hosts/.
	Name string
	// SANs are IPs and DNS names in addition to the ones every host gets:
	// its name, localhost, 127.0.0.1 and ::1.
	SANs []string
}

// Pair is a certificate and its private key, both in PEM.
type Pair struct {
	Cert []byte
	Key  []byte
}

// Bundle holds the certificates of a cluster. The CA's key is not in it: it
// never leaves this package.
type Bundle struct {
	CA    []byte // PEM: every CA to trust, the one that signs first
	Hosts map[string]HostPairs

	HealthcheckClient   Pair // for muster's own checks
	APIServerEtcdClient Pair // for the kube-apiserver

	Clients map[string]Pair // for whoever else, by name
}

// HostPairs are the certificates of one host.
type HostPairs struct {
	Server Pair
	Peer   Pair
}

// Error is a failure that the operator can do something about.
type Error struct {
	err  error
	hint string
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Hint says what to do, in one line.
func (e *Error) Hint() string { return e.hint }

// OpenClient reads what is needed to talk to the cluster as muster itself: the
// CA's certificate and the healthcheck client's pair. It changes nothing.
func OpenClient(dir string) (ca []byte, client Pair, err error) {
	d := directory{root: dir, lookOnly: true}
	for _, file := range []struct {
		name string
		into *[]byte
	}{
		{caCert, &ca},
		{healthcheckClient + ".crt", &client.Cert},
		{healthcheckClient + ".key", &client.Key},
	} {
		text, err := d.read(file.name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, Pair{}, &Error{
				err:  fmt.Errorf("read the certificates in %s: %w", dir, err),
				hint: "muster apply makes them; if the cluster exists, name the directory it was made with as pki.dir",
			}
		}
		if err != nil {
			return nil, Pair{}, fmt.Errorf("read the certificates in %s: %w", dir, err)
		}
		*file.into = text
	}
	return ca, client, nil
}

// check reports what would make the spec unsafe or useless.
func (s Spec) check() error {
	switch s.Algorithm {
	case ECDSAP256, RSA2048, RSA4096:
	default:
		return fmt.Errorf("make certificates: unknown key algorithm %q", s.Algorithm)
	}
	if s.CALifetime <= 0 || s.LeafLifetime <= 0 {
		return fmt.Errorf("make certificates: lifetimes %s and %s must be positive", s.CALifetime, s.LeafLifetime)
	}
	seen := map[string]bool{}
	for _, h := range s.Hosts {
		if h.Name == "" || h.Name == "." || !filepath.IsLocal(h.Name) || filepath.Base(h.Name) != h.Name {
			return fmt.Errorf("make certificates: %q cannot name a host's directory", h.Name)
		}
		if seen[h.Name] {
			return fmt.Errorf("make certificates: host %q is listed twice", h.Name)
		}
		seen[h.Name] = true
	}
	return nil
}

// sans returns every name of the host in canonical spelling, sorted.
func (h Host) sans() []string {
	names := append([]string{h.Name, "localhost", "127.0.0.1", "::1"}, h.SANs...)
	for i, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			names[i] = ip.String()
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// tidy reports whether a file name is one that muster puts, or leaves behind,
// in a PKI directory that has no CA yet.
func tidy(entry os.DirEntry) bool {
	return entry.Name() == hostsDir || entry.Name() == lockFile || isTemporary(entry.Name())
}

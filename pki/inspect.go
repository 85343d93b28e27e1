package pki

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// Certificate is one certificate as a person wants to see it.
type Certificate struct {
	Role Role   `json:"role"`
	Host string `json:"host,omitempty"` // whose it is; empty for a CA or a client
	// Path is relative to the directory.
	Path      string    `json:"path"`
	Subject   string    `json:"subject,omitempty"`
	SANs      []string  `json:"sans,omitempty"`
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty"` // hexadecimal
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// Problems are what needs a person; empty when all is well.
	Problems []string `json:"problems,omitempty"`
}

// Inspection is what a directory holds, read without changing anything.
type Inspection struct {
	// Certificates are the CAs and the leaves, wanted ones first.
	Certificates []Certificate
	Phase        Phase
	// CAKey is "in clear", "encrypted" or "missing".
	CAKey string
	// Bundle is the content as far as it is there.
	Bundle Bundle

	spec Spec
	ca   authority
	now  time.Time
}

// Inspect judges everything in the directory against the spec. It takes no
// lock and changes nothing; an error means that the directory cannot be read.
func (s *Store) Inspect(spec Spec) (*Inspection, error) {
	in := &Inspection{Phase: Settled, CAKey: "missing", spec: spec, now: s.now(), Bundle: Bundle{Hosts: map[string]HostPairs{}, Clients: map[string]Pair{}}}
	d := directory{root: s.dir, lookOnly: true}
	read := func(name string) ([]byte, error) {
		text, err := d.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return text, err
	}
	bundle, err := read(caCert)
	if err != nil {
		return nil, err
	}
	key, err := read(caKey)
	if err != nil {
		return nil, err
	}
	if err := in.addCA(d, bundle, key); err != nil {
		return nil, err
	}
	clients, err := d.clients()
	if err != nil {
		return nil, err
	}
	for _, want := range append(spec.leaves(), clients...) {
		var pair Pair
		if pair.Cert, err = read(want.certPath()); err != nil {
			return nil, err
		}
		if pair.Key, err = read(want.keyPath()); err != nil {
			return nil, err
		}
		c := in.judge(want, pair)
		if pair.Cert != nil && pair.Key == nil {
			c.Problems = []string{"its key is missing"}
		}
		c.Problems = append(c.Problems, d.openToOthers(want.keyPath())...)
		in.Certificates = append(in.Certificates, c)
		want.store(&in.Bundle, pair)
	}
	return in, nil
}

func (in *Inspection) addCA(d directory, bundle, key []byte) error {
	in.Bundle.CA = bundle
	switch {
	case isSealed(key):
		in.CAKey = "encrypted"
	case key != nil:
		in.CAKey = "in clear"
	}
	if bundle == nil {
		in.Certificates = append(in.Certificates, Certificate{Role: CA, Path: caCert, Problems: []string{reasonMissing}})
		return nil
	}
	if in.spec.External {
		key = nil
	}
	ca, err := parseAuthority(bundle, key)
	if ca.cert == nil {
		in.Certificates = append(in.Certificates, Certificate{Role: CA, Path: caCert, Problems: []string{err.Error()}})
		return nil
	}
	in.ca = ca
	rotation, failed := d.rotation()
	if failed != nil {
		return failed
	}
	in.Phase = rotation.Phase
	remedy := "muster certs rotate-ca replaces it"
	if in.spec.External {
		remedy = "add its successor to ca.crt, and run muster apply, before that one signs"
	}
	for i, cert := range ca.trusted {
		c := describe(CA, "", caCert, cert)
		// In a rotation the next run may have to complete a killed one first.
		if i == 0 && err != nil && in.Phase == Settled {
			c.Problems = append(c.Problems, err.Error())
		}
		if i == 0 {
			c.Problems = append(c.Problems, d.openToOthers(caKey)...)
		}
		if p := in.ending(cert, cert.NotAfter.Sub(in.now) < in.spec.LeafLifetime, remedy); p != "" {
			c.Problems = append(c.Problems, p)
		}
		in.Certificates = append(in.Certificates, c)
	}
	return nil
}

// openToOthers is what is wrong with the mode of a key, if anything.
func (d directory) openToOthers(key string) []string {
	info, err := os.Stat(d.path(key))
	if err != nil || info.Mode().Perm()&^secretMode == 0 {
		return nil
	}
	return []string{fmt.Sprintf("others can read its key (mode %04o)", info.Mode().Perm())}
}

// ending says that a certificate ends, or did.
func (in *Inspection) ending(cert *x509.Certificate, soon bool, remedy string) string {
	switch {
	case in.now.After(cert.NotAfter):
		return "expired on " + cert.NotAfter.Format(time.DateOnly)
	case soon:
		return fmt.Sprintf("expires on %s; %s", cert.NotAfter.Format(time.DateOnly), remedy)
	}
	return ""
}

// judge describes a leaf and says what is wrong with it.
func (in *Inspection) judge(want leaf, pair Pair) Certificate {
	c := in.judgeCert(want, pair.Cert)
	if c.Serial != "" && pair.Key != nil {
		if _, err := parseLeaf(pair); err != nil {
			c.Problems = []string{err.Error()}
		}
	}
	return c
}

func (in *Inspection) judgeCert(want leaf, text []byte) Certificate {
	c := Certificate{Role: want.role, Host: want.host, Path: want.certPath()}
	if text == nil {
		c.Problems = []string{reasonMissing}
		return c
	}
	block, rest := pem.Decode(text)
	if block == nil {
		c.Problems = []string{"not a certificate"}
		return c
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.Problems = []string{"not a certificate"}
		return c
	}
	c = describe(want.role, want.host, want.certPath(), cert)
	if in.ca.cert == nil {
		return c
	}
	misfit := in.ca.misfitCert
	if in.spec.External {
		misfit = in.ca.externalMisfitCert
	}
	reason := misfit(cert, rest, want, in.spec.Algorithm, in.now)
	if reason == "" && in.spec.External { // misfit has looked at the end of all others
		reason = in.ending(cert, cert.NotAfter.Sub(in.now) < cert.NotAfter.Sub(cert.NotBefore)/3, "muster certs csr writes a request for another")
	}
	if reason != "" {
		c.Problems = append(c.Problems, reason)
	}
	return c
}

// Judge describes a leaf that was found elsewhere under a name such as
// "server", and says what is wrong with it, as if it were the directory's. The
// host is whose server or peer certificate it should be.
func (in *Inspection) Judge(host, name string, cert []byte) Certificate {
	for _, want := range in.spec.leaves() {
		if filepath.Base(want.path) == name && (want.host == host || want.host == "") {
			return in.judgeCert(want, cert)
		}
	}
	return Certificate{Role: Client, Host: host, Path: name, Problems: []string{"it is none of the cluster's"}}
}

// Succeeds is the Succeeds of the bundle.
func (in *Inspection) Succeeds(host, name string, cert []byte) bool {
	return in.Bundle.Succeeds(in.spec, host, name, cert, in.now)
}

// JudgeBundle describes the CAs of a bundle that was found elsewhere.
func (in *Inspection) JudgeBundle(bundle []byte) []Certificate {
	certs, err := parseCAs(bundle)
	if err != nil {
		return []Certificate{{Role: CA, Path: caCert, Problems: []string{err.Error()}}}
	}
	var all []Certificate
	for _, cert := range certs {
		c := describe(CA, "", caCert, cert)
		if !slices.ContainsFunc(in.ca.trusted, cert.Equal) {
			c.Problems = append(c.Problems, "it is not the workstation's")
		}
		all = append(all, c)
	}
	for _, cert := range in.ca.trusted {
		if !slices.ContainsFunc(certs, cert.Equal) {
			c := describe(CA, "", caCert, cert)
			c.Problems = append(c.Problems, "it is not trusted")
			all = append(all, c)
		}
	}
	return all
}

func describe(role Role, host, path string, cert *x509.Certificate) Certificate {
	return Certificate{
		Role: role, Host: host, Path: path, Subject: cert.Subject.String(), SANs: sansOf(cert), Issuer: cert.Issuer.String(),
		Serial: fmt.Sprintf("%x", cert.SerialNumber), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
	}
}

// clientName is what a further client may be called: it becomes a file's name
// and the user of a cluster that has authentication.
var clientName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Client returns the certificate of one more client, made when it is not there
// or does not fit. The name becomes its common name.
func (s *Store) Client(ctx context.Context, spec Spec, name string) (Pair, []Change, error) {
	if !clientName.MatchString(name) {
		return Pair{}, nil, &Error{fmt.Errorf("%q cannot name a client", name), "write letters, digits, dots, hyphens and underscores, at most 64"}
	}
	var pair Pair
	run := &issuing{spec: spec, vault: &s.vault}
	err := s.locked(ctx, func(d directory) error {
		run.dir, run.now = d, s.now()
		err := run.loadCA()
		if err == nil {
			pair, err = run.leaf(client(name))
		}
		var unfit *unfitError
		if errors.As(err, &unfit) {
			want := client(name)
			if err = run.request(want); err == nil {
				err = &Error{unfit, fmt.Sprintf("have %s signed and put the certificate beside it as %s", d.path(want.requestPath()), filepath.Base(want.certPath()))}
			}
		}
		return err
	})
	return pair, run.changes, err
}

package remote

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// ErrHostKey is wrapped by every error about a host key that is not known,
// not the expected one, or revoked. Nothing secret was sent.
var ErrHostKey = errors.New("host key not trusted")

// HostKeyError says which host presented which key, and why it is refused.
type HostKeyError struct {
	Host        string // name and address
	Reason      string
	Fingerprint string // of the key presented; empty when none was
	KeyType     string
	hint        string
}

func (e *HostKeyError) Error() string {
	text := e.Host + ": " + e.Reason
	if e.Fingerprint != "" {
		text += fmt.Sprintf(" (presented %s %s)", e.KeyType, e.Fingerprint)
	}
	return text
}

// Hint says what to do about it.
func (e *HostKeyError) Hint() string { return e.hint }

// Is makes errors.Is(err, ErrHostKey) true.
func (e *HostKeyError) Is(target error) bool { return target == ErrHostKey }

// families are the kinds of host key, best first, each with the signature
// algorithms that use it. A server has at most one key of each, and which one
// it presents is decided by what the client asks for first.
var families = [...]struct {
	keyType    string
	algorithms []string
}{
	{ssh.KeyAlgoED25519, []string{ssh.KeyAlgoED25519}},
	{ssh.KeyAlgoECDSA256, []string{ssh.KeyAlgoECDSA256}},
	{ssh.KeyAlgoECDSA384, []string{ssh.KeyAlgoECDSA384}},
	{ssh.KeyAlgoECDSA521, []string{ssh.KeyAlgoECDSA521}},
	{ssh.KeyAlgoRSA, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}},
	{ssh.KeyAlgoSKED25519, []string{ssh.KeyAlgoSKED25519}},
	{ssh.KeyAlgoSKECDSA256, []string{ssh.KeyAlgoSKECDSA256}},
}

func algorithmsOf(keyTypes ...string) []string {
	var out []string
	for _, f := range families {
		if slices.Contains(keyTypes, f.keyType) {
			out = append(out, f.algorithms...)
		}
	}
	return out
}

func allAlgorithms() []string {
	var out []string
	for _, f := range families {
		out = append(out, f.algorithms...)
	}
	return out
}

var certificateAlgorithms = []string{
	ssh.CertAlgoED25519v01,
	ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
	ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
}

// hostKeyCheck verifies the key of one hop. A handshake asks for the
// algorithms of one offer; when the key is not the right one, the next offer
// may bring the right one forward.
type hostKeyCheck struct {
	hop    hop
	verify ssh.HostKeyCallback
	offers [][]string
}

// newHostKeyCheck prepares the check of one hop: against its pinned
// fingerprint when there is one, against known_hosts otherwise.
func newHostKeyCheck(h hop) (*hostKeyCheck, error) {
	if h.hostKey != "" {
		return pinnedCheck(h), nil
	}
	return knownHostsCheck(h)
}

func pinnedCheck(h hop) *hostKeyCheck {
	c := &hostKeyCheck{hop: h}
	// A fingerprint does not tell its key's type: every family gets a turn.
	for i := range families {
		var offer []string
		for j := range families {
			offer = append(offer, families[(i+j)%len(families)].algorithms...)
		}
		c.offers = append(c.offers, offer)
	}
	c.verify = func(_ string, _ net.Addr, key ssh.PublicKey) error {
		if cert, ok := key.(*ssh.Certificate); ok {
			key = cert.Key
		}
		if ssh.FingerprintSHA256(key) == h.hostKey {
			return nil
		}
		return c.refuse(key, "host key does not match the fingerprint pinned in the inventory, "+h.hostKey,
			"someone may be in the way, or the host was reinstalled; compare with the output of "+
				"ssh-keygen -lf "+keyFile(key.Type())+" on the host's console before changing hostKey")
	}
	return c
}

func knownHostsCheck(h hop) (*hostKeyCheck, error) {
	c := &hostKeyCheck{hop: h}
	var files []string
	var authorities bool
	for _, file := range h.knownHosts {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // ssh, too, goes on without
		}
		files = append(files, file)
		authorities = authorities || bytes.Contains(text, []byte("@cert-authority"))
	}
	known, err := knownhosts.New(files...)
	if err != nil {
		return nil, fmt.Errorf("%s: read known hosts: %w; correct that line, or pin the host's key with hostKey in the inventory", h.title(), err)
	}
	types := storedTypes(known, h.address())
	if authorities {
		c.offers = append(c.offers, append(slices.Clone(certificateAlgorithms), algorithmsOf(types...)...))
	}
	if len(types) > 0 {
		c.offers = append(c.offers, algorithmsOf(types...))
	} else {
		c.offers = append(c.offers, allAlgorithms())
	}
	c.verify = func(_ string, remote net.Addr, key ssh.PublicKey) error {
		// The name and port of the hop, not the socket's: behind a bastion
		// the socket has none.
		return c.explain(key, known(h.address(), nullAddr{remote, h.address()}, key))
	}
	return c, nil
}

// nullAddr gives knownhosts an address it can parse when the connection is
// tunnelled.
type nullAddr struct {
	net.Addr
	text string
}

func (a nullAddr) String() string { return a.text }

// storedTypes are the types of the keys stored for an address. A key that
// cannot be stored makes knownhosts list them.
func storedTypes(known ssh.HostKeyCallback, address string) []string {
	var mismatch *knownhosts.KeyError
	if err := known(address, nullAddr{text: address}, impossibleKey{}); !errors.As(err, &mismatch) {
		return nil
	}
	var types []string
	for _, k := range mismatch.Want {
		if !slices.Contains(types, k.Key.Type()) {
			types = append(types, k.Key.Type())
		}
	}
	return types
}

type impossibleKey struct{}

func (impossibleKey) Type() string                        { return "none" }
func (impossibleKey) Marshal() []byte                     { return nil }
func (impossibleKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

func (c *hostKeyCheck) explain(key ssh.PublicKey, err error) error {
	if err == nil {
		return nil
	}
	var revoked *knownhosts.RevokedError
	if errors.As(err, &revoked) {
		return c.refuse(key, fmt.Sprintf("host key is revoked by %s:%d", revoked.Revoked.Filename, revoked.Revoked.Line),
			"the host needs a new key: ssh-keygen -A on its console after removing the old one")
	}
	var mismatch *knownhosts.KeyError
	if !errors.As(err, &mismatch) {
		return c.refuse(key, "host key: "+err.Error(), "check the host's certificate and the @cert-authority lines of known_hosts")
	}
	if len(mismatch.Want) == 0 {
		return c.refuse(key, "host key is not known", c.trustHint(key))
	}
	return c.refuse(key, "host key has changed: "+stored(mismatch.Want)+" is on record", c.changedHint(key))
}

// trustHint tells how to make the key known.
func (c *hostKeyCheck) trustHint(key ssh.PublicKey) string {
	scan := c.hop.host
	if c.hop.port != defaultPort {
		scan = fmt.Sprintf("-p %d %s", c.hop.port, c.hop.host)
	}
	return fmt.Sprintf("compare it with ssh-keygen -lf %s on the host's console, then write hostKey: %s under the host's ssh: in the inventory, or run: ssh-keyscan %s >> ~/.ssh/known_hosts",
		keyFile(key.Type()), ssh.FingerprintSHA256(key), scan)
}

func (c *hostKeyCheck) changedHint(key ssh.PublicKey) string {
	return fmt.Sprintf("someone may be in the way, or the host was reinstalled; compare with ssh-keygen -lf %s on the host's console, and only then run: ssh-keygen -R '%s'",
		keyFile(key.Type()), knownhosts.Normalize(c.hop.address()))
}

// mismatched turns the failure to agree on a key type into what it means: the
// stored key is gone from the host.
func (c *hostKeyCheck) mismatched(offered []string) error {
	return &HostKeyError{
		Host:   c.hop.title(),
		Reason: "host key has changed: the key types on record are not offered any more (offered: " + strings.Join(offered, ", ") + ")",
		hint: fmt.Sprintf("someone may be in the way, or the host was reinstalled; compare with ssh-keygen -lf on the host's console, and only then run: ssh-keygen -R '%s'",
			knownhosts.Normalize(c.hop.address())),
	}
}

func (c *hostKeyCheck) refuse(key ssh.PublicKey, reason, hint string) error {
	return &HostKeyError{
		Host: c.hop.title(), Reason: reason, hint: hint,
		KeyType: key.Type(), Fingerprint: ssh.FingerprintSHA256(key),
	}
}

func stored(keys []knownhosts.KnownKey) string {
	var out []string
	for _, k := range keys {
		out = append(out, fmt.Sprintf("%s %s (%s:%d)", k.Key.Type(), ssh.FingerprintSHA256(k.Key), k.Filename, k.Line))
	}
	return strings.Join(out, ", ")
}

// keyFile is where sshd keeps the host key of a type.
func keyFile(keyType string) string {
	name := "ed25519"
	switch {
	case strings.HasPrefix(keyType, "ecdsa"):
		name = "ecdsa"
	case strings.Contains(keyType, "rsa"):
		name = "rsa"
	}
	return "/etc/ssh/ssh_host_" + name + "_key.pub"
}

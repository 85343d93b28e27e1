package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvdan.cc/sh/v3/shell"

	"muster/cmd/musterctl/ctlv2"
	"muster/kvserver"
	"muster/kvserver/tlsfiles"
)

// issuer signs certificates and writes them to a directory.
type issuer struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes NAME.crt and NAME.key for a common name and an address.
func (i *issuer) issue(t *testing.T, name string, address net.IP) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true,
	}
	parent, signer := i.cert, i.key
	if parent == nil {
		template.IsCA = true
		parent, signer = template, key
	} else {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		template.IPAddresses = []net.IP{address}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if i.cert == nil {
		i.key = key
		if i.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(filepath.Join(i.dir, name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCertificatesV2: version 2 over TLS, where a certificate says who somebody
// is, with the flags of that version and, when only the command says which
// version is meant, with those of version 3.
func TestCertificatesV2(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := &issuer{dir: dir}
	address := strings.TrimPrefix(addresses(t, 1)[0], "http://")
	endpoint := url.URL{Scheme: "https", Host: address}
	ca.issue(t, "ca", nil)
	for _, name := range []string{"server", "root", "ann", "eve"} {
		ca.issue(t, name, net.ParseIP(endpoint.Hostname()))
	}
	startMembers(t, 1, func(c *kvserver.Config) {
		c.EnableV2 = true
		c.ListenClientURLs, c.AdvertiseClientURLs = []string{endpoint.String()}, []string{endpoint.String()}
		c.ClientTLS = tlsfiles.Files{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key"), CA: filepath.Join(dir, "ca.crt"), RequireClientCert: true}
	})
	for _, test := range []struct {
		who, command string
		want         string // in what is said
		code         int
	}{
		{"eve", "set /pub/a x", "x\n", 0},
		{"eve", "set /secret y", "y\n", 0},
		{"eve", "user add root:secret", "User root created\n", 0},
		{"eve", "user add ann:a", "User ann created\n", 0},
		{"eve", "role add reader", "Role reader created\n", 0},
		{"eve", "role grant reader --path /pub/* --read", "Role reader updated\n", 0},
		{"eve", "user grant ann --roles reader", "User ann updated\n", 0},
		{"eve", "auth enable", "Authentication Enabled\n", 0},
		{"eve", "auth disable", "Insufficient credentials\n", 1},
		{"root", "role revoke guest --path /* --readwrite", "Role guest updated\n", 0},
		{"eve", "get /pub/a", "Error:  110: The request requires user authentication (Insufficient credentials) [0]\n", 4},
		{"ann", "get /pub/a", "x\n", 0},
		{"ann", "get /secret", "Error:  110", 4},
		{"root", "get /secret", "y\n", 0},
		{"ann", "-u root:secret get /secret", "y\n", 0},
		{"root", "-u ann:a get /secret", "Error:  110", 4},
		{"ann", "user list", "Insufficient credentials\n", 1},
		{"root", "cluster-health", "cluster is healthy\n", 0},
	} {
		files := []string{"--ca-file", filepath.Join(dir, "ca.crt"), "--cert-file", filepath.Join(dir, test.who+".crt"), "--key-file", filepath.Join(dir, test.who+".key")}
		args, err := shell.Fields(test.command, nil)
		if err != nil {
			t.Fatal(err)
		}
		if said, code := sayV2(t, append(append(files, "--endpoints", endpoint.String()), args...)); code != test.code || !strings.Contains(said, test.want) {
			t.Errorf("%s: %s: exit %d, %s", test.who, test.command, code, said)
		}
	}
	typed := []string{"ls", "/", "--endpoints=" + endpoint.String(), "--cacert", filepath.Join(dir, "ca.crt"), "--cert", filepath.Join(dir, "root.crt"), "--key=" + filepath.Join(dir, "root.key")}
	args, lenient, ok, err := v2CommandLine("", typed)
	if !ok || !lenient || err != nil {
		t.Fatalf("%v is not version 2: %v", typed, err)
	}
	if said, code := sayV2(t, args); code != 0 || said != "/pub\n/secret\n" {
		t.Errorf("%v: exit %d, %s", args, code, said)
	}
}

func sayV2(t *testing.T, args []string) (said string, code int) {
	t.Helper()
	var out bytes.Buffer
	app := ctlv2.App{
		Streams: ctlv2.Streams{In: strings.NewReader(""), Out: &out, Err: &out},
		Name:    "etcdctl", Getenv: func(string) string { return "" },
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code = exitCode(app.Run(ctx, args), &out)
	return out.String(), code
}

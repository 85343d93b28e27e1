package tlsfiles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, data)
}

func write(t *testing.T, to string, data []byte) {
	t.Helper()
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// Certificate, key and CA of the server are renewed under its feet: each
// handshake shows what the files say, and those before are left alone.
func TestRenewedFilesCount(t *testing.T) {
	server, client := lay(t)
	s, c := configs(t, server, client)
	live, serverSide := connect(t, s, c)
	before := live.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber
	renewed, renewedClient := lay(t)
	for to, from := range map[string]string{
		server.Cert: renewed.Cert, server.Key: renewed.Key, server.CA: renewed.CA,
		client.Cert: renewedClient.Cert, client.Key: renewedClient.Key,
	} {
		copyFile(t, to, from)
	}
	after, err := handshake(t, s, c)
	if want := parse(t, renewed.Cert).SerialNumber; err != nil || after != want.String() || after == before.String() {
		t.Errorf("after the renewal the server presents %s (%v), want %s", after, err, want)
	}
	old, _ := lay(t)
	stranger := open(t, Files{Cert: old.Cert, Key: old.Key, CA: renewed.CA}, io.Discard).Client()
	if _, err := handshake(t, s, stranger); err == nil {
		t.Error("a client of a CA that is no longer trusted was admitted")
	}
	go func() { _, _ = serverSide.Write([]byte("still here")) }()
	if got, err := io.ReadAll(io.LimitReader(live, 10)); err != nil || string(got) != "still here" {
		t.Errorf("the connection from before says %q (%v)", got, err)
	}
}

// A change that the file's time does not show, because it came too soon after
// the one before, counts as well; files that have settled are not read again.
func TestChangeWithinOneTickCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	reads := 0
	lay := func(text string, at time.Time) {
		write(t, path, []byte(text))
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().Add(time.Minute) // however slow this test is, it is not over before
	lay("a", now)
	file, err := openReloaded("the file", []string{path}, func(contents [][]byte) (string, error) {
		reads++
		return string(contents[0]), nil
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	lay("b", now)
	if got := file.get(); got != "b" {
		t.Errorf("the file says %q, want b", got)
	}
	lay("c", now.Add(-time.Hour))
	if got := file.get(); got != "c" {
		t.Errorf("the file says %q, want c", got)
	}
	before := reads
	for range 10 {
		file.get()
	}
	if reads != before {
		t.Errorf("a file that has not changed was read %d times", reads-before)
	}
}

// Files that cannot be used leave what was read before in use; the log says so
// once for each state of the files.
func TestBrokenFilesAreNotUsed(t *testing.T) {
	server, client := lay(t)
	var said log
	s := open(t, server, &said).Server("x")
	c := open(t, client, io.Discard).Client()
	good, err := os.ReadFile(server.Cert)
	if err != nil {
		t.Fatal(err)
	}
	want := parse(t, server.Cert).SerialNumber.String()
	write(t, server.Cert, []byte("half a certif"))
	for range 3 {
		if got, err := handshake(t, s, c); err != nil || got != want {
			t.Errorf("with a broken file the server presents %s (%v), want %s", got, err, want)
		}
	}
	if n := strings.Count(said.String(), "what was read before stays in use"); n != 1 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
	if err := os.Remove(server.CA); err != nil {
		t.Fatal(err)
	}
	write(t, server.Cert, good)
	if got, err := handshake(t, s, c); err != nil || got != want {
		t.Errorf("the server presents %s (%v), want %s", got, err, want)
	}
	for _, want := range []string{"read again the certificate " + server.Cert, "read the trusted CA: open " + server.CA} {
		if n := strings.Count(said.String(), want); n != 1 {
			t.Errorf("%q is said %d times:\n%s", want, n, said.String())
		}
	}
}

func TestAllowedNames(t *testing.T) {
	server, client := lay(t)
	name := parse(t, client.Cert).Subject.CommonName
	for _, test := range []struct {
		what   string
		change func(*Files)
		admit  bool
	}{
		{"its name", func(f *Files) { f.AllowedCNs = []string{"other", name} }, true},
		{"other names", func(f *Files) { f.AllowedCNs = []string{"other"} }, false},
		{"other hosts", func(f *Files) { f.AllowedHostnames = []string{"other"} }, false},
	} {
		files := server
		test.change(&files)
		s, c := configs(t, files, client)
		if _, err := handshake(t, s, c); (err == nil) != test.admit {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	asServer := client
	asServer.Cert, asServer.Key, asServer.AllowedHostnames = server.Cert, server.Key, []string{"127.0.0.1"}
	credentials := open(t, asServer, io.Discard)
	if !credentials.admits(parse(t, server.Cert)) || credentials.admits(parse(t, client.Cert)) {
		t.Error("hostnames are not compared with the certificate's")
	}
}

// A certificate that is put on the list is refused from the next connection on;
// one that is taken off is admitted again.
func TestRevocationListCounts(t *testing.T) {
	server, client := lay(t)
	server.CRL = filepath.Join(t.TempDir(), "crl")
	ca, key := signer(t)
	list := func(form func([]byte) []byte, serials ...*big.Int) {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
		for _, serial := range serials {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, template, ca, key)
		if err != nil {
			t.Fatal(err)
		}
		write(t, server.CRL, form(der))
	}
	inDER := func(der []byte) []byte { return der }
	inPEM := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }
	mine := parse(t, client.Cert).SerialNumber

	list(inDER)
	s, c := configs(t, server, client)
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4) // a resumed session is judged too
	live, serverSide := connect(t, s, c)
	if _, err := handshake(t, s, c); err != nil {
		t.Fatalf("an empty list refuses: %v", err)
	}
	for name, form := range map[string]func([]byte) []byte{"DER": inDER, "PEM": inPEM} {
		list(form, big.NewInt(1), mine)
		if _, err := handshake(t, s, c); err == nil {
			t.Errorf("%s: a revoked certificate was admitted", name)
		}
		list(form, big.NewInt(1))
		if _, err := handshake(t, s, c); err != nil {
			t.Errorf("%s: a certificate that is no longer listed: %v", name, err)
		}
	}
	go func() { _, _ = serverSide.Write([]byte("still here")) }()
	if got, err := io.ReadAll(io.LimitReader(live, 10)); err != nil || string(got) != "still here" {
		t.Errorf("the connection from before says %q (%v)", got, err)
	}
}

// connect leaves a connection open, and returns both its ends.
func connect(t *testing.T, server, client *tls.Config) (clientSide, serverSide net.Conn) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = conn.(*tls.Conn).Handshake()
		}
		if err != nil {
			t.Errorf("the server's side: %v", err)
		}
		accepted <- conn
	}()
	client.ServerName = "127.0.0.1"
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: client}
	conn, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	other := <-accepted
	t.Cleanup(func() { _ = other.Close() })
	return conn, other
}

// signer is a CA that signs revocation lists.
func signer(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign, NotAfter: time.Now().Add(time.Hour)}
	return template, key
}

// The address that a member calls from must be one of its certificate.
func TestCheckAddress(t *testing.T) {
	server, _ := lay(t)
	credentials := open(t, server, io.Discard)
	own, foreign := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 1}
	addressed := &x509.Certificate{IPAddresses: []net.IP{own.IP}}
	for name, test := range map[string]struct {
		certificate *x509.Certificate
		from        net.Addr
		refuse      string
	}{
		"its address":           {addressed, own, ""},
		"another address":       {addressed, foreign, "not for the address 127.0.0.9"},
		"its name":              {&x509.Certificate{DNSNames: []string{"localhost"}}, own, ""},
		"a name without a host": {&x509.Certificate{DNSNames: []string{"*.invalid"}}, own, "not for the address 127.0.0.1"},
		"good anywhere":         {&x509.Certificate{}, foreign, ""},
	} {
		err := credentials.CheckAddress(t.Context(), test.certificate, test.from)
		if (err == nil) != (test.refuse == "") || err != nil && !strings.Contains(err.Error(), test.refuse) {
			t.Errorf("%s: %v, want %q", name, err, test.refuse)
		}
	}
	server.SkipAddressCheck = true
	if err := open(t, server, io.Discard).CheckAddress(t.Context(), addressed, foreign); err != nil {
		t.Errorf("not to be checked: %v", err)
	}
}

// Certificates are made where they are asked for, once.
func TestSelfSign(t *testing.T) {
	dir, hosts := filepath.Join(t.TempDir(), "fixtures"), []string{"127.0.0.1:1", "localhost:2"}
	made, err := Files{Auto: true}.SelfSign(dir, hosts, 2)
	if err != nil {
		t.Fatal(err)
	}
	credentials := open(t, made, io.Discard)
	serial, err := handshake(t, credentials.Server("x"), credentials.Client())
	if err != nil {
		t.Fatal(err)
	}
	certificate := parse(t, made.Cert)
	if years := time.Until(certificate.NotAfter).Hours() / 24 / 365; years < 1.9 || years > 2.1 || certificate.VerifyHostname("localhost") != nil {
		t.Errorf("the certificate is valid for %.1f years and %v", years, certificate.DNSNames)
	}
	again, err := Files{Auto: true}.SelfSign(dir, hosts, 2)
	if err != nil || parse(t, again.Cert).SerialNumber.String() != serial {
		t.Errorf("a second start makes another certificate (%v)", err)
	}
	if mode, err := os.Stat(made.Key); err != nil || mode.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v (%v)", mode.Mode(), err)
	}
	given, _ := lay(t)
	given.Auto = true
	if kept, err := given.SelfSign(dir, hosts, 0); err != nil || kept.Cert != given.Cert || kept.Unverified {
		t.Errorf("a given certificate is replaced by %s (%v)", kept.Cert, err)
	}
	if _, err := (Files{Auto: true}).SelfSign(dir, hosts, 0); err == nil || !strings.Contains(err.Error(), "--self-signed-cert-validity is 0") {
		t.Errorf("valid for no year: %v", err)
	}
}

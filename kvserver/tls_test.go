package kvserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/internal/loopback"
)

// Members that are to make their certificates make them, for clients and for
// each other.
func TestMadeCertificates(t *testing.T) {
	peers := []string{"https://" + loopback.Address(t), "https://" + loopback.Address(t)}
	founding := "a=" + peers[0] + ",b=" + peers[1]
	servers := make(chan *Server, 2)
	var certs []*x509.Certificate
	for i, name := range []string{"a", "b"} {
		config := single(t)
		config.Name, config.InitialCluster = name, founding
		config.ListenPeerURLs, config.InitialAdvertisePeerURLs = peers[i:i+1], peers[i:i+1]
		config.ListenClientURLs = []string{"https://" + loopback.Address(t)}
		config.AdvertiseClientURLs = config.ListenClientURLs
		config.ClientTLS.Auto, config.PeerTLS.Auto = true, true
		go func() { servers <- running(t, config) }()
	}
	for range 2 {
		var server *Server
		select {
		case server = <-servers:
		case <-time.After(60 * time.Second):
			t.Fatal("the members do not find each other")
		}
		client := connectTLS(t, server, &tls.Config{
			MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, //nolint:gosec // nobody signed it
			VerifyConnection: func(state tls.ConnectionState) error {
				certs = append(certs, state.PeerCertificates[0])
				return nil
			},
		})
		if _, err := pb.NewKVClient(client.conn).Put(client.ctx(), &pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Error(err)
		}
		checkPeerMetrics(t, server)
	}
	if len(certs) != 2 || certs[0].Equal(certs[1]) || certs[0].VerifyHostname(loopback.Host()) != nil {
		t.Errorf("the certificates are %v", certs)
	}
}

// Metrics over https ask for clients' certificates as the client port does.
func TestSecuredMetrics(t *testing.T) {
	config := single(t)
	files, clientTLS, _ := certificates(t)
	config.ClientTLS = files
	config.ListenClientURLs = []string{"https://127.0.0.1:0"}
	address := loopback.Address(t)
	config.ListenMetricsURLs = []string{"https://" + address}
	running(t, config)
	clientTLS.ServerName = "127.0.0.1"
	anonymous := clientTLS.Clone()
	anonymous.Certificates = nil
	for _, test := range []struct {
		name   string
		config *tls.Config
		served bool
	}{{"with a certificate", clientTLS, true}, {"without", anonymous, false}} {
		transport := &http.Transport{TLSClientConfig: test.config}
		response, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("https://" + address + "/health")
		if err == nil {
			_ = response.Body.Close()
		}
		if (err == nil) != test.served {
			t.Errorf("%s: %v", test.name, err)
		}
		transport.CloseIdleConnections()
	}
}

// Certificate and revocation list of a running member are replaced: clients
// that are connected go on, the next one sees the new certificate, and one that
// was revoked is refused.
func TestRotationUnderLiveConnections(t *testing.T) {
	config := single(t)
	files, clientTLS, _ := certificates(t)
	dir := t.TempDir()
	files.CRL = filepath.Join(dir, "crl")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign}
	revoke := func(serials ...*big.Int) {
		list := &x509.RevocationList{Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour)}
		for _, serial := range serials {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(files.CRL, der, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	revoke()
	config.ClientTLS = files
	config.ListenClientURLs = []string{"https://127.0.0.1:0"}
	server := running(t, config)
	get := func(client person) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := pb.NewKVClient(client.conn).Range(ctx, &pb.RangeRequest{Key: []byte("k")})
		return err
	}
	seen := make(chan *big.Int, 1)
	connectAnew := func() person {
		fresh := clientTLS.Clone()
		fresh.VerifyConnection = func(state tls.ConnectionState) error {
			select {
			case seen <- state.PeerCertificates[0].SerialNumber:
			default:
			}
			return nil
		}
		return connectTLS(t, server, fresh)
	}
	live := connectAnew()
	if err := get(live); err != nil {
		t.Fatal(err)
	}
	before := <-seen

	renewed, _, _ := certificates(t)
	for to, from := range map[string]string{files.Cert: renewed.Cert, files.Key: renewed.Key} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	clientTLS.InsecureSkipVerify = true // the renewed one is of another CA
	if err := get(connectAnew()); err != nil {
		t.Errorf("after the renewal: %v", err)
	}
	if after := <-seen; after.Cmp(before) == 0 {
		t.Error("the old certificate is still shown")
	}

	revoke(clientTLS.Certificates[0].Leaf.SerialNumber)
	if err := get(connectAnew()); err == nil {
		t.Error("a client whose certificate was revoked is served")
	}
	if err := get(live); err != nil {
		t.Errorf("the client that was connected: %v", err)
	}
	revoke()
	if err := get(connectAnew()); err != nil {
		t.Errorf("after the revocation was taken back: %v", err)
	}
}

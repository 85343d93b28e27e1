package kvserver

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
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

package replica

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/peerport"
	"muster/pki"
)

// The peer port admits the certificates of members, by name or by address, and
// nobody else's, although one CA signs them all.
func TestOnlyMembersAreAuthorized(t *testing.T) {
	bundle, _, err := pki.Ensure(t.Context(), filepath.Join(t.TempDir(), "pki"), pki.Spec{
		Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour,
		Hosts: []pki.Host{{Name: "m0"}, {Name: "renamed", SANs: []string{"10.9.9.9"}}, {Name: "stranger", SANs: []string{"10.1.1.1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 1)
	// The certificates of every host are good for 127.0.0.1, which would make
	// a member of everybody here.
	c.members[0].config.Self.PeerURLs = []string{"http://10.9.9.9:2380"}
	c.members[0].config.Cluster.Peers[0].PeerURLs = c.members[0].config.Self.PeerURLs
	c.start(0)
	for name, test := range map[string]struct {
		pair   pki.Pair
		refuse string
	}{
		"a member, by name":       {bundle.Hosts["m0"].Peer, ""},
		"a member, by address":    {bundle.Hosts["renamed"].Peer, ""},
		"another host":            {bundle.Hosts["stranger"].Peer, `the certificate of "stranger" belongs to no member of this cluster`},
		"the healthcheck client":  {bundle.HealthcheckClient, `the certificate of "kube-etcd-healthcheck-client" is a client's, not a peer's`},
		"kube-apiserver's client": {bundle.APIServerEtcdClient, `the certificate of "kube-apiserver-etcd-client" is a client's, not a peer's`},
	} {
		t.Run(name, func(t *testing.T) {
			block, _ := pem.Decode(test.pair.Cert)
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			switch err := c.members[0].guard.authorize(certificate); {
			case test.refuse == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.refuse != "" && (err == nil || !strings.Contains(err.Error(), test.refuse)):
				t.Errorf("error %v, want %q", err, test.refuse)
			}
		})
	}

	// Before it has its first state a member goes by whom it is to join.
	empty, err := machine.Open(filepath.Join(t.TempDir(), "kv"), machine.Options{CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	joining := &guard{local: &local{config: c.members[0].config, machine: empty}, servers: func() ([]raft.Server, error) { return nil, raft.ErrRaftShutdown }}
	for pair, admitted := range map[*pki.Pair]bool{
		new(bundle.Hosts["m0"].Peer): true, new(bundle.Hosts["renamed"].Peer): true, new(bundle.Hosts["stranger"].Peer): false,
	} {
		block, _ := pem.Decode(pair.Cert)
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := joining.authorize(certificate); (err == nil) != admitted {
			t.Errorf("while it joins, %q: %v", certificate.Subject.CommonName, err)
		}
	}
}

// tlsCluster is a cluster whose members have certificates that tell them apart:
// each is good for a loopback address of its own.
func tlsCluster(t *testing.T, founders, all int) *testCluster {
	t.Helper()
	address := func(i int) string { return fmt.Sprintf("127.0.3.%d", i+1) }
	spec := pki.Spec{Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour}
	for i := range all {
		spec.Hosts = append(spec.Hosts, pki.Host{Name: fmt.Sprintf("m%d", i), SANs: []string{address(i)}})
	}
	bundle, _, err := pki.Ensure(t.Context(), filepath.Join(t.TempDir(), "pki"), spec)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle.CA)
	c := newCluster(t, founders)
	for len(c.members) < all {
		c.newcomer()
	}
	var initial []string
	for i, m := range c.members {
		_, port, err := net.SplitHostPort(m.config.PeerListen[0])
		if err != nil {
			t.Fatal(err)
		}
		pair := bundle.Hosts[m.config.Self.Name].Peer
		certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		m.config.PeerListen = []string{net.JoinHostPort(address(i), port)}
		m.config.Self.PeerURLs = []string{"https://" + m.config.PeerListen[0]}
		m.config.ServerTLS = &tls.Config{NextProtos: peerport.Protocols(), MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, Certificates: []tls.Certificate{certificate}}
		m.config.ClientTLS = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{certificate}}
		if i < founders {
			initial = append(initial, m.config.Self.Name+"="+m.config.Self.PeerURLs[0])
		}
	}
	cluster, err := membership.ParseInitialCluster(strings.Join(initial, ","), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members[:founders] {
		m.config.Cluster = cluster
		if m.config.Self, err = cluster.ByName(m.config.Self.Name); err != nil {
			t.Fatal(err)
		}
	}
	for i := range founders {
		c.start(i)
	}
	for i := range founders {
		c.awaitReady(i)
	}
	return c
}

// admit adds a member that has been prepared, and gives it the lead.
func (c *testCluster) admit(through, i int) {
	c.t.Helper()
	c.change(through, Change{Action: AddMember, PeerURLs: c.members[i].config.Self.PeerURLs})
	c.joined(i)
	eventually(c.t, "the newcomer leads", func() bool {
		for _, m := range c.members {
			if m.Replica == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), testElection)
			_ = m.MoveLeader(ctx, c.members[i].Member())
			cancel()
		}
		return c.members[i].Status().Leader == c.members[i].Member()
	})
}

// A member that starts again admits a leader that it has never applied the
// addition of: the store is behind the log then, or the log behind the cluster.
func TestLeaderThatJoinedLaterIsAdmitted(t *testing.T) {
	t.Run("while it ran", func(t *testing.T) {
		c := tlsCluster(t, 2, 3)
		c.admit(0, 2)
		c.put(1, "k", "v")
		c.stop(1)
		c.start(1)
		c.awaitReady(1)
	})
	t.Run("while it was down", func(t *testing.T) {
		c := tlsCluster(t, 3, 4)
		c.stop(1)
		c.put(0, "k", "u") // m1 may have led, and a change is not tried twice
		c.admit(0, 3)
		c.put(0, "k", "v")
		c.start(1)
		c.awaitReady(1)
	})
}

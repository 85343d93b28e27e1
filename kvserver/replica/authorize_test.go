package replica

import (
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/kvserver/machine"
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
	joining := &guard{local: &local{config: c.members[0].config, machine: empty}}
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

package membership

import (
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/types"
	etcdmembership "go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.uber.org/zap"
)

// Real etcd is the judge: both sides must derive the same ids.
func TestIDsEqualEtcds(t *testing.T) {
	for _, text := range []string{
		"controller-0=https://10.240.0.10:2380",
		"controller-0=https://10.240.0.10:2380,controller-1=https://10.240.0.11:2380,controller-2=https://10.240.0.12:2380",
		"a=http://127.0.0.1:2380,a=http://10.0.0.1:2380,b=http://[fd00::1]:2380",
	} {
		urls, err := types.NewURLsMap(text)
		if err != nil {
			t.Fatal(err)
		}
		want, err := etcdmembership.NewClusterFromURLsMap(zap.NewNop(), "muster", urls)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseInitialCluster(text, "muster")
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != uint64(want.ID()) {
			t.Errorf("%s: cluster id %x, etcd has %x", text, got.ID, uint64(want.ID()))
		}
		for _, peer := range got.Peers {
			if id := want.MemberByName(peer.Name).ID; uint64(id) != peer.ID {
				t.Errorf("%s: member %s has id %x, etcd has %s", text, peer.Name, peer.ID, id)
			}
		}
	}
}

func TestParseInitialClusterErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "is not name=peer-url",
		"https://10.0.0.1:2380":                "is not name=peer-url",
		"a=10.0.0.1:2380":                      "",
		"a=https://10.0.0.1":                   "host and port are needed",
		"a=ftp://10.0.0.1:1":                   "the scheme must be http or https",
		"a=https://h:1/x":                      "a path is not allowed",
		"a=https://h:1,b=https://h:1":          "stands twice",
		"a=https://h:1,a=https://h:1":          "stands twice",
		"a=https://10.0.0.1:2380,=https://b:1": "is not name=peer-url",
	} {
		_, err := ParseInitialCluster(text, "t")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

func TestByName(t *testing.T) {
	cluster, err := ParseInitialCluster("a=https://h:1,b=https://h:2", "t")
	if err != nil {
		t.Fatal(err)
	}
	if peer, err := cluster.ByName("b"); err != nil || peer.PeerURLs[0] != "https://h:2" {
		t.Errorf("ByName(b) = %v, %v", peer, err)
	}
	if _, err := cluster.ByName("c"); !errors.Is(err, ErrUnknownName) {
		t.Errorf("ByName(c): %v", err)
	}
}

// Founding members that were given different snapshots are in different
// clusters, and the members keep their ids.
func TestFromSnapshot(t *testing.T) {
	cluster, err := ParseInitialCluster("a=http://h1:1,b=http://h2:2", "muster")
	if err != nil {
		t.Fatal(err)
	}
	first, again, second := cluster.FromSnapshot("aa"), cluster.FromSnapshot("aa"), cluster.FromSnapshot("ab")
	if first.ID != again.ID {
		t.Errorf("the same snapshot gives the cluster ids %x and %x", first.ID, again.ID)
	}
	if first.ID == cluster.ID || first.ID == second.ID {
		t.Errorf("without a snapshot the id is %x, with different ones %x and %x", cluster.ID, first.ID, second.ID)
	}
	for i, peer := range first.Peers {
		if peer.ID != cluster.Peers[i].ID {
			t.Errorf("member %s has id %x, without a snapshot %x", peer.Name, peer.ID, cluster.Peers[i].ID)
		}
	}
}

package membership

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	etcd "go.etcd.io/etcd/server/v3/etcdserver/api/membership"
)

func TestAddedMemberIDIsEtcds(t *testing.T) {
	now := time.Unix(1_700_000_000, 5)
	raw := []string{"http://10.0.0.2:2380", "https://10.0.0.1:2380"}
	urls, err := types.NewURLs(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := AddedMemberID(raw, now), uint64(etcd.NewMember("", urls, "", &now).ID); got != want {
		t.Errorf("id %x, etcd's is %x", got, want)
	}
	if AddedMemberID(raw, now) == AddedMemberID(raw, now.Add(time.Second)) {
		t.Error("the same id a second later")
	}
}

func TestCheckPeerURLs(t *testing.T) {
	got, err := CheckPeerURLs([]string{" http://b:2", "https://a:1"})
	if err != nil || !slices.Equal(got, []string{"http://b:2", "https://a:1"}) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range [][]string{
		nil, {"a:1"}, {"http://a"}, {"http://a:"}, {"ftp://a:1"}, {"http://a:1/x"}, {"http://a:1/"}, {"unix://a:1"},
		{"http://a:1?b=c"}, {"http://u@a:1"}, {"http://a:1#f"}, {"http://a,b:1"}, {"http://a:1", ""},
	} {
		if got, err := CheckPeerURLs(bad); !errors.Is(err, ErrBadURLs) {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}

func TestAdopt(t *testing.T) {
	local, err := ParseInitialCluster("a=http://127.0.0.1:1,b=http://127.0.0.1:2,b=http://127.0.0.1:3", "token")
	if err != nil {
		t.Fatal(err)
	}
	a := Peer{ID: 21, Name: "called otherwise", PeerURLs: []string{"http://127.0.0.1:1"}}
	b := Peer{ID: 22, PeerURLs: []string{"http://127.0.0.1:3", "http://127.0.0.1:2"}}
	adopted, self, err := local.Adopt(t.Context(), "b", 7, []Peer{a, b})
	if err != nil || adopted.ID != 7 || adopted.Token != "token" || self.ID != 22 || self.Name != "b" || len(adopted.Peers) != 2 {
		t.Errorf("%+v, %+v, %v", adopted, self, err)
	}
	for name, test := range map[string]struct {
		name    string
		running []Peer
		want    error
		saying  string
	}{
		"not added yet":         {"b", []Peer{a}, ErrNotListed, "http://127.0.0.1:2, http://127.0.0.1:3"},
		"other URLs":            {"b", []Peer{a, {ID: 5, PeerURLs: []string{"http://127.0.0.1:9"}}}, ErrNotListed, "none has the peer URLs"},
		"one more is running":   {"b", []Peer{a, b, {ID: 5, PeerURLs: []string{"http://127.0.0.1:9"}}}, ErrDifferentMembers, "it lacks member 5 (http://127.0.0.1:9)"},
		"one less is running":   {"b", []Peer{b}, ErrDifferentMembers, "no member has the peer URLs of a (http://127.0.0.1:1)"},
		"not in the flag":       {"c", []Peer{a, b}, ErrUnknownName, `--name is "c"`},
		"another URL of itself": {"b", []Peer{a, {ID: 22, PeerURLs: []string{"http://127.0.0.1:2"}}}, ErrNotListed, "none has the peer URLs"},
	} {
		if _, _, err := local.Adopt(t.Context(), test.name, 7, test.running); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.saying) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package member

import (
	"maps"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestCallRoll(t *testing.T) {
	expected := []Expected{
		{"a", "https://10.0.0.1:2380", "https://10.0.0.1:2379"},
		{"b", "https://10.0.0.2:2380", "https://10.0.0.2:2379"},
	}
	list := func() []*etcdserverpb.Member {
		return []*etcdserverpb.Member{
			{ID: 1, Name: "a", PeerURLs: []string{"https://10.0.0.1:2380"}, ClientURLs: []string{"https://10.0.0.1:2379"}},
			{ID: 2, Name: "b", PeerURLs: []string{"https://10.0.0.2:2380"}, ClientURLs: []string{"https://10.0.0.2:2379"}},
		}
	}
	good := func() map[string]View {
		return map[string]View{
			"a": {ClusterID: 7, MemberID: 1, Leader: 2, Members: list()},
			"b": {ClusterID: 7, MemberID: 2, Leader: 2, Members: list()},
		}
	}
	change := func(name string, f func(*View)) map[string]View {
		views := good()
		v := views[name]
		f(&v)
		views[name] = v
		return views
	}
	without := func(name string) map[string]View {
		views := maps.Clone(good())
		delete(views, name)
		return views
	}
	for _, test := range []struct {
		name  string
		views map[string]View
		want  string
		agree bool // only CallRoll complains
	}{
		{name: "good", views: good(), agree: true},
		{name: "one is silent", views: without("b"), want: "b did not answer", agree: true},
		{name: "two clusters", views: change("b", func(v *View) { v.ClusterID = 8 }), want: "b is in cluster 8 and a in cluster 7"},
		{name: "no leader", views: change("b", func(v *View) { v.Leader = 0 }), want: "b knows no leader"},
		{name: "two leaders", views: change("b", func(v *View) { v.Leader = 1 }), want: "b follows leader 1 and a follows 2"},
		{name: "not listed", views: change("a", func(v *View) { v.Members = v.Members[:1] }), want: "a does not list b"},
		{name: "not started", views: change("a", func(v *View) { v.Members[1].Name = "" }), want: "a lists b as not started"},
		{name: "renamed", views: change("a", func(v *View) { v.Members[1].Name = "c" }), want: "a lists c with peer URL https://10.0.0.2:2380, not b"},
		{name: "moved", views: change("a", func(v *View) { v.Members[1].PeerURLs[0] = "https://10.0.0.9:2380" }), want: "a lists b with peer URL https://10.0.0.9:2380, not b with https://10.0.0.2:2380"},
		{name: "other client URL", views: change("a", func(v *View) { v.Members[1].ClientURLs = nil }), want: `a lists b with client URL "", not https://10.0.0.2:2379`},
		{name: "learner", views: change("b", func(v *View) { v.Learner, v.Members = true, nil }), want: "b is a learner"},
		{name: "one too many", views: change("a", func(v *View) { v.Members = append(v.Members, &etcdserverpb.Member{Name: "x"}) }), want: "a lists 3 members, not 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := CallRoll(expected, test.views)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("CallRoll: %v, want %q", err, test.want)
			}
			if err := Agree(expected, test.views); (err == nil) != test.agree {
				t.Errorf("Agree: %v", err)
			}
		})
	}
}

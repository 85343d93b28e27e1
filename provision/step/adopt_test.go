package step

import (
	"strings"
	"testing"

	"muster/provision/desired"
	"muster/provision/member"
	"muster/provision/plan"
)

// Who a member says it is decides whether it can be taken over.
func TestIdentityOfAdopted(t *testing.T) {
	want := desired.Member{Name: "a", PeerURL: "https://10.0.0.1:2380", ClientURL: "https://10.0.0.1:2379"}
	for name, c := range map[string]struct {
		view member.View
		want string // in the problem; empty for none
	}{
		"the oldest that is known":     {member.View{ClusterID: 1, Version: "3.4.0"}, ""},
		"older than can be read":       {member.View{ClusterID: 1, Version: "3.3.27"}, "its etcd is version 3.3.27; 3.4.0 or newer is needed"},
		"no version":                   {member.View{ClusterID: 1, Version: ""}, "is version ; 3.4.0 or newer"},
		"another cluster":              {member.View{ClusterID: 2, Version: "3.5.0"}, "is a member of cluster 2, and the others are of 1"},
		"full":                         {member.View{ClusterID: 1, Version: "3.5.0", Errors: []string{"memberID:7 alarm:NOSPACE "}}, "has an alarm raised (memberID:7 alarm:NOSPACE)"},
		"corrupt":                      {member.View{ClusterID: 1, Version: "3.5.0", Errors: []string{"memberID:7 alarm:CORRUPT "}}, "has an alarm raised"},
		"sealed by an interrupted run": {member.View{ClusterID: 1, Version: "3.5.0", Errors: []string{"memberID:120351215609202 alarm:CORRUPT "}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Run{roster: roster{cluster: 1, views: map[string]member.View{"a": c.view}, members: plan.Members{{ID: 5, Name: "a", PeerURLs: []string{want.PeerURL}}}}}
			h := &Host{Want: desired.Host{Member: want}, run: r}
			h.Name = "a"
			failed := &PreflightError{}
			(&Adopt{}).identity(examination{Host: h, found: failed})
			switch {
			case c.want == "" && len(failed.Problems) > 0:
				t.Errorf("refused: %v", failed)
			case c.want != "" && (len(failed.Problems) != 1 || !strings.Contains(failed.Problems[0].Text, c.want)):
				t.Errorf("want %q, got %+v", c.want, failed.Problems)
			}
		})
	}
}

// An etcd before 3.7 refuses what this one has written.
func TestOlder(t *testing.T) {
	for server, want := range map[string]string{"": "", "3.4.23": "3.4.23", "3.6.8": "3.6.8", "3.7.0": "", "3.8.1": ""} {
		if got, err := older(server); err != nil || got != want {
			t.Errorf("for etcd %q: %q, %v, want %q", server, got, err, want)
		}
	}
	if got, err := older("three"); err == nil {
		t.Errorf("%q for no version", got)
	}
}

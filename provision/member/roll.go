package member

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// View is what one member says about itself and its cluster.
type View struct {
	ClusterID uint64
	MemberID  uint64
	Leader    uint64 // 0 when the member knows of none
	Version   string
	DBSize    int64 // bytes
	RaftTerm  uint64
	RaftIndex uint64
	Learner   bool
	Errors    []string // alarms and the like
	Members   []*etcdserverpb.Member
}

// Look asks one member for its view: its status and, linearizably, its member
// list. Without a leader it fails. A learner is not asked for the list: in etcd
// it does not answer that.
func Look(ctx context.Context, client *clientv3.Client) (View, error) {
	endpoint := client.Endpoints()[0]
	status, err := client.Status(ctx, endpoint)
	if err != nil {
		return View{}, fmt.Errorf("ask %s for its status: %w", endpoint, err)
	}
	v := View{
		ClusterID: status.Header.ClusterId, MemberID: status.Header.MemberId,
		Leader: status.Leader, Version: status.Version, DBSize: status.DbSize,
		RaftTerm: status.RaftTerm, RaftIndex: status.RaftIndex,
		Learner: status.IsLearner, Errors: status.Errors,
	}
	if v.Learner {
		return v, nil
	}
	list, err := client.MemberList(ctx)
	if err != nil {
		return v, fmt.Errorf("ask %s for the member list: %w", endpoint, err)
	}
	v.Members = list.Members
	return v, nil
}

// Expected is one member as the inventory has it.
type Expected struct {
	Name      string
	PeerURL   string
	ClientURL string
}

// CallRoll compares the views of all members with what is expected and with
// each other. The error names everything that differs, and who is missing.
func CallRoll(expected []Expected, views map[string]View) error {
	var missing []string
	for _, e := range expected {
		if _, ok := views[e.Name]; !ok {
			missing = append(missing, e.Name+" did not answer")
		}
	}
	return disagreement(append(missing, compare(expected, views)...))
}

// Agree is CallRoll without the members that have no view.
func Agree(expected []Expected, views map[string]View) error {
	return disagreement(compare(expected, views))
}

func disagreement(wrong []string) error {
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("the members do not agree: %s", strings.Join(wrong, "; "))
}

func compare(expected []Expected, views map[string]View) []string {
	var wrong []string
	var first View
	var firstName string
	for _, e := range expected {
		v, ok := views[e.Name]
		if !ok {
			continue
		}
		if firstName == "" {
			first, firstName = v, e.Name
		}
		if v.ClusterID != first.ClusterID {
			wrong = append(wrong, fmt.Sprintf("%s is in cluster %x and %s in cluster %x", e.Name, v.ClusterID, firstName, first.ClusterID))
		}
		if v.Leader == 0 {
			wrong = append(wrong, e.Name+" knows no leader")
		} else if v.Leader != first.Leader {
			wrong = append(wrong, fmt.Sprintf("%s follows leader %x and %s follows %x", e.Name, v.Leader, firstName, first.Leader))
		}
		if v.Learner {
			wrong = append(wrong, e.Name+" is a learner and has no vote")
			continue
		}
		wrong = append(wrong, listed(e.Name, expected, v)...)
	}
	return wrong
}

// listed compares one member's list with what is expected.
func listed(by string, expected []Expected, v View) []string {
	var wrong []string
	for _, e := range expected {
		i := slices.IndexFunc(v.Members, func(m *etcdserverpb.Member) bool {
			return m.Name == e.Name || slices.Contains(m.PeerURLs, e.PeerURL)
		})
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Sprintf("%s does not list %s", by, e.Name))
		case v.Members[i].Name == "":
			wrong = append(wrong, fmt.Sprintf("%s lists %s as not started", by, e.Name))
		case v.Members[i].Name != e.Name || !slices.Contains(v.Members[i].PeerURLs, e.PeerURL):
			wrong = append(wrong, fmt.Sprintf("%s lists %s with peer URL %s, not %s with %s", by, v.Members[i].Name, strings.Join(v.Members[i].PeerURLs, ","), e.Name, e.PeerURL))
		case !slices.Contains(v.Members[i].ClientURLs, e.ClientURL):
			wrong = append(wrong, fmt.Sprintf("%s lists %s with client URL %q, not %s", by, e.Name, strings.Join(v.Members[i].ClientURLs, ","), e.ClientURL))
		}
	}
	if len(v.Members) > len(expected) {
		wrong = append(wrong, fmt.Sprintf("%s lists %d members, not %d", by, len(v.Members), len(expected)))
	}
	return wrong
}

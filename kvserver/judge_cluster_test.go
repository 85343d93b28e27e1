package kvserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// onMembers makes a call of the cluster service about the members of a side:
// itself, and the one that was added last, which is nil at first.
func onMembers(name string, run func(ctx context.Context, c pb.ClusterClient, self, added *pb.Member) (proto.Message, error)) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		c := pb.NewClusterClient(conn)
		list, err := c.MemberList(ctx, &pb.MemberListRequest{})
		if err != nil {
			return nil, err
		}
		var self, added *pb.Member
		for _, m := range list.GetMembers() {
			if m.GetID() == list.GetHeader().GetMemberId() {
				self = m
			} else {
				added = m
			}
		}
		if self == nil {
			return nil, errors.New("a member is not on its own list")
		}
		response, err := run(ctx, c, self, added)
		if err != nil {
			return nil, err
		}
		if named, ok := response.(interface{ GetMembers() []*pb.Member }); ok {
			if err := ownFirst(named.GetMembers(), self.GetID()); err != nil {
				return nil, err
			}
		}
		return response, nil
	}}
}

// ownFirst makes lists comparable whose order is that of each side's ids.
func ownFirst(members []*pb.Member, self uint64) error {
	byID := func(a, b *pb.Member) int { return cmp.Compare(a.GetID(), b.GetID()) }
	if !slices.IsSortedFunc(members, byID) {
		return fmt.Errorf("the members are not in the order of their ids: %v", members)
	}
	slices.SortStableFunc(members, func(a, b *pb.Member) int {
		switch self {
		case a.GetID():
			return -1
		case b.GetID():
			return 1
		}
		return byID(a, b)
	})
	return nil
}

func add(name string, learner bool, peerURLs ...string) call {
	return onMembers(name, func(ctx context.Context, c pb.ClusterClient, _, _ *pb.Member) (proto.Message, error) {
		return c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: peerURLs, IsLearner: learner})
	})
}

func moveLeader(name string, to func(self, added *pb.Member) uint64) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		return onMembers(name, func(ctx context.Context, _ pb.ClusterClient, self, added *pb.Member) (proto.Message, error) {
			return pb.NewMaintenanceClient(conn).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to(self, added)})
		}).run(ctx, conn)
	}}
}

func memberList(name string) call {
	return onMembers(name, func(ctx context.Context, c pb.ClusterClient, _, _ *pb.Member) (proto.Message, error) {
		return c.MemberList(ctx, &pb.MemberListRequest{})
	})
}

// memberCalls take a cluster of one through every change that needs no second
// process. The last ones leave etcd without a quorum.
func memberCalls() []call {
	const stranger = 0x123
	list := []call{
		onMembers("remove a stranger", func(ctx context.Context, c pb.ClusterClient, _, _ *pb.Member) (proto.Message, error) {
			return c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: stranger})
		}),
		onMembers("remove the only member", func(ctx context.Context, c pb.ClusterClient, self, _ *pb.Member) (proto.Message, error) {
			return c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: self.GetID()})
		}),
		onMembers("promote a stranger", func(ctx context.Context, c pb.ClusterClient, _, _ *pb.Member) (proto.Message, error) {
			return c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: stranger})
		}),
		onMembers("promote a voter", func(ctx context.Context, c pb.ClusterClient, self, _ *pb.Member) (proto.Message, error) {
			return c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: self.GetID()})
		}),
		onMembers("update a stranger", func(ctx context.Context, c pb.ClusterClient, _, _ *pb.Member) (proto.Message, error) {
			return c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: stranger, PeerURLs: []string{"http://127.0.0.1:1"}})
		}),
		onMembers("add a known URL", func(ctx context.Context, c pb.ClusterClient, self, _ *pb.Member) (proto.Message, error) {
			return c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: append([]string{"http://127.0.0.1:1"}, self.GetPeerURLs()...)})
		}),
		moveLeader("move the lead to a stranger", func(_, _ *pb.Member) uint64 { return stranger }),
		moveLeader("move the lead to who has it", func(self, _ *pb.Member) uint64 { return self.GetID() }),
		add("add a learner", true, "http://127.0.0.1:3", " http://127.0.0.1:2"),
		memberList("list with a learner"),
		add("add another learner", true, "http://127.0.0.1:4"),
		add("add a learner's URL", true, "http://127.0.0.1:3"),
		moveLeader("move the lead to a learner", func(_, added *pb.Member) uint64 { return added.GetID() }),
		onMembers("promote a learner that has not started", func(ctx context.Context, c pb.ClusterClient, _, added *pb.Member) (proto.Message, error) {
			return c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: added.GetID()})
		}),
		onMembers("update with a URL of another", func(ctx context.Context, c pb.ClusterClient, self, added *pb.Member) (proto.Message, error) {
			return c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: self.GetID(), PeerURLs: added.GetPeerURLs()})
		}),
		onMembers("update", func(ctx context.Context, c pb.ClusterClient, _, added *pb.Member) (proto.Message, error) {
			return c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: added.GetID(), PeerURLs: []string{"http://127.0.0.1:9", "http://127.0.0.1:5"}})
		}),
		onMembers("update without a change", func(ctx context.Context, c pb.ClusterClient, self, _ *pb.Member) (proto.Message, error) {
			return c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: self.GetID(), PeerURLs: self.GetPeerURLs()})
		}),
		memberList("list after the update"),
		onMembers("remove", func(ctx context.Context, c pb.ClusterClient, _, added *pb.Member) (proto.Message, error) {
			return c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: added.GetID()})
		}),
		memberList("list after the removal"),
		onMembers("add, remove and remove again", func(ctx context.Context, c pb.ClusterClient, _, _ *pb.Member) (proto.Message, error) {
			added, err := c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:6"}, IsLearner: true})
			if err != nil {
				return nil, err
			}
			if _, err := c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: added.GetMember().GetID()}); err != nil {
				return nil, err
			}
			return c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: added.GetMember().GetID()})
		}),
	}
	for _, bad := range [][]string{nil, {""}, {"127.0.0.1:1"}, {"http://127.0.0.1"}, {"ftp://127.0.0.1:1"}, {"http://127.0.0.1:1/path"}, {"http://127.0.0.1:1/"}, {"http://127.0.0.1:1", "x"}} {
		list = append(list, add(fmt.Sprintf("add %q", bad), false, bad...))
	}
	return append(list,
		add("add a voter", false, "http://127.0.0.1:7"),
		memberList("list with a voter that has not started"),
		add("add another voter", false, "http://127.0.0.1:8"),
		onMembers("remove the only one that has started", func(ctx context.Context, c pb.ClusterClient, self, _ *pb.Member) (proto.Message, error) {
			return c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: self.GetID()})
		}),
	)
}

func TestMembersAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	for _, c := range memberCalls() {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
}

// URLs with which etcd's other members would panic, or nobody could be reached,
// are refused.
func TestUpdatedURLsAreChecked(t *testing.T) {
	_, ours := bothSides(t)
	for _, bad := range [][]string{nil, {""}, {"127.0.0.1:1"}, {"unix://socket:1"}, {"http://127.0.0.1:1?a=b"}} {
		_, err := onMembers("update", func(ctx context.Context, c pb.ClusterClient, self, _ *pb.Member) (proto.Message, error) {
			return c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: self.GetID(), PeerURLs: bad})
		}).run(t.Context(), ours.conn)
		if want := "rpc error: code = InvalidArgument desc = etcdserver: given member URLs are invalid"; err == nil || err.Error() != want {
			t.Errorf("update to %q: %v, want %s", bad, err, want)
		}
	}
}

package etcdapi

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/replica"
)

type clusterService struct {
	pb.UnsafeClusterServer
	*api
}

var _ pb.ClusterServer = (*clusterService)(nil)

// MemberList implements etcdserverpb.ClusterServer.
func (s *clusterService) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.GetLinearizable() {
		if err := s.awaitRead(ctx, false); err != nil {
			return nil, wireError(err)
		}
	}
	return &pb.MemberListResponse{Header: s.header(), Members: wireMembers(s.store.Members())}, nil
}

// MemberAdd implements etcdserverpb.ClusterServer.
func (s *clusterService) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	peerURLs, err := membership.CheckPeerURLs(r.GetPeerURLs())
	if err != nil {
		return nil, wireError(err)
	}
	changed, err := s.reconfigure(ctx, replica.Change{Action: replica.AddMember, PeerURLs: peerURLs, Learner: r.GetIsLearner()})
	if err != nil {
		return nil, wireError(err)
	}
	return &pb.MemberAddResponse{
		Header:  s.header(),
		Member:  &pb.Member{ID: changed.Member, PeerURLs: peerURLs, IsLearner: r.GetIsLearner()},
		Members: wireMembers(changed.Members),
	}, nil
}

// MemberRemove implements etcdserverpb.ClusterServer.
func (s *clusterService) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	changed, err := s.reconfigure(ctx, replica.Change{Action: replica.RemoveMember, Member: r.GetID()})
	if err != nil {
		return nil, wireError(err)
	}
	return &pb.MemberRemoveResponse{Header: s.header(), Members: wireMembers(changed.Members)}, nil
}

// MemberUpdate implements etcdserverpb.ClusterServer. etcd takes any text for a
// URL here, and its other members then stop with a panic; a bad one is refused
// as in MemberAdd. The order of the URLs is kept, as there.
func (s *clusterService) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	changed, err := s.reconfigure(ctx, replica.Change{Action: replica.UpdateMember, Member: r.GetID(), PeerURLs: r.GetPeerURLs()})
	if err != nil {
		return nil, wireError(err)
	}
	return &pb.MemberUpdateResponse{Header: s.header(), Members: wireMembers(changed.Members)}, nil
}

// MemberPromote implements etcdserverpb.ClusterServer.
func (s *clusterService) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	changed, err := s.reconfigure(ctx, replica.Change{Action: replica.PromoteMember, Member: r.GetID()})
	if err != nil {
		return nil, wireError(err)
	}
	return &pb.MemberPromoteResponse{Header: s.header(), Members: wireMembers(changed.Members)}, nil
}

func (s *clusterService) reconfigure(ctx context.Context, change replica.Change) (replica.Changed, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.RequestTimeout)
	defer cancel()
	changed, err := s.replica.Reconfigure(ctx, change)
	if err != nil {
		return changed, fmt.Errorf("%v member: %w", change.Action, err)
	}
	return changed, nil
}

func wireMembers(members []machine.Member) []*pb.Member {
	out := make([]*pb.Member, len(members))
	for i, m := range members {
		out[i] = &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner}
	}
	return out
}

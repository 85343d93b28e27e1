package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

type clusterService struct {
	pb.UnimplementedClusterServer // changes of membership
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
	response := &pb.MemberListResponse{Header: s.header()}
	for _, member := range s.store.Members() {
		response.Members = append(response.Members, &pb.Member{
			ID:         member.ID,
			Name:       member.Name,
			PeerURLs:   member.PeerURLs,
			ClientURLs: member.ClientURLs,
			IsLearner:  member.Learner,
		})
	}
	return response, nil
}

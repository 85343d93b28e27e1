package etcdapi

import (
	"context"
	"errors"
	"io"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/lease"
)

// LeaseKeeper times the leases; the calls go to the leader where this member
// is not it.
type LeaseKeeper interface {
	Renew(ctx context.Context, id int64) (ttl int64, err error)
	TimeToLive(ctx context.Context, id int64) (granted, left int64, err error)
	// SortByExpiry puts the leases that expire first to the front, on the leader.
	SortByExpiry(ids []int64)
}

type leaseService struct {
	pb.UnimplementedLeaseServer
	*api
	keeper LeaseKeeper
}

var _ pb.LeaseServer = (*leaseService)(nil)

// LeaseGrant implements etcdserverpb.LeaseServer. A TTL below the minimum is
// raised to it, and an ID is chosen when none is given, both before the request
// is replicated.
func (s *leaseService) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := s.checkSpace(ctx, leaseCost); err != nil {
		return nil, wireError(err)
	}
	granted := &pb.LeaseGrantRequest{ID: r.GetID(), TTL: max(r.GetTTL(), s.limits.MinLeaseTTL)}
	for granted.ID == 0 {
		granted.ID = int64(s.replica.NextID() & math.MaxInt64) //nolint:gosec // made positive
	}
	return write[*pb.LeaseGrantResponse](ctx, s.api, &pb.InternalRaftRequest{LeaseGrant: granted})
}

// LeaseRevoke implements etcdserverpb.LeaseServer.
func (s *leaseService) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return write[*pb.LeaseRevokeResponse](ctx, s.api, &pb.InternalRaftRequest{LeaseRevoke: r})
}

// LeaseTimeToLive implements etcdserverpb.LeaseServer. A lease that does not
// exist is no error: its TTL is -1.
func (s *leaseService) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.RequestTimeout)
	defer cancel()
	revision := s.authRevision()
	if r.GetKeys() {
		if err := s.mayUseLeases(ctx, []int64{r.GetID()}, mayRead); err != nil {
			return nil, wireError(timedOut(ctx, err))
		}
	}
	response := &pb.LeaseTimeToLiveResponse{Header: s.headerNow(), ID: r.GetID()}
	granted, left, err := s.keeper.TimeToLive(ctx, r.GetID())
	if err == nil && r.GetKeys() {
		if err = s.replica.Linearize(ctx); err == nil {
			response.Keys, err = s.store.Leases().Keys(r.GetID())
		}
	}
	switch {
	case errors.Is(err, lease.ErrNotFound):
		return &pb.LeaseTimeToLiveResponse{Header: response.GetHeader(), ID: r.GetID(), TTL: -1}, nil
	case err != nil:
		return nil, wireError(timedOut(ctx, err))
	}
	if r.GetKeys() && s.store.Auth().Enabled() {
		if err := s.stillAt(revision); err != nil {
			return nil, wireError(err)
		}
	}
	response.TTL, response.GrantedTTL = left, granted
	return response, nil
}

// LeaseLeases implements etcdserverpb.LeaseServer.
func (s *leaseService) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	if err := s.awaitRead(ctx, false); err != nil {
		return nil, wireError(err)
	}
	all, err := s.store.Leases().All()
	if err != nil {
		return nil, wireError(err)
	}
	ids := make([]int64, len(all))
	for i, each := range all {
		ids[i] = each.ID
	}
	if err := s.mayUseLeases(ctx, ids, mayRead); err != nil {
		return nil, wireError(err)
	}
	s.keeper.SortByExpiry(ids)
	response := &pb.LeaseLeasesResponse{Header: s.headerNow()}
	for _, id := range ids {
		response.Leases = append(response.Leases, &pb.LeaseStatus{ID: id})
	}
	return response, nil
}

// LeaseKeepAlive implements etcdserverpb.LeaseServer. A lease that does not
// exist is answered with TTL 0, and the stream goes on.
func (s *leaseService) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// The header is older than the renewal: a client must not see a lease
		// renewed at a revision at which it was revoked.
		response := &pb.LeaseKeepAliveResponse{ID: request.GetID(), Header: s.headerNow()}
		if response.TTL, err = s.renew(stream.Context(), request.GetID()); err != nil {
			return wireError(err)
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func (s *leaseService) renew(ctx context.Context, id int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.RequestTimeout)
	defer cancel()
	if err := s.mayUseLeases(ctx, []int64{id}, mayPut); err != nil {
		return 0, timedOut(ctx, err)
	}
	ttl, err := s.keeper.Renew(ctx, id)
	if errors.Is(err, lease.ErrNotFound) {
		return 0, nil
	}
	return ttl, timedOut(ctx, err)
}

package lease

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"muster/kvserver/lease/leasepb"
	"muster/kvserver/machine"
)

// retryInterval is how long to wait before the leader is asked again.
const retryInterval = 50 * time.Millisecond

// Renew gives a lease its whole TTL again and returns the TTL in seconds,
// asking the leader where this member does not lead. The error is ErrNotFound,
// or ctx's when no leader could be asked in time.
func (k *Keeper) Renew(ctx context.Context, id int64) (int64, error) {
	lease, err := k.renewHere(ctx, id)
	if err == nil || !errors.Is(err, ErrNotLeader) {
		return lease.TTL, err
	}
	response, err := k.askLeader(ctx, func(ctx context.Context, leader leasepb.LeasesClient) (*leasepb.LeaseResponse, error) {
		return leader.Renew(ctx, &leasepb.LeaseRequest{Id: id})
	})
	return response.GetGranted(), err
}

// TimeToLive returns what was granted and what is left, in seconds, asking the
// leader where this member does not lead. Errors are Renew's.
func (k *Keeper) TimeToLive(ctx context.Context, id int64) (granted, left int64, err error) {
	lease, remaining, err := k.leftHere(ctx, id)
	if err == nil || !errors.Is(err, ErrNotLeader) {
		return lease.TTL, int64(remaining.Seconds()), err
	}
	response, err := k.askLeader(ctx, func(ctx context.Context, leader leasepb.LeasesClient) (*leasepb.LeaseResponse, error) {
		return leader.TimeToLive(ctx, &leasepb.LeaseRequest{Id: id})
	})
	return response.GetGranted(), response.GetLeft(), err
}

// askLeader tries until a leader answers or ctx ends; both questions may be
// asked twice.
func (k *Keeper) askLeader(ctx context.Context, ask func(context.Context, leasepb.LeasesClient) (*leasepb.LeaseResponse, error)) (*leasepb.LeaseResponse, error) {
	for {
		conn, err := k.config.Replica.LeaderConn(ctx)
		if err == nil {
			var response *leasepb.LeaseResponse
			response, err = ask(ctx, leasepb.NewLeasesClient(conn))
			switch {
			case err == nil && response.GetNotFound():
				return nil, ErrNotFound
			case err == nil && !response.GetNotLeader():
				return response, nil
			}
		}
		timer := time.NewTimer(retryInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// Service answers the other members. The keeper comes after the peer port is
// open: until then nobody is told that this member leads.
type Service struct {
	leasepb.UnimplementedLeasesServer
	keeper chan *Keeper
}

// NewService registers the service.
func NewService(registrar grpc.ServiceRegistrar) *Service {
	s := &Service{keeper: make(chan *Keeper, 1)}
	leasepb.RegisterLeasesServer(registrar, s)
	return s
}

// Answer makes the keeper answer; it is called once.
func (s *Service) Answer(k *Keeper) { s.keeper <- k }

// Renew implements leasepb.LeasesServer.
func (s *Service) Renew(ctx context.Context, request *leasepb.LeaseRequest) (*leasepb.LeaseResponse, error) {
	return s.answer(func(k *Keeper) (machine.Lease, time.Duration, error) {
		lease, err := k.renewHere(ctx, request.GetId())
		return lease, seconds(lease.TTL), err
	})
}

// TimeToLive implements leasepb.LeasesServer.
func (s *Service) TimeToLive(ctx context.Context, request *leasepb.LeaseRequest) (*leasepb.LeaseResponse, error) {
	return s.answer(func(k *Keeper) (machine.Lease, time.Duration, error) {
		return k.leftHere(ctx, request.GetId())
	})
}

func (s *Service) answer(ask func(*Keeper) (machine.Lease, time.Duration, error)) (*leasepb.LeaseResponse, error) {
	select {
	case k := <-s.keeper:
		s.keeper <- k
		lease, left, err := ask(k)
		switch {
		case errors.Is(err, ErrNotFound):
			return &leasepb.LeaseResponse{NotFound: true}, nil
		case err != nil:
			return &leasepb.LeaseResponse{NotLeader: true}, nil //nolint:nilerr // the answer says it
		}
		return &leasepb.LeaseResponse{Granted: lease.TTL, Left: int64(left.Seconds())}, nil
	default:
		return &leasepb.LeaseResponse{NotLeader: true}, nil
	}
}

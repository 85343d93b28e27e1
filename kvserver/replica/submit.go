package replica

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/pkg/v3/idutil"
	"google.golang.org/protobuf/proto"
)

// submitter takes the requests of this member's clients through the log.
type submitter struct {
	*local
	ids      *idutil.Generator
	proposer *proposer
}

// submit returns the outcome of a request once it is applied here. onlyTerm is
// as in proposal.
func (s *submitter) submit(ctx context.Context, onlyTerm uint64, request *pb.InternalRaftRequest) (_ Outcome, err error) {
	s.config.Metrics.ProposalsPending.Inc()
	defer func() {
		s.config.Metrics.ProposalsPending.Dec()
		if err != nil {
			s.config.Metrics.ProposalsFailed.Inc()
		}
	}()
	id := s.ids.Next()
	request.Header = &pb.RequestHeader{
		ID:           id,
		Username:     request.GetHeader().GetUsername(),
		AuthRevision: request.GetHeader().GetAuthRevision(),
	}
	encoded, err := proto.Marshal(request)
	if err != nil {
		return Outcome{}, fmt.Errorf("encode a request: %w", err)
	}
	applied := s.waiters.register(id)
	defer s.waiters.forget(id)
	turnedAway := make(chan struct{}, 1)
	settled := func(_ uint64, err error) {
		var unknown unknownOutcome
		switch {
		case errors.As(err, &unknown):
			s.waiters.doubt(id, unknown.term)
		case errors.Is(err, errNotLeader):
			turnedAway <- struct{}{}
		}
	}
	if err := s.proposer.add(proposal{
		abandoned: ctx.Done(), request: encoded, origin: s.Member(), onlyTerm: onlyTerm, settled: settled,
	}); err != nil {
		return Outcome{}, err
	}
	select {
	case outcome := <-applied:
		return outcome, nil
	case <-turnedAway:
		return Outcome{}, ErrNotLeading
	case <-ctx.Done():
		return Outcome{}, timeoutOf(ctx)
	case <-s.ctx.Done():
		return Outcome{}, ErrStopped
	}
}

// announcer says who this member is.
type announcer struct {
	*Replica
}

// run publishes this member's name and client URLs and then waits until
// it has caught up.
func (r *announcer) run(ctx context.Context) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, 5*r.config.ElectionTimeout)
		outcome, err := r.Propose(attempt, &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
			Member_ID:        r.Member(),
			MemberAttributes: &membershippb.Attributes{Name: r.config.Self.Name, ClientUrls: r.config.ClientURLs},
		}})
		if err == nil {
			err = outcome.Err
		}
		if err == nil {
			err = r.linearize(attempt)
		}
		cancel()
		if err == nil {
			close(r.ready)
			return
		}
		if ctx.Err() == nil {
			r.logger.Info("waiting for a quorum", "error", err)
		}
	}
}

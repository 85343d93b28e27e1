package replica

import (
	"context"
	"errors"

	"muster/kvserver/replica/peerpb"
)

// peerService answers the other members.
type peerService struct {
	peerpb.UnimplementedPeerServer
	replica *Replica
}

// Propose implements peerpb.PeerServer.
func (s *peerService) Propose(ctx context.Context, request *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	type outcome struct {
		position uint32
		err      error
	}
	requests := request.GetRequests()
	outcomes := make(chan outcome, len(requests))
	items := make([]proposal, len(requests))
	for i, encoded := range requests {
		items[i] = proposal{
			abandoned: ctx.Done(),
			request:   encoded,
			origin:    request.GetOrigin(),
			settled:   func(err error) { outcomes <- outcome{uint32(i), err} }, //nolint:gosec // bounded by maxPeerMessage
		}
	}
	if s.replica.leadership.current() != s.replica.Member() || s.replica.proposer.add(items...) != nil {
		return everythingRejected(len(requests)), nil //nolint:nilerr // the answer says it
	}
	response := &peerpb.ProposeResponse{}
	for range requests {
		select {
		case got := <-outcomes:
			if errors.Is(got.err, errNotLeader) {
				response.NotAppended = append(response.NotAppended, got.position)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return response, nil
}

func everythingRejected(n int) *peerpb.ProposeResponse {
	response := &peerpb.ProposeResponse{NotAppended: make([]uint32, n)}
	for i := range response.NotAppended {
		response.NotAppended[i] = uint32(i) //nolint:gosec // bounded by maxPeerMessage
	}
	return response
}

// ReadIndex implements peerpb.PeerServer.
func (s *peerService) ReadIndex(ctx context.Context, request *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error) {
	select {
	case got := <-s.replica.reader.request(request.GetOrigin(), request.GetCommit()):
		if got.err != nil {
			return &peerpb.ReadIndexResponse{NotLeader: true}, nil //nolint:nilerr // the answer says it
		}
		return &peerpb.ReadIndexResponse{Index: got.index}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Term implements peerpb.PeerServer.
func (s *peerService) Term(context.Context, *peerpb.TermRequest) (*peerpb.TermResponse, error) {
	applied, _ := s.replica.machine.Applied()
	return &peerpb.TermResponse{Term: s.replica.currentRaft().CurrentTerm(), Applied: applied, Logged: s.replica.currentRaft().LastIndex()}, nil
}

// Reconfigure implements peerpb.PeerServer.
func (s *peerService) Reconfigure(ctx context.Context, request *peerpb.ReconfigureRequest) (*peerpb.ReconfigureResponse, error) {
	changed, err := s.replica.members.lead(ctx, Change{
		Action: Action(request.GetChange()), Member: request.GetMember(),
		PeerURLs: request.GetPeerUrls(), Learner: request.GetLearner(),
	})
	if refusal, refused := refusalOf(err); refused {
		return &peerpb.ReconfigureResponse{Refusal: refusal}, nil
	}
	if err != nil {
		return nil, err
	}
	s.replica.pusher.push(request.GetOrigin(), changed.index)
	return &peerpb.ReconfigureResponse{Member: changed.Member, Index: changed.index, Members: infosOf(changed.Members)}, nil
}

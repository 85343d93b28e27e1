package replica

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"

	"muster/kvserver/replica/peerpb"
)

// peerService answers the other members.
type peerService struct {
	peerpb.UnimplementedPeerServer
	replica *Replica
}

// maxForwarded is how many batches of one member may be on their way at a time:
// more than it sends.
const maxForwarded = 4 * window

// Propose implements peerpb.PeerServer.
func (s *peerService) Propose(stream grpc.BidiStreamingServer[peerpb.ProposeRequest, peerpb.ProposeResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	places := make(chan struct{}, maxForwarded) // one for every answer that is due
	answers := make(chan *peerpb.ProposeResponse, maxForwarded)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	answering.Go(func() {
		for {
			select {
			case answer := <-answers:
				if stream.Send(answer) != nil {
					return
				}
				<-places
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.propose(ctx, request, func(answer *peerpb.ProposeResponse) { answers <- answer })
	}
}

// propose puts the requests into the log, and calls answer once when it is known
// what became of them.
func (s *peerService) propose(ctx context.Context, request *peerpb.ProposeRequest, answer func(*peerpb.ProposeResponse)) {
	requests := request.GetRequests()
	response := &peerpb.ProposeResponse{Number: request.GetNumber()}
	var mu sync.Mutex
	left := len(requests)
	items := make([]proposal, len(requests))
	for i, encoded := range requests {
		settled := func(index uint64, err error) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				response.Committed = max(response.GetCommitted(), index)
			case errors.Is(err, errNotLeader):
				response.NotAppended = append(response.NotAppended, uint32(i)) //nolint:gosec // bounded by maxPeerMessage
			default:
				response.Lost = true
			}
			if left--; left > 0 {
				return
			}
			if response.Committed > 0 {
				response.Term = s.replica.leadership.led()
				s.replica.pusher.told(request.GetOrigin(), response.Committed)
			}
			answer(response)
		}
		items[i] = proposal{abandoned: ctx.Done(), request: encoded, origin: request.GetOrigin(), settled: settled}
	}
	if len(items) == 0 {
		answer(response)
		return
	}
	if s.replica.leadership.current() != s.replica.Member() || s.replica.proposer.add(items...) != nil {
		settle(items, errNotLeader)
	}
}

// ReadIndex implements peerpb.PeerServer.
func (s *peerService) ReadIndex(ctx context.Context, request *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error) {
	if index, ok := s.replica.reader.vouched(request.GetOrigin(), request.GetTerm()); ok {
		s.replica.reader.spread(request.GetOrigin(), request.GetCommit(), index)
		return &peerpb.ReadIndexResponse{Index: index}, nil
	}
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

package replica

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"

	"muster/kvserver/replica/peerpb"
)

// forwardTimeout is how long the leader may take over one batch.
const forwardTimeout = 10 * time.Second

// errForwardLost is why nothing is known of a batch that the leader was sent.
var errForwardLost = errors.New("the leader has not said what became of it")

// forwarder keeps a stream of batches to the leader.
type forwarder struct {
	leadership *leadership
	peers      *peers
	locate     func(member uint64) (place, error)
	// hear is told what the leader said it has committed.
	hear func(news)

	mu      sync.Mutex
	current *link // nil before the first
	running sync.WaitGroup
}

// to returns the stream to the leader, and makes it when there is none. An
// error means that nothing can be sent.
func (f *forwarder) to(ctx context.Context, leader uint64) (*link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil && f.current.leader == leader && f.current.open() {
		return f.current, nil
	}
	at, err := f.locate(leader)
	if err != nil {
		return nil, err
	}
	// Nothing waits for a leader that was deposed: it may be stopped or cut off.
	leading, end := f.leadership.while(ctx, leader)
	client, err := f.peers.ready(leading, leader, at.peerURLs)
	if err != nil {
		end()
		return nil, err
	}
	stream, err := client.Propose(leading)
	if err != nil {
		end()
		return nil, err
	}
	f.current = &link{leader: leader, stream: stream, end: end, hear: f.hear, waiting: map[uint64]chan *peerpb.ProposeResponse{}, ended: make(chan struct{})}
	f.running.Go(f.current.receive)
	return f.current, nil
}

// link is a stream of batches to one leader. It is safe for concurrent use.
type link struct {
	leader uint64
	stream grpc.BidiStreamingClient[peerpb.ProposeRequest, peerpb.ProposeResponse]
	end    context.CancelFunc
	hear   func(news)

	sending sync.Mutex
	last    uint64 // number of the request sent last

	mu      sync.Mutex
	waiting map[uint64]chan *peerpb.ProposeResponse // by number
	ended   chan struct{}
}

func (l *link) open() bool {
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

// exchange sends a batch and waits for the answer. An error leaves unknown what
// became of it, and ends the stream.
func (l *link) exchange(request *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	deadline := time.AfterFunc(forwardTimeout, l.end)
	defer deadline.Stop()
	answer := make(chan *peerpb.ProposeResponse, 1)
	if !l.send(request, answer) {
		l.end()
	}
	select {
	case response := <-answer:
		return response, nil
	case <-l.ended:
	}
	select {
	case response := <-answer: // the last one before the end
		return response, nil
	default:
		return nil, errForwardLost
	}
}

func (l *link) send(request *peerpb.ProposeRequest, answer chan *peerpb.ProposeResponse) bool {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.last++
	request.Number = l.last
	l.mu.Lock()
	l.waiting[request.Number] = answer
	l.mu.Unlock()
	return l.stream.Send(request) == nil
}

// receive passes answers on until the stream ends.
func (l *link) receive() {
	defer close(l.ended)
	defer l.end()
	for {
		response, err := l.stream.Recv()
		if err != nil {
			return
		}
		if response.GetCommitted() > 0 {
			l.hear(news{leader: l.leader, term: response.GetTerm(), index: response.GetCommitted()})
		}
		l.mu.Lock()
		answer := l.waiting[response.GetNumber()]
		delete(l.waiting, response.GetNumber())
		l.mu.Unlock()
		if answer != nil {
			answer <- response
		}
	}
}

// forward takes the batch to the leader. Only requests of this member's own
// clients are forwarded; a request is never passed on twice.
func (p *proposer) forward(ctx context.Context, leader uint64, batch []proposal) {
	own, foreign := split(batch, p.self)
	settle(foreign, errNotLeader)
	if len(own) == 0 {
		return
	}
	term := p.raft().CurrentTerm()
	link, err := p.forwarder.to(ctx, leader)
	if err != nil {
		p.notAppended(ctx, own)
		return
	}
	request := &peerpb.ProposeRequest{Origin: p.self, Requests: make([][]byte, len(own))}
	for i, item := range own {
		request.Requests[i] = item.request
	}
	p.metrics.Forwarded.Add(float64(len(own)))
	response, err := link.exchange(request)
	if err != nil {
		p.metrics.Peers.Failed(leader)
		settle(own, unknownOutcome{term, err})
		return
	}
	rejected, taken := pick(own, response.GetNotAppended())
	if response.GetLost() {
		settle(taken, unknownOutcome{term, errForwardLost})
	}
	if len(rejected) > 0 {
		p.notAppended(ctx, rejected)
	}
}

// pick takes those at the positions out of the batch.
func pick(batch []proposal, positions []uint32) (picked, rest []proposal) {
	chosen := map[int]bool{}
	for _, position := range positions {
		chosen[int(position)] = true
	}
	for i, item := range batch {
		if chosen[i] {
			picked = append(picked, item)
		} else {
			rest = append(rest, item)
		}
	}
	return picked, rest
}

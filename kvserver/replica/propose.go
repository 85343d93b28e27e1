package replica

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/metrics"
)

const (
	// maxBatchBytes closes a batch; a single larger request travels alone.
	maxBatchBytes = 1 << 20
	// maxQueueBytes bounds what waits for the log; past it a request is
	// refused at once, as etcd refuses when it falls behind.
	maxQueueBytes = 256 << 20
	// window is how many batches may be on their way at a time: while one is
	// synced the next is gathered.
	window = 2
	// idleRetry is how long a batch that has nowhere to go waits before it
	// looks again, when no leadership change wakes it earlier.
	idleRetry = 50 * time.Millisecond
)

// errNotLeader is returned when it is certain that nothing was appended.
var errNotLeader = errors.New("not the leader")

// unknownOutcome is what became of a request that was sent in term and may or
// may not be in the log.
type unknownOutcome struct {
	term uint64
	error
}

// proposal is one encoded request on its way into the log.
type proposal struct {
	// abandoned is closed when nobody waits for the outcome any more.
	abandoned <-chan struct{}
	request   []byte
	origin    uint64
	// onlyTerm, unless 0, is the term in which this member must lead for the
	// request to be appended: it is neither forwarded nor kept for the next
	// leader.
	onlyTerm uint64
	// settled tells what became of the request: the index it was committed at,
	// errNotLeader when certainly not appended, an unknownOutcome otherwise. A
	// request of this member's own clients, unless it is for one term only, is
	// not told that it was not appended: it goes on to the next leader.
	settled func(index uint64, err error)
}

// proposer gathers requests into batches and takes them to the leader: into
// raft when that is this member, over the peer port otherwise.
type proposer struct {
	self       uint64
	raft       func() *raft.Raft
	leadership *leadership
	forwarder  *forwarder
	announce   func(index uint64) // called for what this member has committed as the leader
	metrics    *metrics.Replica

	mu    sync.Mutex
	queue []proposal
	bytes int
	wake  chan struct{}
}

func newProposer(p *proposer) *proposer {
	p.wake = make(chan struct{}, 1)
	return p
}

// add queues requests, all or none, or returns ErrTooManyRequests.
func (p *proposer) add(items ...proposal) error {
	size := 0
	for _, item := range items {
		size += len(item.request)
	}
	p.mu.Lock()
	if p.bytes+size > maxQueueBytes {
		p.mu.Unlock()
		return ErrTooManyRequests
	}
	p.queue = append(p.queue, items...)
	p.bytes += size
	p.mu.Unlock()
	p.poke()
	return nil
}

func (p *proposer) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// requeue puts items that were certainly not appended back to the front.
func (p *proposer) requeue(items []proposal) {
	p.mu.Lock()
	p.queue = append(items[:len(items):len(items)], p.queue...)
	for _, item := range items {
		p.bytes += len(item.request)
	}
	p.mu.Unlock()
	p.poke()
}

// take removes the next batch from the queue. Requests that nobody waits for
// any more are dropped: they were certainly not appended.
func (p *proposer) take() []proposal {
	p.mu.Lock()
	defer p.mu.Unlock()
	var batch []proposal
	size := 0
	for len(p.queue) > 0 {
		item := p.queue[0]
		if len(batch) > 0 && size+len(item.request) > maxBatchBytes {
			break
		}
		p.queue[0] = proposal{}
		p.queue = p.queue[1:]
		p.bytes -= len(item.request)
		select {
		case <-item.abandoned:
			continue
		default:
		}
		batch = append(batch, item)
		size += len(item.request)
	}
	return batch
}

func (p *proposer) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) == 0
}

// run sends batches until ctx ends and those on their way have settled.
func (p *proposer) run(ctx context.Context) {
	var senders sync.WaitGroup
	for range window {
		senders.Go(func() { p.send(ctx) })
	}
	senders.Wait()
	p.forwarder.running.Wait()
}

// send sends one batch after the other.
func (p *proposer) send(ctx context.Context) {
	for ctx.Err() == nil {
		for p.empty() {
			select {
			case <-p.wake:
			case <-ctx.Done():
				return
			}
		}
		leader := p.leadership.current()
		if leader == 0 {
			p.turnAway()
			p.leadership.changeOr(ctx, idleRetry)
			continue
		}
		batch := p.take()
		if !p.empty() {
			p.poke()
		}
		switch {
		case len(batch) == 0:
		case leader == p.self:
			p.append(ctx, batch)
		default:
			p.forward(ctx, leader, batch)
		}
	}
}

// turnAway answers forwarded requests when this member cannot help them.
func (p *proposer) turnAway() {
	p.mu.Lock()
	own, foreign := split(p.queue, p.self)
	p.queue = own
	for _, item := range foreign {
		p.bytes -= len(item.request)
	}
	p.mu.Unlock()
	settle(foreign, errNotLeader)
}

// append puts the batch into this member's raft log.
func (p *proposer) append(ctx context.Context, batch []proposal) {
	term := p.raft().CurrentTerm()
	batch = keepTerm(batch, term)
	if len(batch) == 0 {
		return
	}
	requests := make([][]byte, len(batch))
	for i, item := range batch {
		requests[i] = item.request
	}
	p.metrics.BatchRequests.Observe(float64(len(requests)))
	future := p.raft().Apply(machine.EncodeBatch(p.self, requests), 0)
	err := future.Error()
	switch {
	case err == nil:
		for _, item := range batch {
			item.settle(future.Index(), nil)
		}
		p.announce(future.Index())
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		p.notAppended(ctx, batch)
	default:
		// Lost leadership with the entry in the log: it may yet commit. It is
		// never proposed again; whoever waits sees it applied or is told.
		settle(batch, unknownOutcome{term, err})
	}
}

// notAppended gives requests of this member's clients another try once there
// may be a leader to take them, and tells other members that theirs may be
// tried elsewhere.
func (p *proposer) notAppended(ctx context.Context, batch []proposal) {
	own, foreign := split(batch, p.self)
	settle(foreign, errNotLeader)
	p.leadership.changeOr(ctx, idleRetry)
	p.requeue(own)
}

func (p proposal) settle(index uint64, err error) {
	if p.settled != nil {
		p.settled(index, err)
	}
}

// settle tells that no request of the batch is known to be committed.
func settle(batch []proposal, err error) {
	for _, item := range batch {
		item.settle(0, err)
	}
}

// keepTerm turns away what is for another term only.
func keepTerm(batch []proposal, term uint64) []proposal {
	kept := batch[:0:len(batch)]
	for _, item := range batch {
		if item.onlyTerm == 0 || item.onlyTerm == term {
			kept = append(kept, item)
		} else {
			item.settle(0, errNotLeader)
		}
	}
	return kept
}

// split separates what may be taken to another leader from what must be turned
// away when this member does not lead.
func split(batch []proposal, self uint64) (own, foreign []proposal) {
	for _, item := range batch {
		if item.origin == self && item.onlyTerm == 0 {
			own = append(own, item)
		} else {
			foreign = append(foreign, item)
		}
	}
	return own, foreign
}

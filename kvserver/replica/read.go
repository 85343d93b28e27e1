package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/replica/peerpb"
)

// After a round that at least busyRound reads shared, the next one waits
// restFactor times as long as that one took, though not more than longestRest:
// a round costs every member a few messages, however many share it, and where
// that many readers compete for the processor, each of them waits much longer
// for that.
const (
	busyRound   = 32
	restFactor  = 3
	longestRest = 5 * time.Millisecond
)

// askMoreAfter is how long a leader waits for those it has asked before it asks
// the others, too. Who cannot be reached is noticed at once.
const askMoreAfter = 5 * time.Millisecond

// readRequest is one caller, or one other member, waiting for a read index.
type readRequest struct {
	origin uint64
	// commit is the highest index the origin knows to be committed.
	commit uint64
	result chan readResult // buffered
}

type readResult struct {
	index uint64
	err   error
}

// reader obtains read indexes: an index that covers every write acknowledged
// before the request. All that wait share one round.
//
// On the leader a round asks a quorum, this member included, for their current
// term after the requests were registered. While a quorum is still in the
// leader's term, no later leader can have been elected before the round began,
// so no write acknowledged before it can be missing below the leader's commit
// index. raft's own VerifyLeader is not used: it counts acknowledgements of
// messages sent before it was called and does not compare terms.
//
// A follower that asks the leader tells its own term, which is such an answer
// already: of two or three voters nobody else has to be asked; see vouched.
type reader struct {
	self       uint64
	raft       func() *raft.Raft
	leadership *leadership
	peers      *peers
	voters     func() (map[uint64]place, error)
	push       func(origin, index uint64)
	// roundTimeout bounds one round.
	roundTimeout time.Duration
	stopped      <-chan struct{}
	rounds       interface{ Inc() } // counts them

	prompt []uint64 // members that answered in the last round; belongs to run

	mu      sync.Mutex
	waiting []readRequest
	wake    chan struct{}
}

func newReader(r *reader) *reader {
	r.wake = make(chan struct{}, 1)
	return r
}

// index returns a read index for this member. It tries again while there is no
// leader, which is safe for a read, until ctx ends or the member stops.
func (r *reader) index(ctx context.Context) (uint64, error) {
	for {
		result := r.request(r.self, r.raft().CommitIndex())
		select {
		case got := <-result:
			if got.err == nil {
				return got.index, nil
			}
			if !errors.Is(got.err, errNotLeader) {
				return 0, got.err
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-r.stopped:
			return 0, ErrStopped
		}
		r.leadership.changeOr(ctx, idleRetry)
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
}

func (r *reader) request(origin, commit uint64) <-chan readResult {
	result := make(chan readResult, 1)
	r.mu.Lock()
	r.waiting = append(r.waiting, readRequest{origin, commit, result})
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return result
}

// run serves rounds until ctx ends.
func (r *reader) run(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		round := r.waiting
		r.waiting = nil
		r.mu.Unlock()
		if len(round) == 0 {
			continue
		}
		begun := time.Now()
		r.rounds.Inc()
		r.serve(ctx, round)
		if len(round) >= busyRound {
			pause(ctx, min(restFactor*time.Since(begun), longestRest))
		}
	}
}

// pause waits, though not longer than ctx.
func pause(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (r *reader) serve(ctx context.Context, round []readRequest) {
	ctx, cancel := context.WithTimeout(ctx, r.roundTimeout)
	defer cancel()
	var result readResult
	leader := r.leadership.current()
	switch leader {
	case 0:
		result.err = errNotLeader
	case r.self:
		result.index, result.err = confirmedIndex(ctx, r)
	default:
		var foreign []readRequest
		round, foreign = splitReads(round, r.self)
		for _, request := range foreign {
			request.result <- readResult{err: errNotLeader}
		}
		if len(round) > 0 {
			result.index, result.err = r.askLeader(ctx, leader, round[len(round)-1].commit)
		}
	}
	for _, request := range round {
		request.result <- result
		if result.err == nil {
			r.spread(request.origin, request.commit, result.index)
		}
	}
}

// spread tells the follower that asked that index is committed, unless it knows.
func (r *reader) spread(origin, commit, index uint64) {
	if origin != r.self && commit < index {
		r.push(origin, index)
	}
}

func splitReads(round []readRequest, self uint64) (own, foreign []readRequest) {
	for _, request := range round {
		if request.origin == self {
			own = append(own, request)
		} else {
			foreign = append(foreign, request)
		}
	}
	return own, foreign
}

// askLeader has the leader do the round.
func (r *reader) askLeader(ctx context.Context, leader, commit uint64) (uint64, error) {
	voters, err := r.voters()
	if err != nil {
		return 0, err
	}
	at, ok := voters[leader]
	if !ok {
		return 0, errNotLeader
	}
	ctx, cancel := r.leadership.while(ctx, leader)
	defer cancel()
	client, err := r.peers.ready(ctx, leader, at.peerURLs)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	// The reads of this round have begun: the term is as good as one that the
	// leader would ask for.
	response, err := client.ReadIndex(ctx, &peerpb.ReadIndexRequest{Origin: r.self, Commit: commit, Term: r.raft().CurrentTerm()})
	if err != nil {
		return 0, fmt.Errorf("%w: ask the leader %x: %w", errNotLeader, leader, err)
	}
	if response.GetNotLeader() {
		return 0, errNotLeader
	}
	return response.GetIndex(), nil
}

// vouched is the leader's answer without a round, to a voter whose term, told
// with its question, makes a quorum together with this member's own. The voter
// counts for its own reads only: another's may have begun since, and with them a
// newer leader.
func (r *reader) vouched(origin, told uint64) (index uint64, ok bool) {
	term := r.leadership.led()
	if term == 0 || told != term {
		return 0, false
	}
	voters, err := r.voters()
	if err != nil || len(voters)/2+1 > 2 {
		return 0, false
	}
	for _, member := range []uint64{r.self, origin} {
		if _, votes := voters[member]; !votes {
			return 0, false
		}
	}
	index = r.raft().CommitIndex()
	return index, r.raft().CurrentTerm() == term
}

// quorumIndex is the leader's round; see reader.
func (r *reader) quorumIndex(ctx context.Context) (uint64, error) {
	term := r.leadership.led()
	if term == 0 || r.raft().CurrentTerm() != term {
		return 0, errNotLeader // or has not committed an entry of its own term yet
	}
	index := r.raft().CommitIndex()
	voters, err := r.voters()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct{ member, term uint64 }
	answers := make(chan answer, len(voters))
	agreed, asked, quorum := 0, 0, len(voters)/2+1
	if _, ok := voters[r.self]; ok {
		agreed++
	}
	others := r.promptFirst(voters)
	ask := func(n int) {
		for _, member := range others[:min(n, len(others))] {
			asked++
			go func() { answers <- answer{member, r.termOf(ctx, member, voters[member])} }()
		}
		others = others[min(n, len(others)):]
	}
	ask(quorum - agreed)
	late := time.NewTimer(askMoreAfter)
	defer late.Stop()
	r.prompt = r.prompt[:0]
	for agreed < quorum && asked > 0 {
		select {
		case got := <-answers:
			asked--
			switch {
			case got.term == term:
				agreed++
				r.prompt = append(r.prompt, got.member)
			case got.term > term:
				return 0, errNotLeader
			default:
				ask(1)
			}
		case <-late.C:
			ask(len(others))
		}
	}
	if agreed < quorum || r.raft().CurrentTerm() != term {
		return 0, errNotLeader
	}
	return index, nil
}

// promptFirst returns the voters to ask, those first who answered in the last
// round: no more are asked than make a quorum, unless they are late.
func (r *reader) promptFirst(voters map[uint64]place) []uint64 {
	var prompt, others []uint64
	for member := range voters {
		switch {
		case member == r.self:
		case slices.Contains(r.prompt, member):
			prompt = append(prompt, member)
		default:
			others = append(others, member)
		}
	}
	return append(prompt, others...)
}

// termOf returns the member's current term, 0 when it does not answer.
func (r *reader) termOf(ctx context.Context, member uint64, at place) uint64 {
	client, err := r.peers.ready(ctx, member, at.peerURLs)
	if err != nil {
		return 0
	}
	response, err := client.Term(ctx, &peerpb.TermRequest{})
	if err != nil {
		return 0
	}
	return response.GetTerm()
}

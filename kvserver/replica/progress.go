package replica

import (
	"context"
	"sync"
)

// progress is the index this member's state machine has reached, and those who
// wait for it. raft's own AppliedIndex counts entries when they are queued to
// the state machine, which is too early for a read.
type progress struct {
	stopped <-chan struct{}

	mu      sync.Mutex
	applied uint64
	changed chan struct{} // closed and replaced when applied grows; nil while nobody waits
}

func (p *progress) advance(index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if index <= p.applied {
		return
	}
	p.applied = index
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// wait returns once the state machine has applied index, or with ctx's error or
// ErrStopped.
func (p *progress) wait(ctx context.Context, index uint64) error {
	for {
		p.mu.Lock()
		if p.applied >= index {
			p.mu.Unlock()
			return nil
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.stopped:
			return ErrStopped
		}
	}
}

// waiters are the callers whose requests are on their way through the log, by
// request id.
type waiters struct {
	mu      sync.Mutex
	waiting map[uint64]chan Outcome
	// inDoubt holds the term in which a request was sent whose fate is unknown,
	// and appliedTerm is the term of the newest applied entry.
	inDoubt     map[uint64]uint64
	appliedTerm uint64
}

func newWaiters() *waiters {
	return &waiters{waiting: map[uint64]chan Outcome{}, inDoubt: map[uint64]uint64{}}
}

func (w *waiters) register(id uint64) <-chan Outcome {
	ch := make(chan Outcome, 1)
	w.mu.Lock()
	w.waiting[id] = ch
	w.mu.Unlock()
	return ch
}

func (w *waiters) forget(id uint64) {
	w.mu.Lock()
	delete(w.waiting, id)
	delete(w.inDoubt, id)
	w.mu.Unlock()
}

func (w *waiters) wanted(id uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.waiting[id]
	return ok
}

func (w *waiters) deliver(outcomes []Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, outcome := range outcomes {
		w.deliverLocked(outcome)
	}
}

func (w *waiters) deliverLocked(outcome Outcome) {
	if ch, ok := w.waiting[outcome.ID]; ok {
		delete(w.waiting, outcome.ID)
		delete(w.inDoubt, outcome.ID)
		ch <- outcome
	}
}

// doubt says that the fate of a request sent in term is unknown. Once an entry
// of a later term is applied, what the lost leader left behind has been applied
// too, and there is nothing more to wait for: the caller is told then.
func (w *waiters) doubt(id, term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.waiting[id]; !ok {
		return
	}
	w.inDoubt[id] = term
	w.resolveLocked()
}

// applied follows the terms of the applied entries; outcomes of the entries
// themselves are delivered before.
func (w *waiters) applied(term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if term > w.appliedTerm {
		w.appliedTerm = term
		w.resolveLocked()
	}
}

func (w *waiters) resolveLocked() {
	for id, term := range w.inDoubt {
		if term < w.appliedTerm {
			w.deliverLocked(Outcome{ID: id, Err: ErrLeaderLost})
		}
	}
}

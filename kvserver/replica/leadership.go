package replica

import (
	"context"
	"sync"
	"time"
)

// leadership is who leads, and the last term that this member is known to
// have led. It is safe for concurrent use.
type leadership struct {
	self uint64
	// onNew, unless nil, is called for every new leader.
	onNew func()

	mu      sync.Mutex
	leader  uint64 // 0: none known
	changed chan struct{}
	// ledTerm is the term of the newest applied entry that this member put
	// into the log itself, which only the leader of that term can have done.
	ledTerm uint64
}

func newLeadership(self uint64) *leadership {
	return &leadership{self: self, changed: make(chan struct{})}
}

func (l *leadership) set(leader uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader == leader {
		return
	}
	l.leader = leader
	if leader != 0 && l.onNew != nil {
		l.onNew()
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leadership) current() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader
}

// changeOr returns when the leader changes, after at most d, or when ctx ends.
func (l *leadership) changeOr(ctx context.Context, d time.Duration) {
	l.mu.Lock()
	changed := l.changed
	l.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// while returns a context that ends when leader no longer leads: nothing should
// wait for a member that was deposed, which may be stopped or cut off.
func (l *leadership) while(ctx context.Context, leader uint64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			l.mu.Lock()
			current, changed := l.leader, l.changed
			l.mu.Unlock()
			if current != leader {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

func (l *leadership) applied(proposer, _, term uint64) {
	if proposer != l.self {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ledTerm = max(l.ledTerm, term)
}

func (l *leadership) led() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledTerm
}

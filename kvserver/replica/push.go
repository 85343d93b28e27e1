package replica

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pusher tells followers that an index is committed: one whose client waits for
// it at once, and all when raft has not done it soon. raft alone tells with the
// next entry, or after CommitTimeout, and who watches a follower would see a
// lone write that late.
//
// It is sent only for entries of a term this member led; see commitNews.
type pusher struct {
	self       uint64
	transport  raft.Transport
	leadership *leadership
	locate     func(member uint64) (place, error)
	others     func() []uint64 // the ids of the other members
	ctx        context.Context

	mu      sync.Mutex
	pending map[uint64]uint64 // index by follower; present while a push is under way
	heard   map[uint64]uint64 // index that a follower has been told, by raft or by a push
	newest  uint64            // index that is committed
	telling *time.Timer       // nil while everybody has been told
	running sync.WaitGroup
}

const (
	pushTries    = 6
	pushInterval = 2 * time.Millisecond
	// announceDelay is how long raft's next message may take. With etcd, which
	// tells at once, every write costs each follower a message more.
	announceDelay = 3 * time.Millisecond
	// A member that is removed may be a little behind.
	farewellTries    = 50
	farewellInterval = 20 * time.Millisecond
)

func (p *pusher) push(follower, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, underWay := p.pending[follower]
	p.pending[follower] = max(index, last)
	if underWay || p.ctx.Err() != nil {
		return
	}
	p.running.Add(1)
	go func() {
		defer p.running.Done()
		p.send(follower)
	}()
}

// told notes that a follower knows that index is committed.
func (p *pusher) told(follower, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard[follower] = max(p.heard[follower], index)
}

// announce sees to it that all followers learn soon that index is committed.
func (p *pusher) announce(index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.newest = max(p.newest, index)
	p.tellLaterLocked()
}

func (p *pusher) tellLaterLocked() {
	if p.telling != nil || p.ctx.Err() != nil {
		return
	}
	due := p.newest
	p.telling = time.AfterFunc(announceDelay, func() { p.tell(due) })
}

// tell pushes to those who have not heard of index.
func (p *pusher) tell(index uint64) {
	for _, follower := range p.others() {
		p.mu.Lock()
		heard := p.heard[follower]
		p.mu.Unlock()
		if heard < index {
			p.push(follower, index)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.telling = nil
	if p.newest > index {
		p.tellLaterLocked()
	}
}

// close returns when nothing is pushed any more; the context must have ended.
func (p *pusher) close() {
	p.mu.Lock()
	if p.telling != nil {
		p.telling.Stop()
	}
	p.mu.Unlock()
	p.running.Wait()
}

func (p *pusher) send(follower uint64) {
	for {
		p.mu.Lock()
		index := p.pending[follower]
		p.mu.Unlock()
		if at, err := p.locate(follower); err == nil {
			p.deliver(follower, at, index, pushTries, pushInterval)
		}
		p.mu.Lock()
		if p.pending[follower] == index {
			delete(p.pending, follower)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
}

// farewell tells a member that its removal is committed at index: raft has sent
// it the entry and then stopped, so that it would not learn of the commit.
func (p *pusher) farewell(member uint64, at place, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	p.running.Add(1)
	go func() {
		defer p.running.Done()
		p.deliver(member, at, index, farewellTries, farewellInterval)
	}()
}

// deliver gives up after a few tries: the follower may not have the entry yet,
// and raft's next message carries the same news.
func (p *pusher) deliver(follower uint64, at place, index uint64, tries int, interval time.Duration) {
	term := p.leadership.led()
	if term == 0 {
		return
	}
	request := commitNews(news{leader: p.self, term: term, index: index})
	for range tries {
		var response raft.AppendEntriesResponse
		err := p.transport.AppendEntries(serverID(follower), at.address(), request, &response)
		if err == nil && response.Success {
			p.told(follower, index)
		}
		if err != nil || response.Success || response.Term > term {
			return
		}
		timer := time.NewTimer(interval)
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
			return
		}
	}
}

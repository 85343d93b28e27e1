package replica

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pusher tells a follower that an index is committed when one of its clients
// waits for it. raft alone tells with the next entry, or after CommitTimeout,
// and a lone write through a follower would wait that long.
//
// The message is an empty AppendEntries whose previous entry is the committed
// one: exactly what raft's own replication sends, so the follower checks it
// like any other. It is sent only for entries of a term this member led.
type pusher struct {
	self       uint64
	transport  raft.Transport
	leadership *leadership
	locate     func(member uint64) (place, error)
	ctx        context.Context

	mu      sync.Mutex
	pending map[uint64]uint64 // index by follower; present while a push is under way
	running sync.WaitGroup
}

const (
	pushTries    = 6
	pushInterval = 2 * time.Millisecond
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
	local := p.transport.LocalAddr()
	request := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax,
			ID:              []byte(serverID(p.self)),
			Addr:            p.transport.EncodePeer(serverID(p.self), local),
		},
		Term:              term,
		PrevLogEntry:      index,
		PrevLogTerm:       term,
		LeaderCommitIndex: index,
	}
	for range tries {
		var response raft.AppendEntriesResponse
		err := p.transport.AppendEntries(serverID(follower), at.address(), request, &response)
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

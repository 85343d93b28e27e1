package replica

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"
)

// news is that the leader of a term has committed an entry of it at index.
type news struct{ leader, term, index uint64 }

func (n news) newerThan(other news) bool {
	return n.term > other.term || n.term == other.term && n.index > other.index
}

// commitNews is an empty AppendEntries whose previous entry is the committed
// one: exactly what raft's own replication sends, so that raft checks it like
// any other.
func commitNews(n news) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax,
			ID:              []byte(serverID(n.leader)),
			Addr:            []byte(serverID(n.leader)),
		},
		Term:              n.term,
		PrevLogEntry:      n.index,
		PrevLogTerm:       n.term,
		LeaderCommitIndex: n.index,
	}
}

// listener hands to this member's own raft what the leader said it has
// committed in its answer to a forwarded batch. It saves the leader a message
// of its own for that.
type listener struct {
	committed func() uint64 // what raft knows already
	incoming  chan<- raft.RPC

	mu     sync.Mutex
	newest news
	wake   chan struct{}
}

func newListener(committed func() uint64, incoming chan<- raft.RPC) *listener {
	return &listener{committed: committed, incoming: incoming, wake: make(chan struct{}, 1)}
}

func (l *listener) hear(n news) {
	l.mu.Lock()
	if n.newerThan(l.newest) {
		l.newest = n
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (l *listener) run(ctx context.Context) {
	for {
		select {
		case <-l.wake:
		case <-ctx.Done():
			return
		}
		// The entry itself may be on its way still.
		for try := 0; try < pushTries && !l.pass(ctx); try++ {
			if !tick(ctx, pushInterval) {
				return
			}
		}
	}
}

// pass reports whether there is nothing more to pass on.
func (l *listener) pass(ctx context.Context) bool {
	l.mu.Lock()
	n := l.newest
	l.mu.Unlock()
	if l.committed() >= n.index {
		return true
	}
	answered := make(chan raft.RPCResponse, 1)
	select {
	case l.incoming <- raft.RPC{Command: commitNews(n), RespChan: answered}:
	case <-ctx.Done():
		return true
	}
	select {
	case answer := <-answered:
		response, ok := answer.Response.(*raft.AppendEntriesResponse)
		return answer.Error != nil || !ok || response.Success || response.Term > n.term
	case <-ctx.Done():
		return true
	}
}

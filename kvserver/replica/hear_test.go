package replica

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// recordingTransport keeps the messages that carry only news of a commit.
type recordingTransport struct {
	raft.Transport
	pushed chan push
}

type push struct {
	to raft.ServerID
	raft.AppendEntriesRequest
}

func (r *recordingTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, request *raft.AppendEntriesRequest, response *raft.AppendEntriesResponse) error {
	err := r.Transport.AppendEntries(id, target, request, response)
	if err == nil && response.Success {
		select {
		case r.pushed <- push{id, *request}:
		default:
		}
	}
	return err
}

// The follower whose client waits is told of the commit by the answer to what
// it forwarded.
func TestTheAnswerTellsOfTheCommit(t *testing.T) {
	c := startCluster(t, 3)
	leader, follower := c.members[c.leader()], c.follower()
	c.put(follower, "k", "v")
	listener := c.members[follower].listener
	eventually(t, "the follower to hear of the commit", func() bool {
		listener.mu.Lock()
		defer listener.mu.Unlock()
		n := listener.newest
		return n.leader == leader.Member() && n.term == leader.Status().Term && n.index > 0 && n.index <= leader.Status().Committed
	})
}

// Those whose clients did not ask are told soon, when raft has not done it.
func TestCommitIsAnnounced(t *testing.T) {
	c := startCluster(t, 3)
	at := c.leader()
	leader := c.members[at]
	recording := &recordingTransport{leader.transport, make(chan push, 16)}
	leader.pusher.mu.Lock()
	leader.pusher.transport = recording
	leader.pusher.mu.Unlock()
	told := map[raft.ServerID]bool{}
	eventually(t, "a push to each follower", func() bool {
		c.put(at, "k", "v")
		select {
		case p := <-recording.pushed:
			told[p.to] = true
			if len(p.Entries) != 0 || p.LeaderCommitIndex != p.PrevLogEntry || p.LeaderCommitIndex > leader.Status().Committed || p.PrevLogTerm != leader.Status().Term {
				t.Errorf("pushed %+v", p)
			}
		case <-time.After(testElection):
		}
		return len(told) == 2
	})
}

// News wait for the entry that they are about, and are passed on once.
func TestNewsArePassedToRaft(t *testing.T) {
	for name, test := range map[string]struct {
		committed uint64
		answers   []raft.RPCResponse
	}{
		"raft knows already":     {committed: 7},
		"taken at once":          {answers: []raft.RPCResponse{{Response: &raft.AppendEntriesResponse{Term: 3, Success: true}}}},
		"the entry is under way": {answers: []raft.RPCResponse{{Response: &raft.AppendEntriesResponse{Term: 3}}, {Response: &raft.AppendEntriesResponse{Term: 3, Success: true}}}},
		"another term has begun": {answers: []raft.RPCResponse{{Response: &raft.AppendEntriesResponse{Term: 4}}}},
		"raft refuses":           {answers: []raft.RPCResponse{{Error: errors.New("no")}}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			incoming := make(chan raft.RPC)
			l := newListener(func() uint64 { return test.committed }, incoming)
			l.hear(news{leader: 1, term: 3, index: 5})
			l.hear(news{leader: 1, term: 3, index: 7})
			l.hear(news{leader: 2, term: 2, index: 9})
			ended := background(func() { l.run(ctx) })
			for i, answer := range test.answers {
				select {
				case rpc := <-incoming:
					request, ok := rpc.Command.(*raft.AppendEntriesRequest)
					if !ok || request.Term != 3 || request.PrevLogEntry != 7 || request.PrevLogTerm != 3 || request.LeaderCommitIndex != 7 || len(request.Entries) != 0 || string(request.ID) != string(serverID(1)) {
						t.Errorf("message %d is %+v", i, rpc.Command)
					}
					rpc.Respond(answer.Response, answer.Error)
				case <-time.After(patience):
					t.Fatalf("message %d does not come", i)
				}
			}
			select {
			case rpc := <-incoming:
				t.Errorf("one message too many: %+v", rpc.Command)
			case <-time.After(10 * pushInterval):
			}
			cancel()
			<-ended
		})
	}
}

// A batch whose leader is lost, or which it refuses, is told apart by request.
func TestPick(t *testing.T) {
	batch := []proposal{{origin: 0}, {origin: 1}, {origin: 2}}
	picked, rest := pick(batch, []uint32{2, 0, 9})
	if len(picked) != 2 || picked[0].origin != 0 || picked[1].origin != 2 || len(rest) != 1 || rest[0].origin != 1 {
		t.Errorf("picked %v, left %v", picked, rest)
	}
}

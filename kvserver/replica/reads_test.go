package replica

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Every member's read sees every write that any member acknowledged before it.
func TestReadsSeeAcknowledgedWrites(t *testing.T) {
	c := startCluster(t, 3)
	for i := range 60 {
		writer, reader := i%3, (i/3)%3
		value := fmt.Sprint(i)
		c.put(writer, "k", value)
		c.linearize(reader)
		if got := c.members[reader].value("k"); got != value {
			t.Fatalf("m%d acknowledged %s, then m%d read %q", writer, value, reader, got)
		}
	}
}

// A leader that was deposed without noticing must not answer a read: it asks a
// quorum for its term after the read arrived. raft itself still believes that
// it leads.
func TestDeposedLeaderAnswersNoRead(t *testing.T) {
	c := startCluster(t, 3, func(config *Config) { config.ElectionTimeout = 3 * time.Second })
	leader := c.members[c.leader()]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := confirmedIndex(ctx, leader.reader); err != nil {
		t.Fatalf("the leader cannot answer: %v", err)
	}
	term := leader.Status().Term
	for _, m := range c.members {
		if m == leader {
			continue
		}
		// What the first message of a newer leader does.
		newer := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(serverID(1)), Addr: []byte("127.0.0.1:1")},
			Term:      term + 1,
		}
		var response raft.AppendEntriesResponse
		if err := leader.transport.AppendEntries(serverID(m.Member()), place{peerURLs: m.config.Self.PeerURLs}.address(), newer, &response); err != nil {
			t.Fatal(err)
		}
	}
	_, err := confirmedIndex(ctx, leader.reader)
	if leader.currentRaft().State() != raft.Leader {
		t.Fatal("the leader was told before the test could ask it")
	}
	if !errors.Is(err, errNotLeader) {
		t.Errorf("a leader whose followers are in a newer term: %v, want errNotLeader", err)
	}
}

// A follower's own term and the leader's are a quorum of three: the leader asks
// nobody for such a read.
func TestFollowersReadWithoutARound(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.members[c.leader()]
	for _, f := range c.followers(c.leader()) {
		c.linearize(f)
		before := testutil.ToFloat64(leader.Replica.config.Metrics.ReadRounds)
		for range 10 {
			c.linearize(f)
		}
		if rounds := testutil.ToFloat64(leader.Replica.config.Metrics.ReadRounds) - before; rounds > 0 {
			t.Errorf("10 reads of m%d cost the leader %v rounds", f, rounds)
		}
	}
}

// What a member tells of its term counts only if it votes, in the leader's own
// term, and if nobody else is needed.
func TestWhoseTermIsEnough(t *testing.T) {
	c := startCluster(t, 3, func(config *Config) { config.ElectionTimeout = 3 * time.Second })
	leader, follower := c.members[c.leader()], c.members[c.follower()]
	term := leader.Status().Term
	learner := c.add(c.leader(), true)
	c.joined(learner)
	larger := startCluster(t, 5)
	largerLeader := larger.members[larger.leader()]
	for _, test := range []struct {
		name   string
		asked  *testMember
		origin uint64
		told   uint64
		want   bool
	}{
		{"a follower", leader, follower.Member(), term, true},
		{"a follower that has voted for a newer leader", leader, follower.Member(), term + 1, false},
		{"a follower that has not heard of the leader", leader, follower.Member(), term - 1, false},
		{"a follower that does not tell", leader, follower.Member(), 0, false},
		{"a learner", leader, c.members[learner].Member(), term, false},
		{"a stranger", leader, 4711, term, false},
		{"who asks a follower", follower, leader.Member(), term, false},
		{"a follower among five", largerLeader, larger.members[larger.follower()].Member(), largerLeader.Status().Term, false},
	} {
		if _, ok := test.asked.reader.vouched(test.origin, test.told); ok != test.want {
			t.Errorf("%s: %v, want %v", test.name, ok, test.want)
		}
	}
	newer := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(serverID(1)), Addr: []byte("127.0.0.1:1")},
		Term:      term + 1,
	}
	target := place{peerURLs: leader.config.Self.PeerURLs}.address()
	if err := follower.transport.AppendEntries(serverID(leader.Member()), target, newer, &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := leader.reader.vouched(follower.Member(), term); ok {
		t.Error("a leader that has heard of a newer one answers")
	}
}

// Who has been answered by a member may rely on its name being on the list, for
// the --initial-cluster of the next one.
func TestReadsWaitUntilTheMemberIsAnnounced(t *testing.T) {
	c := startCluster(t, 1)
	member := c.members[0].Replica
	unannounced := &Replica{local: member.local, engine: member.engine, reader: member.reader, ready: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), testElection)
	defer cancel()
	if err := unannounced.Linearize(ctx); !errors.Is(err, ErrTimeout) {
		t.Errorf("a read before the member is announced: %v, want ErrTimeout", err)
	}
	close(unannounced.ready)
	if err := unannounced.Linearize(context.Background()); err != nil {
		t.Errorf("a read after the member is announced: %v", err)
	}
}

// A leader without a quorum does not answer reads either.
func TestIsolatedMemberAnswersNoRead(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.leader()
	c.isolate(leader)
	ctx, cancel := context.WithTimeout(context.Background(), 2*testElection)
	defer cancel()
	if err := c.members[leader].Linearize(ctx); !errors.Is(err, ErrTimeout) {
		t.Errorf("a read on an isolated leader: %v, want ErrTimeout", err)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.members[leader].Linearize(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that its caller gave up: %v, want Canceled", err)
	}
	c.heal()
	c.linearize(leader)
}

// A leader asks one of two others, the one that answered last. When that one is
// gone the other answers, in the same round.
func TestReadsOutliveTheOneThatIsAsked(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.leader()
	for _, gone := range c.followers(leader) {
		c.linearize(leader)
		c.isolate(gone)
		c.linearize(leader)
		c.heal()
	}
}

// A read index needs an applied entry of the leader's own term. raft's own
// first entry never reaches a state machine, so without a write the new leader
// has to add one.
func TestNewLeaderAnswersWithoutAWrite(t *testing.T) {
	c := startCluster(t, 3)
	old := c.leader()
	for i := range c.members {
		c.linearize(i)
	}
	if err := c.members[old].currentRaft().LeadershipTransfer().Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leader", func() bool { return c.leader() != old })
	for i := range c.members {
		c.linearize(i)
	}
}

// The leader may answer only once it has applied an entry of its own term.
func TestReadIndexWaitsForTheTermsFirstEntry(t *testing.T) {
	c := startCluster(t, 1)
	own := c.members[0].reader
	reader := &reader{self: own.self, raft: own.raft, peers: own.peers, voters: own.voters, leadership: newLeadership(own.self)}
	if _, err := confirmedIndex(context.Background(), reader); !errors.Is(err, errNotLeader) {
		t.Errorf("before the term's first entry: %v, want errNotLeader", err)
	}
	reader.leadership.applied(reader.self, 1, c.members[0].Status().Term)
	if _, err := confirmedIndex(context.Background(), reader); err != nil {
		t.Errorf("after the term's first entry: %v", err)
	}
}

func TestReadsEndWhenTheMemberStops(t *testing.T) {
	c := startCluster(t, 3)
	f := c.follower()
	c.isolate(f)
	read := make(chan error, 1)
	member := c.members[f].Replica
	go func() { read <- member.Linearize(context.Background()) }()
	c.stop(f)
	select {
	case err := <-read:
		if !errors.Is(err, ErrStopped) {
			t.Errorf("a read on a member that stopped: %v, want ErrStopped", err)
		}
	case <-time.After(patience):
		t.Fatal("the read still waits")
	}
	if _, err := member.Propose(context.Background(), putRequest("k")); !errors.Is(err, ErrStopped) {
		t.Errorf("a write on a member that stopped: %v, want ErrStopped", err)
	}
}

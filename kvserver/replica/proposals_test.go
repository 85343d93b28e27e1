package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func putRequest(key string) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key)}}
}

// The leader's followers have the entry, but their answers do not reach it: it
// loses leadership not knowing. The entry commits under the next leader, once,
// because nobody proposes it again.
func TestUnknownOutcomeIsNotProposedAgain(t *testing.T) {
	for _, through := range []string{"leader", "follower"} {
		t.Run("through the "+through, func(t *testing.T) {
			c := startCluster(t, 3)
			leader := c.leader()
			at := leader
			if through == "follower" {
				at = c.follower()
			}
			c.put(at, "first", "v") // so that every connection exists
			c.deafen(leader)
			before := c.members[c.follower()].currentRaft().LastIndex()
			done := make(chan error, 1)
			go func() { done <- c.tryPut(at, "k", "v", patience) }()
			eventually(t, "both followers to have the entry", func() bool {
				for i, m := range c.members {
					if i != leader && m.currentRaft().LastIndex() == before {
						return false
					}
				}
				return true
			})
			if at != leader {
				// The leader's answer to the member that forwarded is lost too.
				c.members[leader].gate.block(func(uint64) bool { return true })
			}
			eventually(t, "the entry to commit under another leader", func() bool {
				for i, m := range c.members {
					if i != leader && m.value("k") == "v" && m.Status().Leader != c.members[leader].Member() {
						return true
					}
				}
				return false
			})
			c.heal()
			if err := <-done; err != nil {
				t.Errorf("the request was applied, but its client heard %v", err)
			}
			// Whatever was proposed a second time is below this in the log.
			for i := range c.members {
				c.put(i, fmt.Sprintf("last-%d", i), "v")
			}
			for i, m := range c.members {
				c.linearize(i)
				if got := m.have("k"); len(got.Kvs) != 1 || got.Kvs[0].Version != 1 {
					t.Errorf("m%d applied the request more than once: %v", i, got.Kvs)
				}
			}
		})
	}
}

// Under changing leaders every acknowledged request was applied, and every
// request at most once.
func TestRequestsAreAppliedAtMostOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not a secret
	c := startCluster(t, 3)
	var stop atomic.Bool
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop.Store(true)
	written := make([]map[string]bool, len(c.members))
	for i := range c.members {
		written[i] = map[string]bool{}
		writing.Go(func() {
			for n := 0; !stop.Load(); n++ {
				key := fmt.Sprintf("m%d-%d", i, n)
				written[i][key] = c.tryPut(i, key, "v", 4*testElection) == nil
			}
		})
	}
	for round := range 6 {
		leader := c.leader()
		switch random.IntN(3) {
		case 0:
			c.isolate(leader)
		case 1:
			c.deafen(leader)
		case 2:
			_ = c.members[leader].currentRaft().LeadershipTransfer().Error() // may fail; the others go on
		}
		eventually(t, "another leader", func() bool { return c.leader() != leader })
		c.heal()
		c.put(leader, fmt.Sprintf("round-%d", round), "v")
	}
	stop.Store(true)
	writing.Wait()
	acknowledged := 0
	for i := range c.members {
		c.linearize(i)
	}
	for _, keys := range written {
		for key, ok := range keys {
			if ok {
				acknowledged++
			}
			for i, m := range c.members {
				kvs := m.have(key).Kvs
				if ok && len(kvs) == 0 {
					t.Errorf("%s was acknowledged and is not on m%d", key, i)
				}
				if len(kvs) == 1 && kvs[0].Version != 1 {
					t.Errorf("%s was applied %d times", key, kvs[0].Version)
				}
			}
		}
	}
	if acknowledged == 0 {
		t.Error("nothing was acknowledged")
	}
}

// A transfer of leadership that fails does not leave the leader refusing
// requests, and a member that led before leads again like any other.
func TestLeadershipTransferLeavesNobodyStuck(t *testing.T) {
	c := startCluster(t, 3)
	leader, target := c.leader(), c.follower()
	c.isolate(target)
	to := c.members[target]
	err := c.members[leader].currentRaft().LeadershipTransferToServer(serverID(to.Member()), place{peerURLs: to.config.Self.PeerURLs}.address()).Error()
	if err == nil {
		t.Fatal("leadership went to an isolated member")
	}
	c.heal()
	for i := range c.members {
		c.put(i, "k", fmt.Sprint("after the failed transfer ", i))
	}
	for round := range 4 {
		from := c.leader()
		if err := c.members[from].currentRaft().LeadershipTransfer().Error(); err != nil {
			t.Logf("round %d: %v", round, err)
		}
		for i := range c.members {
			c.put(i, "k", fmt.Sprint(round, i))
			c.linearize(i)
		}
	}
}

func TestQueueIsBounded(t *testing.T) {
	p := newProposer(&proposer{})
	large := make([]byte, maxQueueBytes/4)
	for range 4 {
		if err := p.add(proposal{request: large}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.add(proposal{request: []byte("x")}); !errors.Is(err, ErrTooManyRequests) {
		t.Errorf("a request past the bound: %v, want ErrTooManyRequests", err)
	}
	if got := len(p.take()); got != 1 {
		t.Errorf("a batch has %d large requests, want 1", got)
	}
	if err := p.add(proposal{request: []byte("x")}); err != nil {
		t.Errorf("a request after one has left: %v", err)
	}
}

// Requests that nobody waits for any more do not reach the log.
func TestAbandonedRequestsAreDropped(t *testing.T) {
	p := newProposer(&proposer{})
	gone := make(chan struct{})
	close(gone)
	for i := range 4 {
		item := proposal{request: []byte{byte(i)}}
		if i%2 == 0 {
			item.abandoned = gone
		}
		if err := p.add(item); err != nil {
			t.Fatal(err)
		}
	}
	batch := p.take()
	if len(batch) != 2 || batch[0].request[0] != 1 || batch[1].request[0] != 3 {
		t.Errorf("the batch is %v", batch)
	}
	if p.bytes != 0 || !p.empty() {
		t.Errorf("%d bytes are still counted", p.bytes)
	}
}

func TestCloseAtAnyMoment(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not a secret
	for range 5 {
		c := newCluster(t, 3)
		c.startAll()
		// Somewhere between start, election and the first requests.
		<-time.After(time.Duration(random.Int64N(int64(3 * testElection))))
		var closing sync.WaitGroup
		for _, m := range c.members {
			for range 2 {
				closing.Go(func() {
					if err := m.Replica.Close(); err != nil {
						t.Errorf("close: %v", err)
					}
				})
			}
		}
		closed := make(chan struct{})
		go func() { closing.Wait(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(patience):
			t.Fatal("close does not return")
		}
	}
}

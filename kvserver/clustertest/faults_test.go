package clustertest

import (
	"context"
	"flag"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

var (
	rounds = flag.Int("rounds", 3, "faults per test")
	seed   = flag.Uint64("seed", 0, "seed of the clients' choices; 0 takes one from the clock")
)

func theSeed(t *testing.T) uint64 {
	chosen := *seed
	if chosen == 0 {
		chosen = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (replay with -seed %d)", chosen, chosen)
	return chosen
}

// A killed leader loses nothing it acknowledged, and its successor's reads
// are never older than what was acknowledged.
func TestLeaderKilledUnderLoad(t *testing.T) {
	c := startCluster(t, 300*time.Millisecond)
	l := startLoad(c, theSeed(t))
	for round := range *rounds {
		l.next(round)
		leader := c.leader(nil)
		c.kill(leader)
		c.awaitWrite(c.leader(leader))
		c.start(leader)
		c.awaitRead(leader)
		c.alive()
	}
	verify(t, c, l.stop())
}

// A stopped leader that wakes up answers no read from its past: reads sent to
// it while it was stopped, after its successor acknowledged newer writes, are
// refused or see those writes.
func TestLeaderStoppedUnderLoad(t *testing.T) {
	c := startCluster(t, 300*time.Millisecond)
	l := startLoad(c, theSeed(t))
	for round := range *rounds {
		l.next(round)
		leader := c.leader(nil)
		burst := l.crowdAt(leader, 24)
		overwrite(t, c, l, leader, "before")
		c.signal(leader, syscall.SIGSTOP)
		successor := c.leader(leader)
		overwrite(t, c, l, successor, "after")
		answered := burst.burst()
		c.signal(leader, syscall.SIGCONT)
		answered.Wait()
		c.awaitRead(leader)
		c.alive()
	}
	verify(t, c, l.stop())
}

// Members that stop and go on at random, with elections all the time, stay
// equal and lose nothing.
func TestMembersStutterUnderLoad(t *testing.T) {
	c := startCluster(t, 100*time.Millisecond)
	chosen := theSeed(t)
	random := rand.New(rand.NewPCG(chosen, 0))
	l := startLoad(c, chosen)
	for round := range *rounds {
		l.next(round)
		for range 15 {
			m := c.members[random.IntN(len(c.members))]
			c.signal(m, syscall.SIGSTOP)
			<-time.After(c.electionTimeout + time.Duration(random.Int64N(int64(2*c.electionTimeout))))
			c.signal(m, syscall.SIGCONT)
			<-time.After(time.Duration(random.Int64N(int64(c.electionTimeout))))
		}
		for _, m := range c.members {
			c.awaitRead(m)
		}
		c.alive()
	}
	verify(t, c, l.stop())
}

// overwrite gives every quiet register a new value through m. The workers
// leave these alone: hundreds of reads beside a write would be too many orders
// for porcupine to try.
func overwrite(t *testing.T, c *cluster, l *load, m *member, value string) {
	t.Helper()
	kv := pb.NewKVClient(c.dialOnce(m))
	for i := range registers {
		eventually(t, m.name+" acknowledges a write", func() error {
			return l.write(context.Background(), kv, l.history.client(), l.quietKey(i), value)
		})
	}
}

// verify checks the clients' history, that no acknowledged write is missing on
// any member, and that all members hold the same.
func verify(t *testing.T, c *cluster, h *history) {
	t.Helper()
	h.check(t)
	for _, m := range c.members {
		c.awaitRead(m)
	}
	var reference *pb.RangeResponse
	lost := 0
	for _, m := range c.members {
		contents := everything(t, c, m, reference.GetHeader().GetRevision())
		if reference == nil {
			reference = contents
		} else if difference := differs(reference, contents); difference != "" {
			t.Errorf("%s and %s differ at revision %d: %s", c.members[0].name, m.name, reference.GetHeader().GetRevision(), difference)
		}
		present := map[string]string{}
		for _, kv := range contents.GetKvs() {
			present[string(kv.GetKey())] = string(kv.GetValue())
		}
		for key, value := range h.acknowledged {
			if present[key] != value {
				lost++
				t.Errorf("%s lost an acknowledged write: %s", m.name, key)
			}
		}
	}
	t.Logf("rounds %d, operations %d, acknowledged unique writes %d, lost %d, outcome unknown %d, reads refused %d, longest gap between acknowledged writes %d ms",
		*rounds, len(h.operations), len(h.acknowledged), lost, h.unknown, h.refusedReads, h.longestGap.Milliseconds())
}

// everything reads the whole store of one member, at a revision other than 0
// if given.
func everything(t *testing.T, c *cluster, m *member, revision int64) *pb.RangeResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	response, err := pb.NewKVClient(c.dialOnce(m)).Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision})
	if err != nil {
		t.Fatalf("read everything from %s: %v", m.name, err)
	}
	return response
}

func differs(a, b *pb.RangeResponse) string {
	if len(a.GetKvs()) != len(b.GetKvs()) {
		return "another number of keys"
	}
	for i, kv := range a.GetKvs() {
		if !proto.Equal(kv, b.GetKvs()[i]) {
			return kv.String() + " against " + b.GetKvs()[i].String()
		}
	}
	return ""
}

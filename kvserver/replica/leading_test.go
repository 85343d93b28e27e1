package replica

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// What only the leader of a term may ask is appended by that leader or not at
// all: never by the next one, and never through a follower.
func TestProposeLeading(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.members[c.leader()]
	follower := c.members[c.follower()]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request := func() *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}
	}
	term, leading := leader.Leading()
	if !leading {
		t.Fatal("the leader says that it does not lead")
	}
	if _, leading := follower.Leading(); leading {
		t.Error("a follower says that it leads")
	}
	before := leader.Machine().Revision()
	if _, err := follower.ProposeLeading(ctx, term, request()); !errors.Is(err, ErrNotLeading) {
		t.Errorf("through a follower: %v, want ErrNotLeading", err)
	}
	for _, other := range []uint64{term - 1, term + 1} {
		if _, err := leader.ProposeLeading(ctx, other, request()); !errors.Is(err, ErrNotLeading) {
			t.Errorf("for term %d in term %d: %v, want ErrNotLeading", other, term, err)
		}
	}
	if revision := leader.Machine().Revision(); revision != before {
		t.Errorf("revision %d became %d: something was written", before, revision)
	}
	if _, err := leader.ProposeLeading(ctx, term, request()); err != nil {
		t.Errorf("the leader in its own term: %v", err)
	}
}

// A lone voter has nobody to wait for: it leads long before its election
// timeout, after the founding and after every start.
func TestLoneVoterLeadsAtOnce(t *testing.T) {
	c := newCluster(t, 1, func(config *Config) { config.ElectionTimeout, config.HastenElection = time.Hour, true })
	for range 2 {
		c.start(0)
		c.awaitReady(0)
		if err := c.tryPut(0, "k", "v", patience); err != nil {
			t.Fatal(err)
		}
		c.stop(0)
	}
}

// A new cluster has no leader whose sign of life it could wait for: it elects
// as soon as its founding members are there, long before the election timeout.
func TestNewClusterElectsAtOnce(t *testing.T) {
	c := newCluster(t, 3, func(config *Config) { config.ElectionTimeout, config.HastenElection = time.Hour, true })
	for i := range c.members {
		c.start(i)
	}
	for i := range c.members {
		c.awaitReady(i)
	}
	if err := c.tryPut(0, "k", "v", patience); err != nil {
		t.Fatal(err)
	}
}

package clienttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"golang.org/x/sync/errgroup"
)

func session(t *testing.T, client *clientv3.Client) *concurrency.Session {
	t.Helper()
	s, err := concurrency.NewSession(client)
	check(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// waits tells that a call does not return before something has been done.
func waits(t *testing.T, call func() error, until func()) {
	t.Helper()
	returned := make(chan error, 1)
	go func() { returned <- call() }()
	select {
	case err := <-returned:
		t.Fatalf("has not waited: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	until()
	check(t, next(t, returned))
}

func testMutex(t *testing.T, c *cluster) {
	ctx := bounded(t)
	first, second := session(t, c.client(t, 0)), session(t, c.client(t, 1))
	a, b := concurrency.NewMutex(first, "/mutex"), concurrency.NewMutex(second, "/mutex")
	check(t, a.Lock(ctx))
	if err := b.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("locked twice: %v", err)
	}
	waits(t, func() error { return b.Lock(ctx) }, func() { check(t, a.Unlock(ctx)) })
	// The lease of a session that ends takes the lock with it.
	waits(t, func() error { return a.Lock(ctx) }, func() { check(t, second.Close()) })
}

func testRWMutex(t *testing.T, c *cluster) {
	reader := recipe.NewRWMutex(session(t, c.client(t, 0)), "rw")
	another := recipe.NewRWMutex(session(t, c.client(t, 1)), "rw")
	writer := recipe.NewRWMutex(session(t, c.client(t, 2)), "rw")
	check(t, reader.RLock())
	check(t, another.RLock())
	waits(t, writer.Lock, func() {
		check(t, reader.RUnlock())
		check(t, another.RUnlock())
	})
	waits(t, reader.RLock, func() { check(t, writer.Unlock()) })
}

func testElection(t *testing.T, c *cluster) {
	ctx := bounded(t)
	a := concurrency.NewElection(session(t, c.client(t, 0)), "/seat")
	b := concurrency.NewElection(session(t, c.client(t, 1)), "/seat")
	if _, err := a.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Errorf("there is a leader already: %v", err)
	}
	seen := concurrency.NewElection(session(t, c.client(t, 2)), "/seat").Observe(ctx)
	wantSeen := func(want string) {
		t.Helper()
		if got := string(next(t, seen).Kvs[0].Value); got != want {
			t.Errorf("observed %q, want %q", got, want)
		}
	}
	check(t, a.Campaign(ctx, "a"))
	wantSeen("a")
	check(t, a.Proclaim(ctx, "a, again"))
	wantSeen("a, again")
	waits(t, func() error { return b.Campaign(ctx, "b") }, func() { check(t, a.Resign(ctx)) })
	wantSeen("b")
	leader, err := a.Leader(ctx)
	check(t, err)
	if got := string(leader.Kvs[0].Key); got != b.Key() {
		t.Errorf("%s leads, want %s", got, b.Key())
	}
}

// Transactions in software count right, at every level of isolation.
func testSTM(t *testing.T, c *cluster) {
	const each = 10
	levels := []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads}
	var working errgroup.Group
	for i := range c.endpoints {
		client := c.client(t, i)
		for _, level := range levels {
			working.Go(func() error {
				for range each {
					_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
						a, _ := strconv.Atoi(stm.Get("stm/a"))
						b, _ := strconv.Atoi(stm.Get("stm/b"))
						stm.Put("stm/a", strconv.Itoa(a+1))
						stm.Put("stm/b", strconv.Itoa(b-1))
						return nil
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(bounded(t)), concurrency.WithPrefetch("stm/a"))
					if err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	check(t, working.Wait())
	total := each * len(levels) * len(c.endpoints)
	wantValue(t, c.client(t), "stm/a", strconv.Itoa(total))
	wantValue(t, c.client(t), "stm/b", strconv.Itoa(-total))
}

func testRecipes(t *testing.T, c *cluster) {
	client, other := c.client(t, 0), c.client(t, 1)
	queue := recipe.NewQueue(client, "queue")
	check(t, queue.Enqueue("first"))
	check(t, queue.Enqueue("second"))
	byPriority := recipe.NewPriorityQueue(client, "priorities")
	check(t, byPriority.Enqueue("second", 5))
	check(t, byPriority.Enqueue("first", 1))
	for _, dequeue := range []func() (string, error){recipe.NewQueue(other, "queue").Dequeue, recipe.NewPriorityQueue(other, "priorities").Dequeue} {
		var got []string
		for range 2 {
			one, err := dequeue()
			check(t, err)
			got = append(got, one)
		}
		if !slices.Equal(got, []string{"first", "second"}) {
			t.Errorf("dequeued %q", got)
		}
	}
	barrier := recipe.NewBarrier(client, "barrier")
	check(t, barrier.Hold())
	waits(t, recipe.NewBarrier(other, "barrier").Wait, func() { check(t, barrier.Release()) })
	meeting := recipe.NewDoubleBarrier(session(t, client), "meeting", 2)
	waits(t, recipe.NewDoubleBarrier(session(t, other), "meeting", 2).Enter, func() { check(t, meeting.Enter()) })
}

// The services of locks and elections, called on different members.
func testServices(t *testing.T, c *cluster) {
	ctx, client := bounded(t), c.client(t, 0)
	lease := func() int64 {
		granted, err := client.Grant(ctx, 600)
		check(t, err)
		return int64(granted.ID)
	}
	locks := func(i int) v3lockpb.LockClient { return v3lockpb.NewLockClient(c.client(t, i).ActiveConnection()) }
	first, err := locks(0).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("service"), Lease: lease()})
	check(t, err)
	waits(t, func() error {
		second, err := locks(1).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("service")})
		if err == nil && second.GetHeader().GetRevision() <= first.GetHeader().GetRevision() {
			err = fmt.Errorf("locked at revision %d, and before at %d", second.GetHeader().GetRevision(), first.GetHeader().GetRevision())
		}
		return err
	}, func() {
		_, err := locks(2).Unlock(ctx, &v3lockpb.UnlockRequest{Key: first.GetKey()})
		check(t, err)
	})

	elections := func(i int) v3electionpb.ElectionClient {
		return v3electionpb.NewElectionClient(c.client(t, i).ActiveConnection())
	}
	observing, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := elections(2).Observe(observing, &v3electionpb.LeaderRequest{Name: []byte("office")})
	check(t, err)
	wantSeen := func(want string) {
		t.Helper()
		response, err := stream.Recv()
		check(t, err)
		if got := string(response.GetKv().GetValue()); got != want {
			t.Errorf("observed %q, want %q", got, want)
		}
	}
	a, err := elections(0).Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("office"), Lease: lease(), Value: []byte("a")})
	check(t, err)
	wantSeen("a")
	_, err = elections(1).Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: a.GetLeader(), Value: []byte("a, again")})
	check(t, err)
	wantSeen("a, again")
	waits(t, func() error {
		_, err := elections(1).Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("office"), Lease: lease(), Value: []byte("b")})
		return err
	}, func() {
		_, err := elections(2).Resign(ctx, &v3electionpb.ResignRequest{Leader: a.GetLeader()})
		check(t, err)
	})
	wantSeen("b")
}

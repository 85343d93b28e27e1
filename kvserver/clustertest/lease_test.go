package clustertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A TTL is a minimum: whatever happens to leaders, a key lives at least as long
// as its lease was last promised, and it goes some time after the last renewal.
func TestLeasesOutliveLeaders(t *testing.T) {
	c := startCluster(t, 300*time.Millisecond)
	const id, ttl = 77, 4
	key := []byte("leased")
	c.anyone(func(ctx context.Context, m *member) error {
		_, err := pb.NewLeaseClient(c.dialOnce(m)).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
		return err
	})
	c.anyone(func(ctx context.Context, m *member) error {
		_, err := pb.NewKVClient(c.dialOnce(m)).Put(ctx, &pb.PutRequest{Key: key, Lease: id})
		return err
	})
	renewed := time.Now() // no later than the promise began
	renew := func(besides *member) {
		c.anyone(func(ctx context.Context, m *member) error {
			if m == besides {
				return fmt.Errorf("%s is down", m.name)
			}
			before := time.Now()
			stream, err := pb.NewLeaseClient(c.dialOnce(m)).LeaseKeepAlive(ctx)
			if err != nil {
				return err
			}
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
				return err
			}
			response, err := stream.Recv()
			if err != nil {
				return err
			}
			if response.GetTTL() != ttl {
				t.Fatalf("a renewal %v after the last one is answered with TTL %d", before.Sub(renewed), response.GetTTL())
			}
			renewed = before
			return nil
		})
	}
	present := func() bool {
		var found bool
		c.anyone(func(ctx context.Context, m *member) error {
			response, err := pb.NewKVClient(c.dialOnce(m)).Range(ctx, &pb.RangeRequest{Key: key})
			found = response.GetCount() > 0
			return err
		})
		return found
	}
	for range *rounds {
		leader := c.leader(nil)
		renew(nil)
		c.kill(leader)
		renew(leader)
		c.start(leader)
		c.awaitRead(leader)
		if !present() {
			t.Fatalf("the key is gone %v after a renewal for %d s", time.Since(renewed), ttl)
		}
	}
	c.kill(c.leader(nil)) // the next leader gives the whole time again
	for present() {
		if time.Since(renewed) > 30*time.Second {
			t.Fatalf("the key is still there %v after the last renewal for %d s", time.Since(renewed), ttl)
		}
		<-time.After(50 * time.Millisecond)
	}
	if lived := time.Since(renewed); lived < ttl*time.Second {
		t.Errorf("the key lived %v after a renewal for %d s", lived, ttl)
	}
}

// anyone tries one member after the other until one succeeds.
func (c *cluster) anyone(try func(context.Context, *member) error) {
	c.t.Helper()
	next := 0
	eventually(c.t, "some member answers", func() error {
		m := c.members[next%len(c.members)]
		next++
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return try(ctx, m)
	})
}

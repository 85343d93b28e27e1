package provision

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muster/provision/inventory"
	"muster/provision/remote"
)

// As many clusters are worked on as there is room for their hosts, one that is
// larger than that alone, and one that fails stops nobody.
func TestFleetHasRoomForSoManyHosts(t *testing.T) {
	f, err := NewFleet(Options{Concurrency: 7, SSH: remote.Options{SSHDir: t.TempDir(), ConfigFiles: []string{}, AgentSocket: "none"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // nothing was opened
	var clusters []*inventory.Cluster
	for i, hosts := range []int{3, 3, 3, 20, 1, 1, 5, 7} {
		clusters = append(clusters, &inventory.Cluster{Name: fmt.Sprint(i), Hosts: make([]inventory.Host, hosts)})
	}
	synctest.Test(t, func(t *testing.T) {
		var now, most, ended atomic.Int64
		broken := errors.New("broken")
		failed := f.Each(t.Context(), clusters, func(_ context.Context, c *inventory.Cluster) error {
			n := now.Add(int64(len(c.Hosts)))
			if n > 7 && n != 20 {
				t.Errorf("%d hosts at once", n)
			}
			most.Store(max(most.Load(), n))
			time.Sleep(time.Second) //nolint:forbidigo // on the clock of the bubble
			now.Add(-int64(len(c.Hosts)))
			ended.Add(1)
			if c.Name == "1" {
				return broken
			}
			return nil
		})
		if ended.Load() != int64(len(clusters)) || most.Load() != 20 {
			t.Errorf("%d clusters ended, %d hosts at most", ended.Load(), most.Load())
		}
		for i, err := range failed {
			if (i == 1) != errors.Is(err, broken) || i != 1 && err != nil {
				t.Errorf("cluster %d: %v", i, err)
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i, err := range f.Each(ctx, clusters, func(context.Context, *inventory.Cluster) error { return nil }) {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cluster %d of a fleet that was interrupted: %v", i, err)
		}
	}
}

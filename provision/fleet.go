package provision

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/remote"
)

// Fleet is what operations on several clusters share: the keys that log in and
// the connections to bastions, the programs to install, which are read or made once,
// and directories of certificates.
type Fleet struct {
	dialer   *remote.Dialer
	programs *programs
	hosts    int64 // how many are worked on at once
	room     *semaphore.Weighted

	mu     sync.Mutex
	stores map[string]*pki.Store // by directory
}

// NewFleet prepares operations on several clusters with the options that they
// have in common. It works on Concurrency hosts at once, of whichever cluster.
func NewFleet(o Options) (*Fleet, error) {
	o = o.withDefaults()
	dialer, err := remote.NewDialer(o.SSH)
	if err != nil {
		return nil, err
	}
	hosts := int64(o.Concurrency)
	return &Fleet{dialer: dialer, programs: newPrograms(o), hosts: hosts, room: semaphore.NewWeighted(hosts), stores: map[string]*pki.Store{}}, nil
}

// store is the one for a directory, which clusters with one CA share.
func (f *Fleet) store(dir string, keys pki.Keys) *pki.Store {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stores[dir] == nil {
		f.stores[dir] = pki.Open(dir, keys)
	}
	return f.stores[dir]
}

// Close closes the connections to bastions, when no operation is left.
func (f *Fleet) Close() error { return f.dialer.Close() }

// Each calls do for every cluster and returns the errors in the order of the
// clusters. They begin in that order, each as soon as there is room for its
// hosts; one that fails does not keep the others from their end. When the
// context ends no further one begins.
func (f *Fleet) Each(ctx context.Context, clusters []*inventory.Cluster, do func(context.Context, *inventory.Cluster) error) []error {
	failed := make([]error, len(clusters))
	var wg sync.WaitGroup
	for i, c := range clusters {
		room := min(int64(len(c.Hosts)), f.hosts)
		if err := f.room.Acquire(ctx, room); err != nil {
			failed[i] = context.Cause(ctx)
			continue
		}
		wg.Go(func() {
			defer f.room.Release(room)
			failed[i] = do(ctx, c)
		})
	}
	wg.Wait()
	return failed
}

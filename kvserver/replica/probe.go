package replica

import (
	"context"
	"sync"
	"time"

	"muster/kvserver/machine"
	"muster/kvserver/metrics"
	"muster/kvserver/replica/peerpb"
)

// probeInterval is about etcd's.
const probeInterval = 3 * time.Second

// prober asks every other member for a sign of life now and then, so that how
// far apart they are is known while nobody reads.
type prober struct {
	self    uint64
	members func() []machine.Member
	peers   *peers
	metrics *metrics.Peers
}

// run probes until ctx ends.
func (p *prober) run(ctx context.Context) {
	answered := map[uint64]bool{}
	for {
		present := map[uint64]bool{}
		var mu sync.Mutex
		var probes sync.WaitGroup
		for _, member := range p.members() {
			if member.ID == p.self {
				continue
			}
			probes.Go(func() {
				took, err := p.probe(ctx, member)
				if ctx.Err() != nil {
					return
				}
				p.metrics.Probed(p.self, member.ID, took, err, answered[member.ID])
				mu.Lock()
				present[member.ID] = err == nil
				mu.Unlock()
			})
		}
		probes.Wait()
		for member := range answered {
			if _, still := present[member]; !still && ctx.Err() == nil {
				p.metrics.Forget(p.self, member)
			}
		}
		answered = present
		if !tick(ctx, probeInterval) {
			return
		}
	}
}

func (p *prober) probe(ctx context.Context, member machine.Member) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeInterval)
	defer cancel()
	client, err := p.peers.ready(ctx, member.ID, member.PeerURLs)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = client.Term(ctx, &peerpb.TermRequest{})
	return time.Since(began), err
}

package machine

import "context"

// Space tells what the store takes, and gives back what it no longer needs.
type Space struct{ m *Machine }

// Space of the machine's store.
func (m *Machine) Space() Space { return Space{m: m} }

// Size is the space the store takes on disk, in bytes, and never below InUse:
// what compression saves and what was not flushed yet is counted as if it were
// there.
func (s Space) Size() int64 {
	g, err := s.m.stores.acquire()
	if err != nil {
		return 0
	}
	defer g.release()
	return max(int64(g.store.DB().Metrics().DiskSpaceUsage()), g.store.InUse())
}

// InUse is how many bytes the keys, with the history that is kept, and the
// leases have: what a quota bounds. Compaction lowers it as the history is
// removed. Members that have applied the same differ only in how far they have
// come with that. It costs nothing to ask.
func (s Space) InUse() int64 {
	g, err := s.m.stores.acquire()
	if err != nil {
		return 0
	}
	defer g.release()
	return g.store.InUse()
}

// ScrubStep removes some of what compaction made unreadable; see
// mvcc.Store.ScrubStep. Call it until done after every compaction and after
// Open, at a pace that leaves room for requests.
func (s Space) ScrubStep(ctx context.Context, limit int) (done bool, err error) {
	s.m.scrubbing.Lock()
	defer s.m.scrubbing.Unlock()
	g, err := s.m.stores.acquire()
	if err != nil {
		return false, err
	}
	defer g.release()
	return g.store.ScrubStep(ctx, limit)
}

package machine

// Space tells what the store takes, and gives back what it no longer needs.
type Space struct{ m *Machine }

// Space of the machine's store.
func (m *Machine) Space() Space { return Space{m: m} }

// Size is the space the store takes on disk, in bytes. What was applied since
// the last flush is not in it.
func (s Space) Size() int64 {
	g, err := s.m.stores.acquire()
	if err != nil {
		return 0
	}
	defer g.release()
	return int64(g.store.DB().Metrics().DiskSpaceUsage())
}

// InUse is the size of the store's live tables, in bytes: Size without the
// files that wait to be removed.
func (s Space) InUse() int64 {
	g, err := s.m.stores.acquire()
	if err != nil {
		return 0
	}
	defer g.release()
	return int64(g.store.DB().Metrics().Table.Local.LiveSize)
}

// ScrubStep removes some of what compaction made unreadable; see
// mvcc.Store.ScrubStep. Call it until done after every compaction and after
// Open, at a pace that leaves room for requests.
func (s Space) ScrubStep(limit int) (done bool, err error) {
	s.m.scrubbing.Lock()
	defer s.m.scrubbing.Unlock()
	g, err := s.m.stores.acquire()
	if err != nil {
		return false, err
	}
	defer g.release()
	return g.store.ScrubStep(limit)
}

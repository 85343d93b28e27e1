package watch

// Stats are the numbers of a registry at one moment.
type Stats struct {
	Streams, Watchers int64
	// Slow watchers catch up from the history.
	Slow int64
	// Pending events wait for being handed to the watchers, and Delivered ones
	// were taken by streams.
	Pending, Delivered int64
}

// Stats returns the present numbers.
func (r *Registry) Stats() Stats {
	r.mu.Lock()
	watchers := int64(r.watchers)
	slow := watchers - int64(len(r.synced.all))
	r.mu.Unlock()
	return Stats{
		Streams: r.streams.Load(), Watchers: watchers, Slow: slow,
		Pending: r.feed.events(), Delivered: r.delivered.Load(),
	}
}

func (f *feed) events() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, revision := range f.waiting {
		n += int64(len(revision.events))
	}
	return n
}

package watch

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

const (
	// scanRevisions is how far one scan of the history goes: the synced
	// watchers of the stream wait for it.
	scanRevisions = 10_000
	// batchRevisions is how many revisions one response has at most, etcd's
	// number.
	batchRevisions = 1000
)

// cohort are watchers of one stream that catch up by the same scan of the
// history. It belongs to the goroutine that calls Next.
type cohort []*watcher

// chooseCohort takes the first and those that are little ahead of it.
func chooseCohort(lagging []*watcher) (chosen cohort, rest []*watcher) {
	for _, w := range lagging {
		if first := lagging[0].next; w.next >= first && w.next < first+scanRevisions {
			chosen = append(chosen, w)
		} else {
			rest = append(rest, w)
		}
	}
	return chosen, rest
}

// catchUp reads a part of the history. Afterwards each watcher is synced, or
// the last in its stream to catch up, or ended.
func (c cohort) catchUp(ctx context.Context, s *Stream) ([]Response, error) {
	r := s.registry
	select {
	case r.scans <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.stopped:
		return nil, ErrClosed
	}
	position, err := c.scan(ctx, r)
	<-r.scans
	if errors.Is(err, mvcc.ErrCompacted) {
		return c.endCompacted(s), nil
	}
	if errors.Is(err, machine.ErrClosed) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("read the history for a watcher: %w", err)
	}
	return c.settle(s, position), nil
}

// position is how far a scan came, and the current revision then.
type position struct{ last, current int64 }

// scan matches the watchers with what they have missed.
func (c cohort) scan(ctx context.Context, r *Registry) (position, error) {
	g := newGroup()
	query := mvcc.EventQuery{From: c[0].next, Match: g.covers}
	for _, w := range c {
		g.add(w)
		query.PrevKV = query.PrevKV || w.PrevKV
	}
	query.To = query.From + scanRevisions - 1
	current := r.machine.Revision()
	revisions, size := 0, 0
	last, err := r.machine.History().Events(ctx, query, func(rev int64, events []*mvccpb.Event) (bool, error) {
		g.match(rev, events)
		revisions++
		size += eventsSize(events)
		return revisions < batchRevisions && size < r.streamBytes, nil
	})
	return position{last: last, current: max(current, last)}, err
}

func (c cohort) settle(s *Stream, got position) (responses []Response) {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range c {
		if w.gone {
			continue
		}
		w.next = max(w.next, got.last+1)
		if len(w.matched) > 0 {
			w.active = true
			responses = append(responses, w.response(got.current))
		}
		if w.next > s.registry.dispatched {
			s.registry.synced.add(w)
		} else {
			s.lagging = append(s.lagging, w)
		}
	}
	return responses
}

// endCompacted ends the watchers whose next revision is gone. The others have
// another try.
func (c cohort) endCompacted(s *Stream) (responses []Response) {
	compacted := s.registry.machine.CompactedRevision()
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range c {
		switch {
		case w.gone:
		case w.next < compacted:
			s.registry.leave(w)
			responses = append(responses, Response{WatchID: w.ID, Canceled: true, CompactRevision: compacted})
		default:
			s.lagging = append(s.lagging, w)
		}
	}
	return responses
}

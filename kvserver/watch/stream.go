package watch

import (
	"context"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Why a watcher is refused; the texts are etcd's (storage/mvcc/watcher.go).
const (
	reasonEmptyRange  = "mvcc: watcher range is empty"
	reasonDuplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
)

// noID is the ID of no watcher, or of all.
const noID = -1

// Stream is several watchers that are served together, in one order. Next is
// for one goroutine at a time; everything else may be called from any. Errors
// mean that the stream has come to its end.
type Stream struct {
	registry *Registry
	wake     chan struct{}

	mu       sync.Mutex // taken after the registry's
	closed   bool
	watchers map[int64]*watcher // with those that ended by compaction, until they are canceled
	freeID   int64
	lagging  []*watcher // catch up, in this order; with some that are gone
	queue    queue
}

// NewStream returns a stream without watchers. It must be closed.
func (r *Registry) NewStream() *Stream {
	r.streams.Add(1)
	return &Stream{
		registry: r,
		wake:     make(chan struct{}, 1),
		watchers: map[int64]*watcher{},
		queue:    queue{limit: r.streamBytes},
	}
}

// say adds an answer to the queue. The caller holds mu.
func (s *Stream) say(r Response) {
	s.queue.push(r)
	signal(s.wake)
}

// offer gives a synced watcher what it was matched with, unless there is no
// room.
func (s *Stream) offer(w *watcher, revision revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.queue.offer(w.response(revision.rev), revision) {
		return false
	}
	w.active = true
	signal(s.wake)
	return true
}

func (s *Stream) lag(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lagging = append(s.lagging, w)
	signal(s.wake)
}

// awaitRoom lets a client wait that asks and does not read the answers.
func (s *Stream) awaitRoom(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		if s.queue.hasRoom() {
			s.mu.Unlock()
			return nil
		}
		taken := s.queue.nextTake()
		s.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.registry.stopped:
			return ErrClosed
		}
	}
}

// Create adds a watcher. The answer, a refusal too, comes through Next.
func (s *Stream) Create(ctx context.Context, request Request) error {
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	_, taken := s.watchers[request.ID]
	if reason := objection(&request, taken); reason != "" {
		s.refuse(reason)
		return nil
	}
	current, err := s.registry.enter()
	if err != nil {
		return err
	}
	w := newWatcher(s, s.id(request.ID), request)
	s.watchers[w.ID] = w
	s.say(Response{WatchID: w.ID, Revision: current, Created: true})
	w.next = w.Start
	switch {
	case w.Start == 0:
		w.next = current + 1
		s.registry.synced.add(w)
	case w.Start > current:
		s.registry.synced.add(w)
	default:
		s.lagging = append(s.lagging, w)
	}
	return nil
}

// Refuse answers a request for a watcher that the client may not have.
func (s *Stream) Refuse(ctx context.Context, reason string) error {
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse(reason)
	return nil
}

func (s *Stream) refuse(reason string) {
	s.say(Response{WatchID: noID, Revision: s.registry.machine.Revision(), Created: true, Canceled: true, Reason: reason})
}

// objection is why a watcher cannot be created, or empty.
func objection(r *Request, taken bool) string {
	switch {
	case r.Start < 0:
		return rpctypes.ErrCompacted.Error()
	case r.isEmpty():
		return reasonEmptyRange
	case r.ID != 0 && taken:
		return reasonDuplicateID
	}
	return ""
}

// id is the requested one or a free one.
func (s *Stream) id(requested int64) int64 {
	if requested != 0 {
		return requested
	}
	for s.watchers[s.freeID] != nil {
		s.freeID++
	}
	s.freeID++
	return s.freeID - 1
}

// Cancel ends a watcher. Nothing about it comes after the answer; there is
// none when there is no such watcher.
func (s *Stream) Cancel(ctx context.Context, id int64) error {
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.watchers[id]
	if !ok {
		return nil
	}
	delete(s.watchers, id)
	if !w.gone {
		s.registry.leave(w)
	}
	s.say(Response{WatchID: id, Revision: s.registry.machine.Revision(), Canceled: true})
	return nil
}

// RequestProgress tells the client how far all its watchers are: one response
// for all, with WatchID -1. There is none unless all are synced and have begun.
// As in etcd a watcher that ended by compaction is not synced until it is
// canceled.
func (s *Stream) RequestProgress(ctx context.Context) error {
	return s.progress(ctx, func(rev int64) {
		for _, w := range s.watchers {
			if !s.isCurrent(w, rev) {
				return
			}
		}
		if len(s.watchers) > 0 {
			s.say(Response{WatchID: noID, Revision: rev})
		}
	})
}

// NotifyProgress tells the client how far those watchers are that asked for
// it, are synced, and had no events since the last time. Call it at intervals.
func (s *Stream) NotifyProgress(ctx context.Context) error {
	return s.progress(ctx, func(rev int64) {
		for id, w := range s.watchers {
			if w.Progress && !w.active && s.isCurrent(w, rev) {
				s.say(Response{WatchID: id, Revision: rev})
			}
			w.active = false
		}
	})
}

func (s *Stream) isCurrent(w *watcher, rev int64) bool {
	return s.registry.synced.has(w) && w.Start <= rev
}

// progress runs fn, with both mutexes held, when everything visible by now was
// dispatched. Like etcd it says nothing to a client that does not read: the
// next progress will do.
func (s *Stream) progress(ctx context.Context, fn func(rev int64)) error {
	if err := s.registry.awaitDispatched(ctx); err != nil {
		return err
	}
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.queue.hasRoom() {
		fn(s.registry.dispatched)
	}
	return nil
}

// Next waits for responses and returns all there are, in the order in which
// the client must see them. Errors are ErrClosed, the context's, and failures
// to read the history.
func (s *Stream) Next(ctx context.Context) ([]Response, error) {
	for {
		if s.registry.isClosed() {
			return nil, ErrClosed
		}
		responses, cohort, err := s.take()
		if err != nil {
			return nil, err
		}
		if len(cohort) > 0 {
			caught, err := cohort.catchUp(ctx, s)
			if err != nil {
				return nil, err
			}
			responses = append(responses, caught...)
		}
		if len(responses) > 0 {
			for i := range responses {
				s.registry.delivered.Add(int64(len(responses[i].Events)))
			}
			return responses, nil
		}
		if len(cohort) > 0 {
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.registry.stopped:
			return nil, ErrClosed
		}
	}
}

// take empties the queue and chooses the watchers to catch up: the one whose
// turn it is, and those that the same scan can serve.
func (s *Stream) take() ([]Response, cohort, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	s.lagging = slices.DeleteFunc(s.lagging, func(w *watcher) bool { return w.gone })
	var chosen cohort
	chosen, s.lagging = chooseCohort(s.lagging)
	return s.queue.take(), chosen, nil
}

// Close ends the watchers and Next.
func (s *Stream) Close() {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watchers {
		if !w.gone {
			s.registry.leave(w)
		}
	}
	if !s.closed {
		s.registry.streams.Add(-1)
	}
	s.closed = true
	s.watchers, s.lagging = nil, nil
	s.queue.take()
	signal(s.wake)
}

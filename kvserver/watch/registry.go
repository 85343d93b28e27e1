package watch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"muster/kvserver/machine"
)

// ErrClosed is returned when the registry, the stream or the state machine is
// closed.
var ErrClosed = errors.New("watch: the member is stopping")

// Options of a registry; zero values are replaced by the defaults named.
type Options struct {
	// StreamBytes bounds what waits for one stream, and what is read from the
	// history at once; 1 MiB. A single revision may be larger.
	StreamBytes int
	// FeedBytes bounds what waits for being dispatched; 16 MiB. When it is
	// exceeded, everybody catches up from the history.
	FeedBytes int
	// Scans is how many streams may read the history at the same time; twice
	// the number of processors.
	Scans int
}

// Registry knows all watchers of one state machine.
type Registry struct {
	machine     *machine.Machine
	streamBytes int
	feed        *feed
	scans       chan struct{} // holds a token for every scan under way
	streams     atomic.Int64  // open ones
	delivered   atomic.Int64  // events
	stopped     chan struct{}
	dispatcher  sync.WaitGroup
	closing     sync.Once

	// mu is taken before a stream's, and before the machine's: the machine
	// calls only the feed.
	mu         sync.Mutex
	synced     *group
	watchers   int           // alive, synced or not; the machine is observed while there are any
	dispatched int64         // every synced watcher was given what happened up to here
	moved      chan struct{} // closed and replaced when dispatched grows; nil while nobody waits
}

// Start begins to serve watchers of m. Close it before m.
func Start(m *machine.Machine, opts Options) *Registry {
	if opts.StreamBytes == 0 {
		opts.StreamBytes = 1 << 20
	}
	if opts.FeedBytes == 0 {
		opts.FeedBytes = 16 << 20
	}
	if opts.Scans == 0 {
		opts.Scans = 2 * runtime.GOMAXPROCS(0)
	}
	r := &Registry{
		machine:     m,
		streamBytes: opts.StreamBytes,
		feed:        newFeed(opts.FeedBytes),
		scans:       make(chan struct{}, opts.Scans),
		stopped:     make(chan struct{}),
		synced:      newGroup(),
	}
	r.dispatcher.Go(r.run)
	return r
}

// Close ends every stream with ErrClosed.
func (r *Registry) Close() {
	r.closing.Do(func() {
		close(r.stopped)
		r.dispatcher.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		_ = r.observe(nil) // a machine that is closed tells nobody anyway
	})
}

func (r *Registry) isClosed() bool {
	select {
	case <-r.stopped:
		return true
	default:
		return false
	}
}

func (r *Registry) run() {
	for {
		select {
		case <-r.feed.wake:
		case <-r.stopped:
			return
		}
		for _, revision := range r.feed.take() {
			r.dispatch(revision)
		}
	}
}

// dispatch hands one revision to the synced watchers.
func (r *Registry) dispatch(revision revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if revision.rev <= r.dispatched {
		return // left over from before the machine was observed again
	}
	if revision.events == nil {
		r.resync(revision.rev)
	}
	for _, w := range r.synced.match(revision.rev, revision.events) {
		if !w.stream.offer(w, revision) {
			r.fallBehind(w, revision.rev)
		}
	}
	r.reach(revision.rev)
}

// resync makes everybody catch up who has not seen rev.
func (r *Registry) resync(rev int64) {
	for w := range r.synced.all {
		if next := max(w.next, r.dispatched+1); next <= rev {
			r.fallBehind(w, next)
		}
	}
}

func (r *Registry) fallBehind(w *watcher, next int64) {
	r.synced.remove(w)
	w.next = next
	w.stream.lag(w)
}

func (r *Registry) reach(rev int64) {
	r.dispatched = rev
	if r.moved != nil {
		close(r.moved)
		r.moved = nil
	}
}

// awaitDispatched returns once everything up to the machine's present revision
// was dispatched.
func (r *Registry) awaitDispatched(ctx context.Context) error {
	rev := r.machine.Revision()
	for {
		r.mu.Lock()
		if r.watchers == 0 || r.dispatched >= rev {
			r.mu.Unlock()
			return nil
		}
		if r.moved == nil {
			r.moved = make(chan struct{})
		}
		moved := r.moved
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.stopped:
			return ErrClosed
		}
	}
}

// enter counts a new watcher and returns the present revision: what comes
// after it will be dispatched. The caller holds mu.
func (r *Registry) enter() (rev int64, err error) {
	if r.isClosed() {
		return 0, ErrClosed
	}
	if r.watchers == 0 {
		if err := r.observe(r.feed.add); err != nil {
			return 0, err
		}
	}
	r.watchers++
	return max(r.dispatched, r.machine.Revision()), nil
}

// leave forgets a watcher that is not gone yet. The caller holds mu and the
// stream's mutex.
func (r *Registry) leave(w *watcher) {
	w.gone = true
	r.synced.remove(w)
	r.watchers--
	if r.watchers == 0 && !r.isClosed() {
		_ = r.observe(nil) // as in Close
	}
}

// observe begins or ends to follow the machine. Writers pay for being
// observed, so it lasts only while there are watchers.
func (r *Registry) observe(observer machine.Observer) error {
	rev, err := r.machine.History().Observe(observer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	r.reach(max(rev, r.dispatched))
	return nil
}

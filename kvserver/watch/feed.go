package watch

import (
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// revision is what happened at one revision. Without events it stands for
// everything up to there that was not fed: who was to have it must read the
// history.
type revision struct {
	rev    int64
	events []*mvccpb.Event // with the previous versions
	size   int             // approximate bytes in memory
}

// feed takes revisions from the state machine, which must not wait, to the
// dispatcher.
type feed struct {
	limit int // of size
	wake  chan struct{}

	mu      sync.Mutex
	waiting []revision
	size    int
}

func newFeed(limit int) *feed { return &feed{limit: limit, wake: make(chan struct{}, 1)} }

// add is a machine.Observer. What does not fit any more is forgotten: the
// history has it, too.
func (f *feed) add(rev int64, events []*mvccpb.Event) {
	r := revision{rev: rev, events: events, size: eventsSize(events)}
	f.mu.Lock()
	if len(f.waiting) > 0 && f.size+r.size > f.limit {
		f.waiting, f.size = nil, 0
		r = revision{rev: rev}
	}
	f.waiting = append(f.waiting, r)
	f.size += r.size
	f.mu.Unlock()
	signal(f.wake)
}

func (f *feed) take() []revision {
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := f.waiting
	f.waiting, f.size = nil, 0
	return taken
}

// eventOverhead is what an event takes beside its keys and values, in bytes.
const eventOverhead = 200

func eventsSize(events []*mvccpb.Event) (size int) {
	for _, e := range events {
		size += eventOverhead + len(e.Kv.Key) + len(e.Kv.Value) + len(e.PrevKv.GetKey()) + len(e.PrevKv.GetValue())
	}
	return size
}

// withoutPrevious copies the event for those who did not ask for the previous
// version.
func withoutPrevious(e *mvccpb.Event) *mvccpb.Event {
	if e.PrevKv == nil {
		return e
	}
	return &mvccpb.Event{Type: e.Type, Kv: e.Kv}
}

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

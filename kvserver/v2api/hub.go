package v2api

import (
	"path"
	"strings"
	"sync"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"

	"muster/kvserver/machine"
	"muster/kvserver/v2tree"
)

// eventBuffer is how many events a watcher may be behind before it is ended;
// etcd's number.
const eventBuffer = 100

// hub tells watchers of changes.
type hub struct {
	data machine.V2

	done chan struct{} // closed when there will be no more events for anybody

	mu       sync.Mutex
	watchers map[string]map[*watcher]struct{} // by the path that is watched
	count    int
}

func newHub(data machine.V2) *hub {
	h := &hub{data: data, done: make(chan struct{}), watchers: map[string]map[*watcher]struct{}{}}
	data.Observe(h.tell)
	return h
}

// watcher is one client that waits.
type watcher struct {
	hub               *hub
	path              string
	recursive, stream bool
	since             uint64 // is told of nothing earlier
	index             uint64 // of the tree when the watch began
	// events are what happens; it is closed when there will be no more.
	events chan *v2store.Event
	ended  bool
}

// watch begins a watch of a path since an index, or since now if that is 0. One
// that does not stream is told of one event. The error is as that of
// machine.V2.Find.
func (h *hub) watch(at string, recursive, stream bool, since uint64) (*watcher, error) {
	from := since
	if since != 0 {
		// All of the history is read while nobody waits for it.
		found, index, err := h.data.Find(at, recursive, since)
		if err != nil {
			return nil, err
		}
		if found == nil {
			from = max(since, index+1)
		}
	}
	// What happens while the rest of it is read is told after it.
	h.mu.Lock()
	defer h.mu.Unlock()
	found, index, err := h.data.Find(at, recursive, from)
	if err != nil {
		return nil, err
	}
	w := &watcher{hub: h, path: at, recursive: recursive, stream: stream, since: max(since, index+1), index: index, events: make(chan *v2store.Event, eventBuffer)}
	switch {
	case found != nil:
		// As in etcd a watcher of the past is told of one event, stream or not.
		w.events <- found
		w.ended = true
	default:
		if h.watchers[at] == nil {
			h.watchers[at] = map[*watcher]struct{}{}
		}
		h.watchers[at][w] = struct{}{}
		h.count++
	}
	return w, nil
}

// end ends a watch, which may have ended.
func (w *watcher) end() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.hub.drop(w)
}

// drop lets go of a watcher. h.mu is held.
func (h *hub) drop(w *watcher) {
	if w.ended {
		return
	}
	w.ended = true
	h.count--
	delete(h.watchers[w.path], w)
	if len(h.watchers[w.path]) == 0 {
		delete(h.watchers, w.path)
	}
}

// tell is told of changes by the state machine. Without any, the state was
// replaced: nobody knows what happened in between, and watchers ask again.
func (h *hub) tell(changes []v2tree.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if changes == nil {
		h.endAll()
	}
	for _, change := range changes {
		for _, removed := range change.Removed {
			h.notify(change.Event, removed, true)
		}
		if change.Event.Refresh {
			continue
		}
		at := "/"
		for _, name := range strings.Split(change.Event.Node.Key, "/") {
			at = path.Join(at, name)
			h.notify(change.Event, at, false)
		}
	}
}

// notify tells those who watch a path. Who watches what is removed is told even
// if it watches neither the path that was named nor below a directory; a watcher
// that streams is told twice then, as in etcd.
func (h *hub) notify(event *v2store.Event, at string, removed bool) {
	same := event.Node.Key == at
	for w := range h.watchers[at] {
		if !same && v2tree.Hidden(at, event.Node.Key) || !w.recursive && !same && !removed || event.Index() < w.since {
			continue
		}
		select {
		case w.events <- event:
			if !w.stream {
				h.drop(w)
			}
		default:
			h.drop(w)
			close(w.events)
		}
	}
}

func (h *hub) endAll() {
	for _, group := range h.watchers {
		for w := range group {
			h.drop(w)
			close(w.events)
		}
	}
}

func (h *hub) watching() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

func (h *hub) close() {
	h.data.Observe(nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endAll()
	close(h.done)
}

package watch

import (
	"bytes"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// Request describes a watcher; the fields are those of etcd's
// WatchCreateRequest.
type Request struct {
	// ID must be free in the stream; 0 has the stream choose one.
	ID int64
	// Key and End are the range [Key, End). An empty Key is the smallest, an
	// empty End means Key alone, "\x00" no upper end.
	Key, End []byte
	// Start is the first revision wanted, 0 the next one to come.
	Start int64
	// PrevKV asks for what a key was before each event.
	PrevKV bool
	// NoPut and NoDelete leave events out.
	NoPut, NoDelete bool
	// Progress asks for NotifyProgress.
	Progress bool
	// Fragment allows a response to be sent in parts.
	Fragment bool
}

// Response is something to tell the client, about one watcher of its stream.
type Response struct {
	// WatchID is -1 for a watcher that was refused, and where a response
	// concerns the whole stream.
	WatchID int64
	// Revision is what the header has to say: that of the events when they are
	// new, or the current one. It is 0, as etcd has it, where CompactRevision
	// is set.
	Revision int64
	// Created precedes everything else about a watcher. Created and Canceled
	// together mean that it was refused.
	Created, Canceled bool
	// Reason is why a watcher was refused.
	Reason string
	// CompactRevision is set when the watcher ended because what it was to see
	// next is no longer in the history.
	CompactRevision int64
	// Events are complete revisions, in order. A response that has none of
	// all this tells that everything up to Revision was sent. The events are
	// shared: do not change them.
	Events []*mvccpb.Event
	// Fragment is the request's.
	Fragment bool
}

// watcher is one watch.
type watcher struct {
	Request
	stream   *Stream
	key, end []byte // as adt wants them: an empty end has no upper bound
	single   bool   // of key alone

	// next is the first revision the watcher has not seen; for a synced one
	// what the registry has dispatched counts as seen, too. It belongs to the
	// dispatcher while the watcher is synced, and to the reader of the stream
	// while it catches up.
	next    int64
	matched []*mvccpb.Event // belongs to the same; nil but during a match

	gone   bool // ended; guarded by both mutexes
	active bool // received events since NotifyProgress; guarded by the stream's mutex
}

func newWatcher(s *Stream, id int64, r Request) *watcher {
	r.ID = id
	w := &watcher{Request: r, stream: s, key: smallestIfEmpty(r.Key), end: r.End, single: len(r.End) == 0}
	if isUnbounded(r.End) {
		w.end = nil
	}
	return w
}

func smallestIfEmpty(key []byte) []byte {
	if len(key) == 0 {
		return []byte{0}
	}
	return key
}

func isUnbounded(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// isEmpty tells whether a range has no keys at all.
func (r *Request) isEmpty() bool {
	return len(r.End) > 0 && !isUnbounded(r.End) && bytes.Compare(smallestIfEmpty(r.Key), r.End) >= 0
}

func (w *watcher) interval() adt.Interval { return adt.NewBytesAffineInterval(w.key, w.end) }

func (w *watcher) drops(e *mvccpb.Event) bool {
	return e.Type == mvccpb.Event_PUT && w.NoPut || e.Type == mvccpb.Event_DELETE && w.NoDelete
}

// response takes what was matched.
func (w *watcher) response(rev int64) Response {
	events := w.matched
	w.matched = nil
	return Response{WatchID: w.ID, Revision: rev, Events: events, Fragment: w.Fragment}
}

package machine

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"muster/kvserver/mvcc"
)

// History gives what happened to the keys: to watchers, and for comparing
// members.
type History struct{ m *Machine }

// History of the machine's keys.
func (m *Machine) History() History { return History{m: m} }

// HashKV hashes the keys as of a revision; see mvcc.Store.HashKV. Errors are
// those of Range.
func (h History) HashKV(ctx context.Context, rev int64) (mvcc.KVHash, error) {
	g, err := h.m.stores.acquire()
	if err != nil {
		return mvcc.KVHash{}, err
	}
	defer g.release()
	return g.store.HashKV(ctx, rev)
}

// HashAt is HashKV without what is remembered of compactions; see
// mvcc.Store.HashAt.
func (h History) HashAt(ctx context.Context, rev int64) (mvcc.KVHash, error) {
	g, err := h.m.stores.acquire()
	if err != nil {
		return mvcc.KVHash{}, err
	}
	defer g.release()
	return g.store.HashAt(ctx, rev)
}

// CompactionHashes are the hashes of the last compactions; see
// mvcc.Store.CompactionHashes. Errors are ErrClosed, the context's and
// failures of the store.
func (h History) CompactionHashes(ctx context.Context) ([]mvcc.KVHash, error) {
	g, err := h.m.stores.acquire()
	if err != nil {
		return nil, err
	}
	defer g.release()
	return g.store.CompactionHashes(ctx)
}

// Events reads past events; see mvcc.Store.Events. The error can be ErrClosed,
// too. A checkpoint that is installed meanwhile has no influence on them.
func (h History) Events(ctx context.Context, q mvcc.EventQuery, fn func(rev int64, events []*mvccpb.Event) (bool, error)) (last int64, err error) {
	g, err := h.m.stores.acquire()
	if err != nil {
		return q.From - 1, err
	}
	defer g.release()
	return g.store.Events(ctx, q, fn)
}

// Observer is told of every revision as it becomes visible, in order, with its
// events. It must be quick, must not call anything that changes the machine,
// and must not change the events.
//
// When a checkpoint was installed it is called with the current revision and
// no events: what happened up to there has to be read from the history, if it
// is still there.
type Observer func(rev int64, events []*mvccpb.Event)

// Observe has fn told of everything after the revision that is returned, in
// place of any other observer. A nil fn ends it, and with nobody observing
// there is no cost. It waits for an Apply under way. The error is ErrClosed.
func (h History) Observe(fn Observer) (rev int64, err error) {
	m := h.m
	m.applying.Lock()
	defer m.applying.Unlock()
	g, err := m.stores.acquire()
	if err != nil {
		return 0, err
	}
	defer g.release()
	m.observer = fn
	return g.store.Head().Current, nil
}

// tell splits events into revisions.
func (o Observer) tell(events []*mvccpb.Event) {
	for len(events) > 0 {
		rev, n := events[0].Kv.ModRevision, 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		o(rev, events[:n:n])
		events = events[n:]
	}
}

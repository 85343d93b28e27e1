package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// EventQuery says which events of the history are wanted.
type EventQuery struct {
	// From and To are the first and the last revision, From at least 1. A To
	// of 0, or above the current revision, is the current one.
	From, To int64
	// Match selects by key; nil selects all. Other keys cost little.
	Match func(key []byte) bool
	// PrevKV asks for what the key was before the event.
	PrevKV bool
}

// Events reads the history, as a watcher does that starts in the past or fell
// behind. It calls fn once for every revision with wanted events, in order,
// with all of them in the order in which they were made, until fn returns
// false or an error. Memory is bounded by the largest revision.
//
// It returns the revision up to which fn has seen everything: the next query
// begins after it. The error is ErrCompacted when From is below the compacted
// revision; exactly there is legal.
//
// The events are as etcd sends them: a deletion has key and mod revision only,
// and the previous version is the one at the revision before, missing for a
// key that was created and where that revision was compacted.
func (s *Store) Events(ctx context.Context, q EventQuery, fn func(rev int64, events []*mvccpb.Event) (bool, error)) (last int64, err error) {
	view := s.Pin()
	defer func() { err = errors.Join(err, view.Close()) }()
	if q.From < view.head.Compacted {
		return q.From - 1, ErrCompacted
	}
	if q.To == 0 || q.To > view.head.Current {
		q.To = view.head.Current
	}
	if q.From > q.To {
		return q.From - 1, nil
	}
	last, err = view.events(ctx, q, fn)
	if err != nil {
		return last, fmt.Errorf("read the events from revision %d: %w", q.From, err)
	}
	return last, nil
}

func (v *PinnedView) events(ctx context.Context, q EventQuery, fn func(int64, []*mvccpb.Event) (bool, error)) (last int64, err error) {
	last = q.From - 1
	history, err := v.openHistory(ctx, q.From, q.To)
	if err != nil {
		return last, err
	}
	defer func() { err = closeIter(history.it, err) }()
	versions, err := v.openVersions(ctx)
	if err != nil {
		return last, err
	}
	defer func() { err = closeIter(versions.it, err) }()

	var events []*mvccpb.Event
	var rev int64 // of events
	for {
		record, ok, err := history.next()
		if err != nil {
			return last, err
		}
		if len(events) > 0 && (!ok || record.rev.Main != rev) {
			more, err := fn(rev, events)
			if err != nil {
				return last, err
			}
			last, events = rev, nil
			if !more {
				return last, nil
			}
		}
		if !ok {
			return q.To, nil
		}
		if q.Match != nil && !q.Match(record.key) {
			continue
		}
		event, err := v.event(versions, record, q.PrevKV)
		if err != nil {
			return last, err
		}
		events, rev = append(events, event), record.rev.Main
	}
}

func (v *PinnedView) event(versions *versionReader, record historyRecord, prevKV bool) (*mvccpb.Event, error) {
	var event *mvccpb.Event
	if record.kind == kindTombstone {
		event = deleteEvent(bytes.Clone(record.key), record.rev.Main)
	} else {
		raw, err := versions.at(record)
		if err != nil {
			return nil, err
		}
		r, err := decodeRecord(raw)
		if err != nil {
			return nil, err
		}
		event = &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: r.KeyValue()}
	}
	before := record.rev.Main - 1
	if !prevKV || IsCreate(event) || before < v.head.Compacted {
		return event, nil
	}
	_, raw, err := versions.newest(event.Kv.Key, before)
	if err != nil || len(raw) == 0 {
		return event, err
	}
	r, err := decodeRecord(raw)
	if err != nil {
		return nil, err
	}
	event.PrevKv = r.KeyValue()
	return event, nil
}

// IsCreate tells whether an event put a key that did not exist.
func IsCreate(e *mvccpb.Event) bool {
	return e.Type == mvccpb.Event_PUT && e.Kv.CreateRevision == e.Kv.ModRevision
}

func deleteEvent(key []byte, rev int64) *mvccpb.Event {
	return &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: key, ModRevision: rev}}
}

// recorder collects the events of what a Writer does.
type recorder struct{ events []*mvccpb.Event }

// put records a put over previous, which is empty when there is none.
func (r *recorder) put(record, previous Record) {
	e := &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: record.KeyValue()}
	if !IsCreate(e) {
		e.PrevKv = r.before(record.ModRevision, previous)
	}
	r.events = append(r.events, e)
}

// remove records the deletion of previous at revision rev.
func (r *recorder) remove(rev int64, previous Record) {
	e := deleteEvent(bytes.Clone(previous.Key), rev)
	e.PrevKv = r.before(rev, previous)
	r.events = append(r.events, e)
}

// before is the version of a key at the revision before rev. That is previous,
// unless the same transaction wrote it.
func (r *recorder) before(rev int64, previous Record) *mvccpb.KeyValue {
	if previous.ModRevision < rev {
		return previous.KeyValue()
	}
	var first *mvccpb.KeyValue
	for i := len(r.events) - 1; i >= 0 && r.events[i].Kv.ModRevision == rev; i-- {
		if bytes.Equal(r.events[i].Kv.Key, previous.Key) {
			first = r.events[i].PrevKv
		}
	}
	return first
}

package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Writer collects transactions that become visible together, with
// Store.Commit. Each sees what the ones before it wrote.
//
// Put and Delete belong to one transaction until EndTxn; all changes of a
// transaction have the same main revision.
type Writer struct {
	batch   *pebble.Batch
	stored  *pebble.Iterator // over what was committed before; opened when first needed
	store   *Store
	rows    *rowCache
	begin   Head // as committed
	head    Head // after the last complete transaction
	changes uint32

	bytes     int64        // more than before in use
	compacted []compaction // in order

	// written has the newest version of every key changed here, so that the
	// next change of the key need not seek. The values lie in the batch.
	written map[string][]byte
	grown   []growth // keys that came and went

	record  *recorder   // nil unless Record was called
	onLease LeaseChange // nil unless OnLease was called

	// The last answer of stored. A transaction compares, reads and writes the
	// same key.
	lastKey []byte
	lastRaw []byte
	hasLast bool
	seek    []byte
}

// NewWriter begins a step. It must end with Store.Commit or Discard.
func (s *Store) NewWriter() *Writer {
	head := s.Head()
	return &Writer{
		batch:   s.db.NewIndexedBatch(),
		store:   s,
		rows:    s.rows,
		begin:   head,
		head:    head,
		written: make(map[string][]byte),
	}
}

// LeaseChange is told that the lease of key changed; before or after is 0 when
// the key had or has none. It may write to the Batch. The key is valid only
// during the call.
type LeaseChange func(key []byte, before, after int64) error

// OnLease has fn told of every lease that a change gives to or takes from a
// key. Its errors end the change.
func (w *Writer) OnLease(fn LeaseChange) { w.onLease = fn }

// Record has the events of what is written from now on collected, for those
// who watch the present. Without it they cost nothing.
func (w *Writer) Record() { w.record = &recorder{} }

// Events returns what was recorded, in order, as Store.Events would return it
// with the previous versions; all events of a revision follow each other.
func (w *Writer) Events() []*mvccpb.Event {
	if w.record == nil {
		return nil
	}
	return w.record.events
}

// Batch is where the owner of the store adds keys of its own to the step.
func (w *Writer) Batch() *pebble.Batch { return w.batch }

// View reads what is committed and, on top of it, what was written here. It
// is good until the next Put, Delete or EndTxn.
func (w *Writer) View() View {
	head := w.head
	if w.changes > 0 {
		head.Current++
	}
	return View{reader: w.batch, head: head, writer: w}
}

// EndTxn completes a transaction and returns the revision the store is at
// after it. A transaction that changed nothing takes no revision.
func (w *Writer) EndTxn() int64 {
	if w.changes > 0 {
		w.head.Current++
		w.changes = 0
	}
	return w.head.Current
}

// Put writes a version of key.
func (w *Writer) Put(key, value []byte, lease int64) error {
	rev := w.nextRevision()
	record := Record{
		Key:            key,
		Value:          value,
		CreateRevision: rev.Main,
		ModRevision:    rev.Main,
		Version:        1,
		Lease:          lease,
	}
	kind := byte(kindCreate)
	raw, err := w.newest(key)
	if err != nil {
		return err
	}
	var previous Record
	if len(raw) != 0 {
		if previous, err = decodeRecord(raw); err != nil {
			return err
		}
		record.CreateRevision = previous.CreateRevision
		record.Version = previous.Version + 1
		kind = kindUpdate
	}
	if w.record != nil {
		w.record.put(record, previous)
	}
	if err := w.write(rev, kind, record); err != nil {
		return err
	}
	return w.leaseChanged(key, previous.Lease, lease)
}

// Delete removes the keys in [key, end), with the meaning of an end that
// View.Visit has, and returns how many there were. When previous is not nil it
// is called with what is removed, in key order, before anything is.
func (w *Writer) Delete(ctx context.Context, key, end []byte, previous func(Record)) (int64, error) {
	type leased struct {
		key   []byte
		lease int64
	}
	var removed []leased
	rev := w.nextRevision().Main
	err := w.View().Visit(ctx, key, end, func(r Record) (bool, error) {
		removed = append(removed, leased{key: bytes.Clone(r.Key), lease: r.Lease})
		if previous != nil {
			previous(r)
		}
		if w.record != nil {
			w.record.remove(rev, r)
		}
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	for _, k := range removed {
		if err := w.write(w.nextRevision(), kindTombstone, Record{Key: k.key}); err != nil {
			return 0, err
		}
		if err := w.leaseChanged(k.key, k.lease, 0); err != nil {
			return 0, err
		}
	}
	return int64(len(removed)), nil
}

func (w *Writer) leaseChanged(key []byte, before, after int64) error {
	if before == after || w.onLease == nil {
		return nil
	}
	return w.onLease(key, before, after)
}

// Compact makes rev the lowest readable revision. The versions that nobody
// can read any more are removed by Store.ScrubStep. It must not be called
// inside a transaction.
func (w *Writer) Compact(rev int64) error {
	if rev <= w.head.Compacted {
		return ErrCompacted
	}
	if rev > w.head.Current {
		return ErrFutureRev
	}
	w.compacted = append(w.compacted, compaction{rev: rev, before: w.head.Compacted})
	w.head.Compacted = rev
	return nil
}

// Discard releases the writer; what it wrote and did not commit is gone.
func (w *Writer) Discard() error {
	var err error
	if w.stored != nil {
		err = closeIter(w.stored, nil)
		w.stored = nil
	}
	if w.batch != nil {
		err = errors.Join(err, w.batch.Close())
		w.batch = nil
	}
	return err
}

// finish completes the batch.
func (w *Writer) finish() (Head, error) {
	if w.changes > 0 {
		return Head{}, errors.New("commit to the store: the last transaction was not ended")
	}
	if w.bytes != 0 {
		if err := putTotal(w.batch, metaWritten, w.store.written.Load()+w.bytes); err != nil {
			return Head{}, err
		}
	}
	if w.head == w.begin {
		return w.head, nil
	}
	if err := w.batch.Set(metaKey(metaHead), w.head.encode(), nil); err != nil {
		return Head{}, fmt.Errorf("write the store's head: %w", err)
	}
	return w.head, nil
}

func (w *Writer) nextRevision() Revision {
	return Revision{Main: w.head.Current + 1, Sub: w.changes}
}

// write adds one version and its history record to the batch.
func (w *Writer) write(rev Revision, kind byte, record Record) error {
	size := 0
	if kind != kindTombstone {
		size = record.size()
	}
	op := w.batch.SetDeferred(prefixLen(record.Key)+suffixLen, size)
	appendSuffix(appendPrefix(op.Key[:0], record.Key), rev)
	if kind != kindTombstone {
		record.append(op.Value[:0])
	}
	name := string(record.Key)
	w.written[name] = op.Value
	switch kind {
	case kindCreate:
		w.grown = append(w.grown, growth{name, +1})
	case kindTombstone:
		w.grown = append(w.grown, growth{name, -1})
	}
	w.bytes += versionSize(record.Key, size)
	if err := op.Finish(); err != nil {
		return fmt.Errorf("write a version: %w", err)
	}

	op = w.batch.SetDeferred(1+suffixLen, 1+len(record.Key))
	appendHistoryKey(op.Key[:0], rev)
	op.Value[0] = kind
	copy(op.Value[1:], record.Key)
	if err := op.Finish(); err != nil {
		return fmt.Errorf("write a history record: %w", err)
	}
	w.changes++
	return nil
}

// newest returns the encoded newest version of key, empty when there is none.
// It is valid until the next call.
func (w *Writer) newest(key []byte) ([]byte, error) {
	if raw, ok := w.written[string(key)]; ok {
		return raw, nil
	}
	if w.hasLast && bytes.Equal(w.lastKey, key) {
		return w.lastRaw, nil
	}
	if raw, ok := w.rows.get(key); ok {
		return raw, nil
	}
	if w.stored == nil {
		it, err := w.store.db.NewIter(&pebble.IterOptions{UseL6Filters: true})
		if err != nil {
			return nil, fmt.Errorf("look up a key: %w", err)
		}
		w.stored = it
	}
	w.hasLast = false
	w.seek = appendPrefix(w.seek[:0], key)
	var raw []byte
	if w.stored.SeekPrefixGE(w.seek) {
		var err error
		if raw, err = w.stored.ValueAndErr(); err != nil {
			return nil, fmt.Errorf("look up a key: %w", err)
		}
	} else if err := w.stored.Error(); err != nil {
		return nil, fmt.Errorf("look up a key: %w", err)
	}
	w.lastKey, w.lastRaw, w.hasLast = append(w.lastKey[:0], key...), raw, true
	return raw, nil
}

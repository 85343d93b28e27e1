package mvcc

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Change is one change of the history as etcd stores it.
type Change struct {
	Rev Revision
	// Tombstone is true for a deletion, which has no Record.
	Tombstone bool
	// Key is the user's.
	Key []byte
	// Record is what a put wrote, an encoded mvccpb.KeyValue.
	Record []byte
}

// PinAll is Pin for those who read the owner's keys as well: the view and
// Reader show the same moment, which may be later than that of a Head taken
// before.
func (s *Store) PinAll() (*PinnedView, error) {
	snapshot := s.reads.NewSnapshot()
	// Whatever was removed from the snapshot was compacted in it before, so
	// nothing that can be read at its own head is missing.
	head, err := readHead(snapshot)
	if err != nil {
		_ = snapshot.Close() // always nil
		return nil, err
	}
	return &PinnedView{View: View{reader: snapshot, head: head}, snapshot: snapshot}, nil
}

// Reader reads everything in the view, the keys of the store's owner included.
func (v *PinnedView) Reader() pebble.Reader { return v.snapshot }

// Changes calls fn with the changes that the compaction leaves, whether or not
// the others were scrubbed, in the order in which they were made. That is all
// of the history that counts: Loader makes an equal store of it. A change is
// valid only during the call.
func (v *PinnedView) Changes(ctx context.Context, fn func(Change) error) (err error) {
	history, err := v.openHistory(ctx, 1, v.head.Current)
	if err != nil {
		return err
	}
	defer func() { err = closeIter(history.it, err) }()
	versions, err := v.openVersions(ctx)
	if err != nil {
		return err
	}
	defer func() { err = closeIter(versions.it, err) }()

	for {
		record, ok, err := history.next()
		if err != nil || !ok {
			return err
		}
		raw, kept, err := v.kept(versions, record)
		if err != nil {
			return err
		}
		if !kept {
			continue
		}
		change := Change{Rev: record.rev, Tombstone: record.kind == kindTombstone, Key: record.key, Record: raw}
		if err := fn(change); err != nil {
			return err
		}
	}
}

// kept tells whether the compaction leaves a change, and what it wrote. Of the
// compacted ones the newest of each key stay, deletions only when they were
// made at the compacted revision itself.
func (v *PinnedView) kept(versions *versionReader, c historyRecord) (raw []byte, kept bool, err error) {
	compacted := v.head.Compacted
	if c.rev.Main > compacted {
		raw, err = versions.at(c)
		return raw, true, err
	}
	if c.kind == kindTombstone && c.rev.Main < compacted {
		return nil, false, nil
	}
	newest, raw, err := versions.newest(c.key, compacted)
	return raw, newest == c.rev, err
}

// loadBatchBytes is about how much a Loader keeps in memory.
const loadBatchBytes = 4 << 20

// Loader fills a new store with changes that were made elsewhere.
type Loader struct {
	store *Store
	batch *pebble.Batch
	last  Revision
	bytes int64
}

// NewLoader begins to fill the store, which must be new. It must end with
// Finish or Discard.
func (s *Store) NewLoader() (*Loader, error) {
	if head := s.Head(); head != (Head{Current: 1, Compacted: noRevision}) {
		return nil, fmt.Errorf("fill the store: it is not new but at revision %d", head.Current)
	}
	return &Loader{store: s, batch: s.db.NewBatch()}, nil
}

// Add adds a change, which must come after those before it. Only changes that
// a compaction leaves may be missing in between. The error is ErrDamaged when
// the change contradicts itself.
func (l *Loader) Add(c Change) error {
	if c.Rev.Main < max(l.last.Main, 1) || c.Rev.Main == l.last.Main && c.Rev.Sub <= l.last.Sub {
		return fmt.Errorf("%w: revision %d.%d follows %d.%d", ErrDamaged, c.Rev.Main, c.Rev.Sub, l.last.Main, l.last.Sub)
	}
	kind := byte(kindTombstone)
	if !c.Tombstone {
		record, err := decodeRecord(c.Record)
		if err != nil {
			return fmt.Errorf("revision %d.%d: %w", c.Rev.Main, c.Rev.Sub, err)
		}
		kind = kindUpdate
		if record.CreateRevision == record.ModRevision {
			kind = kindCreate
		}
	}
	key := appendSuffix(appendPrefix(make([]byte, 0, prefixLen(c.Key)+suffixLen), c.Key), c.Rev)
	if err := l.batch.Set(key, c.Record, nil); err != nil {
		return fmt.Errorf("write a version: %w", err)
	}
	value := append([]byte{kind}, c.Key...)
	if err := l.batch.Set(appendHistoryKey(nil, c.Rev), value, nil); err != nil {
		return fmt.Errorf("write a history record: %w", err)
	}
	l.last = c.Rev
	l.bytes += versionSize(c.Key, len(c.Record))
	if l.batch.Len() < loadBatchBytes {
		return nil
	}
	return l.flush()
}

func (l *Loader) flush() error {
	if err := l.store.db.Apply(l.batch, pebble.NoSync); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	if err := l.batch.Close(); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	l.batch = l.store.db.NewBatch()
	return nil
}

// Finish completes the store: the current revision is that of the last change,
// or compacted when that is above. A compacted of -1 is that of a store that
// never was.
func (l *Loader) Finish(compacted int64) error {
	head := Head{Current: max(l.last.Main, compacted, 1), Compacted: max(compacted, noRevision)}
	if head != l.store.Head() {
		if err := l.batch.Set(metaKey(metaHead), head.encode(), nil); err != nil {
			return fmt.Errorf("write the store's head: %w", err)
		}
	}
	if err := l.store.Charge(l.batch, l.bytes); err != nil {
		return err
	}
	if err := l.flush(); err != nil {
		return err
	}
	l.store.head.Store(&head)
	return errors.Join(l.Discard(), l.store.tally.recount(head, false))
}

// Discard releases the loader. Without Finish the store is of no use.
func (l *Loader) Discard() error { return l.batch.Close() }

// ParseRecord reads an encoded mvccpb.KeyValue in place. The error is
// ErrDamaged.
func ParseRecord(raw []byte) (Record, error) { return decodeRecord(raw) }

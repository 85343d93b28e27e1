package mvcc

import (
	"bytes"
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// View reads one state of a store.
type View struct {
	reader pebble.Reader
	head   Head
	writer *Writer // set when the view looks at what a Writer has not committed yet
}

// PinnedView is a View that holds on to its state until it is closed.
type PinnedView struct {
	View
	snapshot *pebble.Snapshot
}

// Close releases the view.
func (v *PinnedView) Close() error {
	if err := v.snapshot.Close(); err != nil {
		return fmt.Errorf("release a view of the store: %w", err)
	}
	return nil
}

// Head is where the store stood when the view was taken. Inside a transaction
// that has written, Current is the revision the transaction gets.
func (v View) Head() Head { return v.head }

// ctxCheckInterval is after how many keys a scan looks whether its caller is
// still there.
const ctxCheckInterval = 64

// Visit calls fn with the newest version of every key in [key, end) that
// exists at the current revision, in key order, until fn returns false or an
// error. An empty end means key alone, "\x00" no upper end. The record is
// valid only during the call.
func (v View) Visit(ctx context.Context, key, end []byte, fn func(Record) (bool, error)) error {
	return v.visit(ctx, key, end, v.head.Current, func(raw []byte) (bool, error) {
		r, err := decodeRecord(raw)
		if err != nil {
			return false, err
		}
		return fn(r)
	})
}

// visit is Visit at a revision that is known to be readable, on encoded
// records.
func (v View) visit(ctx context.Context, key, end []byte, rev int64, fn func(raw []byte) (bool, error)) error {
	if len(end) != 0 {
		return v.scan(ctx, key, end, rev, fn)
	}
	if v.writer != nil && rev == v.head.Current {
		raw, err := v.writer.newest(key)
		if err != nil || len(raw) == 0 {
			return err
		}
		_, err = fn(raw)
		return err
	}
	return v.point(ctx, key, rev, fn)
}

func (v View) point(ctx context.Context, key []byte, rev int64, fn func(raw []byte) (bool, error)) (err error) {
	it, err := v.reader.NewIterWithContext(ctx, &pebble.IterOptions{UseL6Filters: true})
	if err != nil {
		return fmt.Errorf("read a key: %w", err)
	}
	defer func() { err = closeIter(it, err) }()
	seek := appendPrefix(make([]byte, 0, prefixLen(key)+suffixLen), key)
	seek = appendSuffix(seek, newestAt(rev))
	if !it.SeekPrefixGE(seek) {
		return nil
	}
	raw, err := it.ValueAndErr()
	if err != nil {
		return fmt.Errorf("read a key: %w", err)
	}
	if len(raw) == 0 {
		return nil
	}
	_, err = fn(raw)
	return err
}

// scan visits a range. Its cost is one step per key plus one seek per key
// whose newest version is above rev; how many versions a key has does not
// matter.
func (v View) scan(ctx context.Context, key, end []byte, rev int64, fn func(raw []byte) (bool, error)) (err error) {
	lower, upper := bounds(key, end)
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	it, err := v.reader.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("read a range: %w", err)
	}
	defer func() { err = closeIter(it, err) }()

	var seek []byte
	steps := 0
	for valid := it.First(); valid; {
		if steps++; steps%ctxCheckInterval == 0 && ctx.Err() != nil {
			return fmt.Errorf("read a range: %w", ctx.Err())
		}
		k := it.Key()
		n := split(k)
		version, err := decodeSuffix(k[n:])
		if err != nil {
			return err
		}
		if version.Main > rev {
			// This lands on the version sought, or on the next key when there
			// is none that old.
			seek = appendSuffix(append(seek[:0], k[:n]...), newestAt(rev))
			valid = it.SeekGE(seek)
			continue
		}
		raw, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read a range: %w", err)
		}
		if len(raw) != 0 {
			if more, err := fn(raw); err != nil || !more {
				return err
			}
		}
		valid = it.NextPrefix()
	}
	return nil
}

// closeIter closes an iterator and keeps the first error; an iterator reports
// the failure of a step when it is closed.
func closeIter(it *pebble.Iterator, err error) error {
	if closeErr := it.Close(); closeErr != nil && err == nil {
		return fmt.Errorf("read the store: %w", closeErr)
	}
	return err
}

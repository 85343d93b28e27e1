package mvcc

import (
	"bytes"
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// historyRecord is one change. The key is valid until the next one is read.
type historyRecord struct {
	rev  Revision
	kind byte
	key  []byte
}

// historyReader reads history records in order.
type historyReader struct {
	ctx     context.Context
	it      *pebble.Iterator
	started bool
	steps   int
}

// openHistory reads the revisions from first to last, which must be positive.
func (v View) openHistory(ctx context.Context, first, last int64) (*historyReader, error) {
	it, err := v.reader.NewIterWithContext(ctx, &pebble.IterOptions{
		LowerBound: appendHistoryKey(nil, Revision{Main: first}),
		UpperBound: appendHistoryKey(nil, Revision{Main: last + 1}),
	})
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return &historyReader{ctx: ctx, it: it}, nil
}

// next returns false after the last record.
func (r *historyReader) next() (historyRecord, bool, error) {
	if r.steps++; r.steps%ctxCheckInterval == 0 && r.ctx.Err() != nil {
		return historyRecord{}, false, fmt.Errorf("read the history: %w", r.ctx.Err())
	}
	step := r.it.First
	if r.started {
		step = r.it.Next
	}
	r.started = true
	if !step() {
		return historyRecord{}, false, r.it.Error()
	}
	value, err := r.it.ValueAndErr()
	if err != nil {
		return historyRecord{}, false, fmt.Errorf("read the history: %w", err)
	}
	var c historyRecord
	c.rev, c.kind, c.key, err = decodeHistory(r.it.Key(), value)
	return c, err == nil, err
}

// versionReader looks up versions of keys. What it returns is valid until the
// next call.
type versionReader struct {
	it   *pebble.Iterator
	seek []byte
}

func (v View) openVersions(ctx context.Context) (*versionReader, error) {
	it, err := v.reader.NewIterWithContext(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	return &versionReader{it: it}, nil
}

// at returns what a change wrote, empty for a deletion.
func (r *versionReader) at(c historyRecord) ([]byte, error) {
	if c.kind == kindTombstone {
		return nil, nil
	}
	r.seek = appendSuffix(appendPrefix(r.seek[:0], c.key), c.rev)
	if !r.it.SeekPrefixGE(r.seek) || !bytes.Equal(r.it.Key(), r.seek) {
		if err := r.it.Error(); err != nil {
			return nil, fmt.Errorf("read a version: %w", err)
		}
		return nil, fmt.Errorf("%w: the history has a change at revision %d that is not there", ErrDamaged, c.rev.Main)
	}
	raw, err := r.it.ValueAndErr()
	if err != nil {
		return nil, fmt.Errorf("read a version: %w", err)
	}
	return raw, nil
}

// newest returns the newest version of key at or before revision main, empty
// for a deletion, and where it was made; zero when there is none.
func (r *versionReader) newest(key []byte, main int64) (Revision, []byte, error) {
	r.seek = appendSuffix(appendPrefix(r.seek[:0], key), newestAt(main))
	if !r.it.SeekPrefixGE(r.seek) {
		if err := r.it.Error(); err != nil {
			return Revision{}, nil, fmt.Errorf("read a version: %w", err)
		}
		return Revision{}, nil, nil
	}
	k := r.it.Key()
	rev, err := decodeSuffix(k[split(k):])
	if err != nil {
		return Revision{}, nil, err
	}
	raw, err := r.it.ValueAndErr()
	if err != nil {
		return Revision{}, nil, fmt.Errorf("read a version: %w", err)
	}
	return rev, raw, nil
}

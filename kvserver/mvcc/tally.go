package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

const (
	tallySplit = 4096 // keys; an interval that has more is divided
	tallyMerge = 1024 // keys; neighbours that have fewer together become one
)

// tally counts the keys that exist now, by intervals that follow each other
// without a gap. It is stored interval by interval, in the batches that change
// it, so that a count after a start need not walk what it counts.
//
// Only whoever commits changes it; the lock is for those who read meanwhile.
type tally struct {
	db           *pebble.DB
	split, merge int64 // tallySplit and tallyMerge, except in tests

	mu        sync.RWMutex
	rev       int64
	intervals []tallied
}

// tallied is one interval. It ends where the next one begins.
type tallied struct {
	start []byte
	keys  int64
}

// lowestKey is where the first interval begins: no key is empty.
var lowestKey = []byte{0}

// noUpperEnd is how etcd writes the end of an interval that has none.
var noUpperEnd = []byte{0}

// growth is a key that came or went.
type growth struct {
	key string
	by  int64
}

func tallyKey(start []byte) []byte { return append([]byte{tallyPrefix}, start...) }

func setTallied(batch *pebble.Batch, t tallied) error {
	if err := batch.Set(tallyKey(t.start), binary.AppendVarint(nil, t.keys), nil); err != nil {
		return fmt.Errorf("write a count of keys: %w", err)
	}
	return nil
}

// readTally reads what is stored; no intervals when nothing is.
func readTally(r pebble.Reader) (intervals []tallied, err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: []byte{tallyPrefix}, UpperBound: []byte{tallyPrefix + 1}})
	if err != nil {
		return nil, fmt.Errorf("read the counts of keys: %w", err)
	}
	defer func() { err = closeIter(it, err) }()
	for valid := it.First(); valid; valid = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, fmt.Errorf("read the counts of keys: %w", err)
		}
		keys, n := binary.Varint(value)
		if n != len(value) || keys < 0 {
			return nil, fmt.Errorf("%w: a count of keys is %x", ErrDamaged, value)
		}
		intervals = append(intervals, tallied{start: bytes.Clone(it.Key()[1:]), keys: keys})
	}
	if len(intervals) > 0 && !bytes.Equal(intervals[0].start, lowestKey) {
		return nil, fmt.Errorf("%w: the counts of keys begin at %q", ErrDamaged, intervals[0].start)
	}
	return intervals, nil
}

// countAll counts everything in the view into intervals of size keys.
func (v View) countAll(ctx context.Context, size int64) ([]tallied, error) {
	intervals := []tallied{{start: lowestKey}}
	err := v.Visit(ctx, lowestKey, noUpperEnd, func(r Record) (bool, error) {
		last := &intervals[len(intervals)-1]
		if last.keys == size {
			intervals = append(intervals, tallied{start: bytes.Clone(r.Key)})
			last = &intervals[len(intervals)-1]
		}
		last.keys++
		return true, nil
	})
	return intervals, err
}

// of returns the interval that has key.
func (t *tally) of(key string) int {
	return sort.Search(len(t.intervals), func(i int) bool { return string(t.intervals[i].start) > key }) - 1
}

func (t *tally) end(i int) []byte {
	if i+1 == len(t.intervals) {
		return noUpperEnd
	}
	return t.intervals[i+1].start
}

// prepare adds to the batch what becomes of the intervals, and returns by how
// much each of them grows.
func (t *tally) prepare(batch *pebble.Batch, keys []growth) (map[int]int64, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	grown := make(map[int]int64, 1)
	for _, key := range keys {
		grown[t.of(key.key)] += key.by
	}
	for i, by := range grown {
		if by == 0 {
			continue
		}
		now := t.intervals[i]
		now.keys += by
		if now.keys < 0 {
			return nil, fmt.Errorf("%w: %d keys are counted from %q on", ErrDamaged, now.keys, now.start)
		}
		if err := setTallied(batch, now); err != nil {
			return nil, err
		}
	}
	return grown, nil
}

// advance makes what was prepared, and is committed now, the state at rev.
func (t *tally) advance(grown map[int]int64, rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rev = rev
	for i, by := range grown {
		t.intervals[i].keys += by
	}
}

// inside counts the keys of all the intervals that lie in [start, end)
// completely; ok is false when none does.
func (t *tally) inside(start, end []byte) (c counted, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	first := sort.Search(len(t.intervals), func(i int) bool { return bytes.Compare(t.intervals[i].start, start) >= 0 })
	last := len(t.intervals)
	if !isUnbounded(end) {
		last = sort.Search(len(t.intervals), func(i int) bool { return bytes.Compare(t.intervals[i].start, end) > 0 }) - 1
	}
	if first >= last {
		return counted{}, false
	}
	c = counted{start: t.intervals[first].start, end: t.end(last - 1), rev: t.rev}
	for _, interval := range t.intervals[first:last] {
		c.count += interval.keys
	}
	return c, true
}

// balance divides those of the intervals that became large and joins those
// that became small, in batches of their own: any division is a right one.
func (t *tally) balance(grown map[int]int64) error {
	for _, i := range slices.Backward(sortedKeys(grown)) {
		switch interval := t.intervals[i]; {
		case interval.keys > t.split:
			if err := t.divide(i); err != nil {
				return err
			}
		case grown[i] < 0:
			if err := t.join(i); err != nil {
				return err
			}
		}
	}
	return nil
}

func sortedKeys(grown map[int]int64) []int {
	if len(grown) < 2 {
		for i := range grown {
			return []int{i}
		}
		return nil
	}
	keys := make([]int, 0, len(grown))
	for i := range grown {
		keys = append(keys, i)
	}
	slices.Sort(keys)
	return keys
}

// divide makes several intervals of one that is too large, so much smaller that
// they are not soon divided again.
func (t *tally) divide(i int) error {
	large := t.intervals[i]
	pieces := large.keys/(t.split*3/4) + 1
	size := (large.keys + pieces - 1) / pieces
	parts := []tallied{{start: large.start}}
	var n int64
	err := View{reader: t.db}.scan(context.Background(), large.start, t.end(i), t.rev, func(raw []byte) (bool, error) {
		last := &parts[len(parts)-1]
		if last.keys == size {
			record, err := decodeRecord(raw)
			if err != nil {
				return false, err
			}
			parts = append(parts, tallied{start: bytes.Clone(record.Key)})
			last = &parts[len(parts)-1]
			if large.keys-n <= size { // the rest is the last part
				last.keys = large.keys - n
				return false, nil
			}
		}
		last.keys++
		n++
		return true, nil
	})
	if err != nil {
		return err
	}
	batch := t.db.NewBatch()
	defer func() { _ = batch.Close() }()
	for _, part := range parts {
		if err := setTallied(batch, part); err != nil {
			return err
		}
	}
	return t.rearrange(batch, i, i+1, parts)
}

// join makes one interval of a small one and a small neighbour.
func (t *tally) join(i int) error {
	intervals := t.intervals
	if i+1 == len(intervals) {
		i--
	}
	if i < 0 || intervals[i].keys+intervals[i+1].keys >= t.merge {
		return nil
	}
	joined := tallied{start: intervals[i].start, keys: intervals[i].keys + intervals[i+1].keys}
	batch := t.db.NewBatch()
	defer func() { _ = batch.Close() }()
	if err := batch.Delete(tallyKey(intervals[i+1].start), nil); err != nil {
		return fmt.Errorf("remove a count of keys: %w", err)
	}
	if err := setTallied(batch, joined); err != nil {
		return err
	}
	return t.rearrange(batch, i, i+2, []tallied{joined})
}

func (t *tally) rearrange(batch *pebble.Batch, from, to int, with []tallied) error {
	if err := t.db.Apply(batch, pebble.NoSync); err != nil {
		return fmt.Errorf("rearrange the counts of keys: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.intervals = slices.Replace(t.intervals, from, to, with...)
	return nil
}

// load reads what is stored of the state at head. A store from before there was one is counted,
// once.
func (t *tally) load(head Head, readOnly bool) error {
	intervals, err := readTally(t.db)
	if err != nil {
		return err
	}
	if intervals == nil {
		return t.recount(head, readOnly)
	}
	t.intervals, t.rev = intervals, head.Current
	return nil
}

// recount makes the tally anew.
func (t *tally) recount(head Head, readOnly bool) error {
	intervals, err := View{reader: t.db, head: head}.countAll(context.Background(), t.split/2)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.intervals, t.rev = intervals, head.Current
	if readOnly {
		return nil
	}
	batch := t.db.NewBatch()
	defer func() { _ = batch.Close() }()
	if err := batch.DeleteRange([]byte{tallyPrefix}, []byte{tallyPrefix + 1}, nil); err != nil {
		return fmt.Errorf("write the counts of keys: %w", err)
	}
	for _, interval := range intervals {
		if err := setTallied(batch, interval); err != nil {
			return err
		}
	}
	if err := t.db.Apply(batch, pebble.NoSync); err != nil {
		return fmt.Errorf("write the counts of keys: %w", err)
	}
	return nil
}

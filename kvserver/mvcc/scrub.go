package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// ScrubStep removes versions that compaction made unreadable. It looks at no
// more than limit (at least 1) history records, commits what it found, and
// tells whether everything is done. Where it stopped is stored with the
// removal, so it goes on there after a restart.
//
// Of every key the newest version at or below the compacted revision stays,
// as long as it is readable there: a tombstone goes, unless it was written at
// the compacted revision itself, where somebody may still want to see the
// deletion.
//
// What is removed can no longer be seen, so members need not scrub at the
// same time.
//
// The first step after a compaction computes its hash before anything is
// removed, which takes as long as reading all keys; ctx can end it, and the
// next step begins that anew.
func (s *Store) ScrubStep(ctx context.Context, limit int) (done bool, err error) {
	state := s.scrub
	compacted := s.Head().Compacted
	if state.done == state.target {
		if state.target == compacted {
			return true, nil
		}
		if err := s.compactions.compute(ctx, s.reads, func(rev int64) bool { return rev <= compacted }); err != nil {
			return false, err
		}
		state.target = compacted
		// The records at the last compacted revision once more: their
		// tombstones were left.
		state.next = Revision{Main: max(state.done, 0)}
	}

	batch := s.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	removed, err := state.scrub(s.db, batch, max(limit, 1))
	if err == nil && removed != 0 {
		err = putTotal(batch, metaRemoved, s.removed.Load()+removed)
	}
	if err != nil {
		return false, fmt.Errorf("remove versions below revision %d: %w", state.target, err)
	}
	if err := batch.Set(metaKey(metaScrub), state.encode(), nil); err != nil {
		return false, fmt.Errorf("remove versions below revision %d: %w", state.target, err)
	}
	if err := s.db.Apply(batch, pebble.NoSync); err != nil {
		return false, fmt.Errorf("remove versions below revision %d: %w", state.target, err)
	}
	s.removed.Add(removed)
	s.scrub = state
	return state.done == compacted, nil
}

// scrub walks the history from s.next to s.target and returns
// how many bytes it removed.
func (s *scrubState) scrub(db *pebble.DB, batch *pebble.Batch, limit int) (removed int64, err error) {
	history, err := db.NewIter(&pebble.IterOptions{
		LowerBound: appendHistoryKey(nil, s.next),
		UpperBound: appendHistoryKey(nil, Revision{Main: s.target + 1}),
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = closeIter(history, err) }()
	versions, err := db.NewIter(nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = closeIter(versions, err) }()

	for valid := history.First(); valid; valid = history.Next() {
		value, err := history.ValueAndErr()
		if err != nil {
			return 0, err
		}
		rev, kind, key, err := decodeHistory(history.Key(), value)
		if err != nil {
			return 0, err
		}
		if limit == 0 {
			s.next = rev
			return removed, nil
		}
		limit--
		bytes, err := scrubRecord(batch, versions, s, rev, kind, key)
		if err != nil {
			return 0, err
		}
		removed += bytes
	}
	s.done, s.next = s.target, Revision{}
	return removed, nil
}

// scrubRecord removes what the change at rev superseded, and the change
// itself when it is a tombstone that nobody can see. It returns how many bytes
// that was.
func scrubRecord(batch *pebble.Batch, versions *pebble.Iterator, state *scrubState, rev Revision, kind byte, key []byte) (removed int64, err error) {
	if rev.Main > state.done && kind != kindCreate {
		// Older versions than the previous one were removed when that one was
		// looked at.
		at := appendSuffix(appendPrefix(nil, key), rev)
		if versions.SeekPrefixGE(at) && bytes.Equal(versions.Key(), at) && versions.Next() {
			k := versions.Key()
			previous, err := decodeSuffix(k[split(k):])
			if err != nil {
				return 0, err
			}
			value := versions.LazyValue()
			removed += versionSize(key, value.Len())
			if err := removeVersion(batch, key, previous); err != nil {
				return 0, err
			}
		}
		if err := versions.Error(); err != nil {
			return 0, err
		}
	}
	if kind == kindTombstone && rev.Main < state.target {
		return removed + versionSize(key, 0), removeVersion(batch, key, rev)
	}
	return removed, nil
}

func removeVersion(batch *pebble.Batch, key []byte, rev Revision) error {
	if err := batch.Delete(appendSuffix(appendPrefix(nil, key), rev), nil); err != nil {
		return err
	}
	return batch.Delete(appendHistoryKey(nil, rev), nil)
}

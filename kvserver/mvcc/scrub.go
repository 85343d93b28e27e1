package mvcc

import (
	"bytes"
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
func (s *Store) ScrubStep(limit int) (done bool, err error) {
	state := s.scrub
	compacted := s.Head().Compacted
	if state.done == state.target {
		if state.target == compacted {
			return true, nil
		}
		state.target = compacted
		// The records at the last compacted revision once more: their
		// tombstones were left.
		state.next = Revision{Main: max(state.done, 0)}
	}

	batch := s.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	if err := s.scrubHistory(batch, &state, max(limit, 1)); err != nil {
		return false, fmt.Errorf("remove versions below revision %d: %w", state.target, err)
	}
	if err := batch.Set(metaKey(metaScrub), state.encode(), nil); err != nil {
		return false, fmt.Errorf("remove versions below revision %d: %w", state.target, err)
	}
	if err := s.db.Apply(batch, pebble.NoSync); err != nil {
		return false, fmt.Errorf("remove versions below revision %d: %w", state.target, err)
	}
	s.scrub = state
	return state.done == compacted, nil
}

// scrubHistory walks the history from state.next to state.target.
func (s *Store) scrubHistory(batch *pebble.Batch, state *scrubState, limit int) (err error) {
	history, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: appendHistoryKey(nil, state.next),
		UpperBound: appendHistoryKey(nil, Revision{Main: state.target + 1}),
	})
	if err != nil {
		return err
	}
	defer func() { err = closeIter(history, err) }()
	versions, err := s.db.NewIter(nil)
	if err != nil {
		return err
	}
	defer func() { err = closeIter(versions, err) }()

	for valid := history.First(); valid; valid = history.Next() {
		value, err := history.ValueAndErr()
		if err != nil {
			return err
		}
		rev, kind, key, err := decodeHistory(history.Key(), value)
		if err != nil {
			return err
		}
		if limit == 0 {
			state.next = rev
			return nil
		}
		limit--
		if err := scrubRecord(batch, versions, state, rev, kind, key); err != nil {
			return err
		}
	}
	state.done, state.next = state.target, Revision{}
	return nil
}

// scrubRecord removes what the change at rev superseded, and the change
// itself when it is a tombstone that nobody can see.
func scrubRecord(batch *pebble.Batch, versions *pebble.Iterator, state *scrubState, rev Revision, kind byte, key []byte) error {
	if rev.Main > state.done && kind != kindCreate {
		// Older versions than the previous one were removed when that one was
		// looked at.
		at := appendSuffix(appendPrefix(nil, key), rev)
		if versions.SeekPrefixGE(at) && bytes.Equal(versions.Key(), at) && versions.Next() {
			k := versions.Key()
			previous, err := decodeSuffix(k[split(k):])
			if err != nil {
				return err
			}
			if err := removeVersion(batch, key, previous); err != nil {
				return err
			}
		}
		if err := versions.Error(); err != nil {
			return err
		}
	}
	if kind == kindTombstone && rev.Main < state.target {
		return removeVersion(batch, key, rev)
	}
	return nil
}

func removeVersion(batch *pebble.Batch, key []byte, rev Revision) error {
	if err := batch.Delete(appendSuffix(appendPrefix(nil, key), rev), nil); err != nil {
		return err
	}
	return batch.Delete(appendHistoryKey(nil, rev), nil)
}

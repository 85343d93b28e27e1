package mvcc

import (
	"context"
	"fmt"
)

// KVHash is the hash of the keys and their history at a revision, the answer
// to etcd's HashKV.
type KVHash struct {
	// Hash is equal on all members of a cluster, and on an etcd with the same
	// history, when the two revisions below are.
	Hash uint32
	// Revision is the one hashed.
	Revision int64
	// Compacted is the compacted revision at the time, -1 when nothing was
	// ever compacted. What it removed is not in the hash, whether or not it is
	// still on disk.
	Compacted int64
	// Current is the current revision at the time.
	Current int64
}

// HashKV hashes the store as it was at revision rev, 0 for the current one.
// It reads everything there is, in bounded memory. Errors are those of
// Range; other than there, a negative revision is not the current one but one
// before anything happened, as it is for etcd.
//
// At the revisions of the last ten compactions since the store was opened the
// answer is, as etcd's, the hash that was remembered: that from before the
// compaction, with the compacted revision before it.
func (s *Store) HashKV(ctx context.Context, rev int64) (KVHash, error) {
	if err := s.compactions.compute(ctx, s.reads, func(compacted int64) bool { return compacted == rev }); err != nil {
		return KVHash{}, err
	}
	if h, known := s.compactions.hash(rev); known {
		h.Current = s.Head().Current
		return h, nil
	}
	return s.HashAt(ctx, rev)
}

// HashAt is HashKV without what is remembered of compactions: it depends on
// nothing but the history up to rev and the compacted revision.
func (s *Store) HashAt(ctx context.Context, rev int64) (_ KVHash, err error) {
	view := s.Pin()
	defer func() {
		if closeErr := view.Close(); err == nil {
			err = closeErr
		}
	}()
	return view.HashKV(ctx, rev)
}

// HashKV is Store.HashAt on the state of the view.
func (v *PinnedView) HashKV(ctx context.Context, rev int64) (KVHash, error) {
	if rev > 0 && rev < v.head.Compacted {
		return KVHash{}, ErrCompacted
	}
	if rev > v.head.Current {
		return KVHash{}, ErrFutureRev
	}
	if rev == 0 {
		rev = v.head.Current
	}
	hash := newHasher(v)
	if rev > 0 {
		keptAt, err := v.keptAt(ctx, rev)
		if err == nil {
			err = hash.addHistory(ctx, rev, keptAt)
		}
		if err != nil {
			return KVHash{}, fmt.Errorf("hash the keys at revision %d: %w", rev, err)
		}
	}
	return KVHash{
		Hash:      hash.sum,
		Revision:  rev,
		Compacted: v.head.Compacted,
		Current:   v.head.Current,
	}, nil
}

// keptAt is the revision at which a compacted change must be visible to be
// part of the hash at rev. That is rev itself, unless no key exists there:
// etcd takes an empty set of changes to keep for none to be left out, and
// hashes whatever the compaction has left. A key that was deleted and created
// again at the very revision does not count for etcd.
func (v *PinnedView) keptAt(ctx context.Context, rev int64) (int64, error) {
	compacted := v.head.Compacted
	if compacted <= 0 || rev == compacted {
		return rev, nil
	}
	exists := false
	created := map[string]bool{} // at the revision: by one transaction
	err := v.visit(ctx, []byte{0}, []byte{0}, rev, func(raw []byte) (bool, error) {
		record, err := decodeRecord(raw)
		exists = record.ModRevision < rev || record.Version > 1
		created[string(record.Key)] = true
		return !exists, err
	})
	if err == nil && !exists {
		exists, err = v.createsAnew(ctx, rev, created)
	}
	if exists {
		return rev, err
	}
	return compacted, err
}

// createsAnew tells whether any of the keys that were created at a revision was
// not deleted there before.
func (v *PinnedView) createsAnew(ctx context.Context, rev int64, created map[string]bool) (_ bool, err error) {
	if len(created) == 0 {
		return false, nil
	}
	history, err := v.openHistory(ctx, rev, rev)
	if err != nil {
		return false, err
	}
	defer func() { err = closeIter(history.it, err) }()
	for {
		change, ok, err := history.next()
		if err != nil || !ok {
			return len(created) > 0, err
		}
		if change.kind == kindTombstone {
			delete(created, string(change.key))
		}
	}
}

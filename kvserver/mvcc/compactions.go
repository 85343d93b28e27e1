package mvcc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// keptHashes is of how many compactions the hash is remembered; etcd's number
// (server/storage/mvcc/hash.go).
const keptHashes = 10

// compaction is one that was committed.
type compaction struct {
	rev    int64
	before int64 // the compacted revision until then
}

// compactions remembers what the keys hashed to when they were compacted: at
// the revision of the compaction, with what the one before it had left. All
// members compact alike, so these hashes can be compared whatever each member
// has applied since.
//
// The hash can be computed as long as the compaction was not scrubbed; until
// then the compaction waits here.
type compactions struct {
	mu      sync.Mutex
	pending []compaction // by revision
	hashes  []KVHash     // by revision; Current is not set
}

// add notes compactions that were committed, and forgets the oldest of those
// that are waiting or remembered.
func (c *compactions) add(committed []compaction) {
	if len(committed) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = append(c.pending, committed...)
	for len(c.pending)+len(c.hashes) > keptHashes {
		if len(c.hashes) > 0 && c.hashes[0].Revision < c.pending[0].rev {
			c.hashes = slices.Delete(c.hashes, 0, 1)
		} else {
			c.pending = slices.Delete(c.pending, 0, 1)
		}
	}
}

// hash returns what is remembered of a compaction at rev.
func (c *compactions) hash(rev int64) (KVHash, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, found := slices.BinarySearchFunc(c.hashes, rev, func(h KVHash, rev int64) int { return cmp.Compare(h.Revision, rev) })
	if !found {
		return KVHash{}, false
	}
	return c.hashes[i], true
}

func (c *compactions) all() []KVHash {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.hashes)
}

// pin returns the first waiting compaction that is wanted, with a snapshot
// from before it is scrubbed; nil when there is none.
func (c *compactions) pin(reads source, wanted func(rev int64) bool) (compaction, *pebble.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, each := range c.pending {
		if wanted(each.rev) {
			return each, reads.NewSnapshot()
		}
	}
	return compaction{}, nil
}

// settle remembers the hash of a compaction, which no longer waits.
func (c *compactions) settle(h KVHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting := len(c.pending)
	c.pending = slices.DeleteFunc(c.pending, func(p compaction) bool { return p.rev == h.Revision })
	if len(c.pending) == waiting {
		return // forgotten meanwhile, or computed by somebody else
	}
	i, _ := slices.BinarySearchFunc(c.hashes, h.Revision, func(k KVHash, rev int64) int { return cmp.Compare(k.Revision, rev) })
	c.hashes = slices.Insert(c.hashes, i, h)
}

// CompactionHashes are the hashes of the last compactions, by revision; see
// HashKV. Current is not set in them. They are forgotten when the store is
// closed. Those that were not needed yet are computed.
func (s *Store) CompactionHashes(ctx context.Context) ([]KVHash, error) {
	if err := s.compactions.compute(ctx, s.reads, func(int64) bool { return true }); err != nil {
		return nil, err
	}
	return s.compactions.all(), nil
}

// compute computes the hashes of the waiting compactions that are
// wanted.
func (c *compactions) compute(ctx context.Context, reads source, wanted func(rev int64) bool) error {
	for {
		next, snapshot := c.pin(reads, wanted)
		if snapshot == nil {
			return nil
		}
		// The snapshot may show a later head, but the keys are all there.
		view := PinnedView{View: View{reader: snapshot, head: Head{Current: next.rev, Compacted: next.before}}, snapshot: snapshot}
		h, err := view.hashCompaction(ctx, next.rev)
		if closeErr := view.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("hash the keys at compaction %d: %w", next.rev, err)
		}
		c.settle(h)
	}
}

// hashCompaction is the hash of a compaction at rev of what the view has.
func (v *PinnedView) hashCompaction(ctx context.Context, rev int64) (KVHash, error) {
	keptAt, err := v.keptByCompaction(ctx, rev)
	if err != nil {
		return KVHash{}, err
	}
	hash := newHasher(v)
	if err := hash.addHistory(ctx, rev, keptAt); err != nil {
		return KVHash{}, err
	}
	return KVHash{Hash: hash.sum, Revision: rev, Compacted: v.head.Compacted}, nil
}

// keptByCompaction is keptAt for the hash of a compaction. It differs where no
// key is left: a deletion at the very revision is a change to keep, too.
func (v *PinnedView) keptByCompaction(ctx context.Context, rev int64) (_ int64, err error) {
	history, err := v.openHistory(ctx, rev, rev)
	if err != nil {
		return 0, err
	}
	defer func() { err = closeIter(history.it, err) }()
	for {
		change, ok, err := history.next()
		if err != nil {
			return 0, err
		}
		if !ok {
			return v.keptAt(ctx, rev)
		}
		if change.kind == kindTombstone {
			return rev, nil
		}
	}
}

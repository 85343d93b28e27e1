package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hasher hashes changes in the form in which etcd stores them: in a bucket
// named "key", under their revision, as encoded KeyValues (etcd's
// server/storage/mvcc/revision.go and hash.go).
//
// etcd has them in the order of the hash, that of their revisions. Here they
// lie in the order of the keys, and to look each up costs many times what
// reading them in passing does. So they are hashed one by one as they come, and
// the hashes put together in order, which a CRC allows. What is noted of each
// change is bounded: of a long history a portion is hashed at a time.
type hasher struct {
	view    *PinnedView
	portion int // how many changes are noted at most
	sum     uint32
	joiner  crcJoiner
	buf     []byte
}

// hashPortion takes 24 MiB.
const hashPortion = 1 << 20

func newHasher(v *PinnedView) *hasher {
	return &hasher{view: v, portion: hashPortion, sum: crc32.Checksum([]byte("key"), castagnoli), joiner: newCRCJoiner(crc32.Castagnoli)}
}

// hashedChange is the hash of one change.
type hashedChange struct {
	rev  Revision
	sum  uint32
	size uint32
}

func compareRevisions(a, b Revision) int {
	return cmp.Or(cmp.Compare(a.Main, b.Main), cmp.Compare(a.Sub, b.Sub))
}

// addHistory adds, in the order in which they were made, the changes after the
// compacted revision and up to rev, and of the older ones those that still give
// a key its value at keptAt.
func (h *hasher) addHistory(ctx context.Context, rev, keptAt int64) error {
	from, last := Revision{Main: 1}, false
	for !last {
		to := newestAt(rev)
		end, err := h.endOfPortion(ctx, from, rev)
		if err != nil {
			return err
		}
		if last = end == nil; !last {
			to = *end
		}
		changes, err := h.changes(ctx, from, to, keptAt)
		if err != nil {
			return err
		}
		slices.SortFunc(changes, func(a, b hashedChange) int { return compareRevisions(a.rev, b.rev) })
		for _, change := range changes {
			h.sum = h.joiner.join(h.sum, change.sum, change.size)
		}
		from = Revision{Main: to.Main, Sub: to.Sub + 1}
	}
	return nil
}

// endOfPortion is the last change of a portion that begins at from; nil when
// everything up to rev is in it.
func (h *hasher) endOfPortion(ctx context.Context, from Revision, rev int64) (_ *Revision, err error) {
	history, err := h.view.openHistory(ctx, from.Main, rev)
	if err != nil {
		return nil, err
	}
	defer func() { err = closeIter(history.it, err) }()
	for n := 0; ; {
		change, ok, err := history.next()
		if err != nil || !ok {
			return nil, err
		}
		if compareRevisions(change.rev, from) < 0 {
			continue
		}
		if n++; n == h.portion {
			return &change.rev, nil
		}
	}
}

// changes hashes those in [from, to], in no order.
func (h *hasher) changes(ctx context.Context, from, to Revision, keptAt int64) (changes []hashedChange, err error) {
	it, err := h.view.reader.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: []byte{versionPrefix}, UpperBound: []byte{versionPrefix + 1}})
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	defer func() { err = closeIter(it, err) }()
	var key []byte // encoded; of the versions that are read
	found := false // its version at keptAt, or the one before
	compacted := h.view.head.Compacted
	steps := 0
	for valid := it.First(); valid; valid = it.Next() {
		if steps++; steps%ctxCheckInterval == 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("read versions: %w", ctx.Err())
		}
		k := it.Key()
		n := split(k)
		if !bytes.Equal(k[:n], key) {
			key, found = append(key[:0], k[:n]...), false
		}
		rev, err := decodeSuffix(k[n:])
		if err != nil {
			return nil, err
		}
		newest := !found && rev.Main <= keptAt
		found = found || newest
		if compareRevisions(rev, from) < 0 || compareRevisions(rev, to) > 0 {
			continue
		}
		raw, err := it.ValueAndErr()
		if err != nil {
			return nil, fmt.Errorf("read versions: %w", err)
		}
		if rev.Main > compacted || newest && !isTombstone(key, raw) {
			changes = append(changes, h.change(rev, key, raw))
		}
	}
	return changes, nil
}

// isTombstone tells whether a version, under an encoded key, is a deletion. A
// snapshot whose revision was bumped by etcdutl has a put of nothing, under the
// empty key, which nobody else can use.
func isTombstone(key, raw []byte) bool { return len(raw) == 0 && len(userKey(key)) > 0 }

// change hashes what a change wrote.
func (h *hasher) change(rev Revision, key, raw []byte) hashedChange {
	b := binary.BigEndian.AppendUint64(h.buf[:0], uint64(rev.Main))
	b = append(b, '_')
	b = binary.BigEndian.AppendUint64(b, uint64(rev.Sub))
	if isTombstone(key, raw) {
		b = append(b, 't')
		b = appendBytes(b, fieldKey, userKey(key))
	}
	h.buf = b
	sum := crc32.Update(crc32.Update(0, castagnoli, b), castagnoli, raw)
	return hashedChange{rev: rev, sum: sum, size: uint32(len(b) + len(raw))} //nolint:gosec // the largest request is far below
}

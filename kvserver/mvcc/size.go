package mvcc

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Two totals give the bytes in use: what was ever written, which is part of
// every Commit, and what scrubbing has removed of it, which is part of every
// ScrubStep. The two run beside each other, so each writes only its own.
const (
	metaWritten = "written" // int64
	metaRemoved = "removed" // int64
)

// versionSize is what one version of a key takes with its history record, as
// keys and values are handed to Pebble.
func versionSize(key []byte, valueLen int) int64 {
	return int64(prefixLen(key) + suffixLen + valueLen + historySize(key))
}

func historySize(key []byte) int { return 1 + suffixLen + 1 + len(key) }

// InUse is how many bytes the store's keys and values have: every version with
// its history record, what the owner has charged for its own keys, and nothing
// for what was scrubbed. It neither counts what Pebble needs besides nor
// profits from its compression; it costs nothing to ask.
func (s *Store) InUse() int64 { return max(s.written.Load()-s.removed.Load(), 0) }

// Charge adds bytes, which may be negative, to what the owner has charged, in
// a batch of its own that the caller applies at once. Within a step use
// Writer.Charge.
func (s *Store) Charge(batch *pebble.Batch, bytes int64) error {
	return putTotal(batch, metaWritten, s.written.Add(bytes))
}

// Charge adds bytes, which may be negative, to what the store has in use, for
// keys of the owner in the Batch.
func (w *Writer) Charge(bytes int64) { w.bytes += bytes }

func putTotal(batch *pebble.Batch, name string, total int64) error {
	if err := batch.Set(metaKey(name), binary.BigEndian.AppendUint64(nil, uint64(total)), nil); err != nil {
		return fmt.Errorf("write how many bytes are in use: %w", err)
	}
	return nil
}

// loadSize reads the totals. A store that has none, because it was made before
// there were any, is counted once.
func loadSize(db *pebble.DB) (written, removed int64, err error) {
	b, err := readMeta(db, metaWritten, 8)
	if err != nil {
		return 0, 0, err
	}
	if b == nil {
		written, err = countBytes(db)
		return written, 0, err
	}
	written = int64(binary.BigEndian.Uint64(b))
	if b, err = readMeta(db, metaRemoved, 8); err == nil && b != nil {
		removed = int64(binary.BigEndian.Uint64(b))
	}
	return written, removed, err
}

// countBytes adds up all keys and values but those of this package about
// itself.
func countBytes(r pebble.Reader) (total int64, err error) {
	it, err := r.NewIter(nil)
	if err != nil {
		return 0, fmt.Errorf("count the bytes in use: %w", err)
	}
	defer func() { err = closeIter(it, err) }()
	for valid := it.First(); valid; valid = it.Next() {
		if first := it.Key()[0]; first == metaPrefix || first == tallyPrefix {
			continue
		}
		value := it.LazyValue()
		total += int64(len(it.Key()) + value.Len())
	}
	return total, nil
}

package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// First bytes of the keys this package stores. Everything else is free for
// the owner of the store. On disk: do not change.
const (
	versionPrefix = 'k' // 'k' escaped(user key) 0x00 0x01 ^main ^sub -> KeyValue, or nothing for a tombstone
	historyPrefix = 'r' // 'r' main sub -> kind, user key
	metaPrefix    = 'm' // 'm' name -> see meta.go
	tallyPrefix   = 't' // 't' first user key of an interval -> how many keys exist in it, see tally.go
)

const (
	escapeByte     = 0x00
	escapedZero    = 0xff // 0x00 in a user key is stored as 0x00 0xff
	terminatorByte = 0x01 // 0x00 0x01 ends a user key, and sorts before any escaped byte

	suffixLen = 12 // ^main (8), ^sub (4)
)

// Revision is the position of one change: the transaction, and the change's
// place inside it.
type Revision struct {
	Main int64
	Sub  uint32
}

// appendPrefix appends the part of a version key that all versions of key
// share. Bytewise order of the result is the order of the user keys.
func appendPrefix(dst, key []byte) []byte {
	dst = append(dst, versionPrefix)
	for {
		i := bytes.IndexByte(key, escapeByte)
		if i < 0 {
			break
		}
		dst = append(dst, key[:i]...)
		dst = append(dst, escapeByte, escapedZero)
		key = key[i+1:]
	}
	dst = append(dst, key...)
	return append(dst, escapeByte, terminatorByte)
}

// userKey is the inverse of appendPrefix; it may return a part of prefix.
func userKey(prefix []byte) []byte {
	escaped := prefix[1 : len(prefix)-2]
	if bytes.IndexByte(escaped, escapeByte) < 0 {
		return escaped
	}
	return bytes.ReplaceAll(escaped, []byte{escapeByte, escapedZero}, []byte{escapeByte})
}

// prefixLen is the number of bytes appendPrefix appends.
func prefixLen(key []byte) int {
	return 1 + len(key) + bytes.Count(key, []byte{escapeByte}) + 2
}

// appendSuffix appends a revision such that newer versions sort first.
func appendSuffix(dst []byte, rev Revision) []byte {
	dst = binary.BigEndian.AppendUint64(dst, ^uint64(rev.Main))
	return binary.BigEndian.AppendUint32(dst, ^rev.Sub)
}

// newestAt is the suffix from which a forward scan finds the newest version
// whose main revision is at most main.
func newestAt(main int64) Revision { return Revision{Main: main, Sub: math.MaxUint32} }

func decodeSuffix(suffix []byte) (Revision, error) {
	if len(suffix) != suffixLen {
		return Revision{}, fmt.Errorf("%w: version suffix of %d bytes", ErrDamaged, len(suffix))
	}
	return Revision{
		Main: int64(^binary.BigEndian.Uint64(suffix)),
		Sub:  ^binary.BigEndian.Uint32(suffix[8:]),
	}, nil
}

// bounds gives the version keys that hold the user keys in [key, end), as
// etcd reads an interval: an end of "\x00" means no upper end.
func bounds(key, end []byte) (lower, upper []byte) {
	lower = appendPrefix(make([]byte, 0, prefixLen(key)), key)
	if isUnbounded(end) {
		return lower, []byte{versionPrefix + 1}
	}
	return lower, appendPrefix(make([]byte, 0, prefixLen(end)), end)
}

func isUnbounded(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// A history record says what happened at a revision. The kinds are stored:
// do not change them.
const (
	kindCreate    = 'c' // put of a key that did not exist
	kindUpdate    = 'u' // put of a key that existed
	kindTombstone = 'd'
)

func appendHistoryKey(dst []byte, rev Revision) []byte {
	dst = append(dst, historyPrefix)
	dst = binary.BigEndian.AppendUint64(dst, uint64(rev.Main))
	return binary.BigEndian.AppendUint32(dst, rev.Sub)
}

func decodeHistory(key, value []byte) (rev Revision, kind byte, userKey []byte, err error) {
	if len(key) != 1+suffixLen || len(value) == 0 {
		return Revision{}, 0, nil, fmt.Errorf("%w: history record with a key of %d and a value of %d bytes", ErrDamaged, len(key), len(value))
	}
	rev = Revision{
		Main: int64(binary.BigEndian.Uint64(key[1:])),
		Sub:  binary.BigEndian.Uint32(key[9:]),
	}
	return rev, value[0], value[1:], nil
}

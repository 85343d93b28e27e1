package mvcc

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
)

// comparerName is stored in every table. A change to the order or to the
// split needs a new name.
const comparerName = "muster.mvcc.v1"

// newComparer orders keys bytewise and tells Pebble where the version of a key
// begins, which gives bloom filters by user key and cheap skipping of old
// versions.
//
// Bytewise order and the split agree without further care: a prefix ends with
// the first terminator, so no prefix that has one is the beginning of another.
func newComparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Split = split
	c.ImmediateSuccessor = immediateSuccessor
	c.Name = comparerName
	return &c
}

// split returns the length of key up to and including the first terminator,
// or the whole length when it has none.
func split(key []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(key[at:], escapeByte)
		if i < 0 || at+i+1 >= len(key) {
			return len(key)
		}
		if key[at+i+1] == terminatorByte {
			return at + i + 2
		}
		at += i + 1
	}
}

// immediateSuccessor appends the smallest prefix that is larger than prefix.
// Whatever extends a terminated prefix is a version of it, not a prefix, so
// its successor has a larger last byte.
func immediateSuccessor(dst, prefix []byte) []byte {
	dst = append(dst, prefix...)
	if n := len(prefix); n >= 2 && prefix[n-2] == escapeByte && prefix[n-1] == terminatorByte {
		dst[len(dst)-1]++
		return dst
	}
	return append(dst, 0)
}

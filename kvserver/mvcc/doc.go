// Package mvcc is the versioned key-value store of a member: every write gets
// a revision, every past revision above the compacted one stays readable.
//
// The semantics are those of etcd 3.7 (etcdserverpb.RangeRequest and friends);
// the layout is ours and is explained in DESIGN.md. The package knows no
// network and no clock, and the same calls on the same store always give the
// same results.
package mvcc

import "errors"

var (
	// ErrCompacted is returned when a revision below the compacted one is
	// read, or a revision at or below it is compacted.
	ErrCompacted = errors.New("mvcc: required revision has been compacted")

	// ErrFutureRev is returned when a revision above the current one is read
	// or compacted.
	ErrFutureRev = errors.New("mvcc: required revision is a future revision")

	// ErrFormat is returned when a directory holds a store this build cannot
	// read: one written by a newer version, or no store of ours at all.
	ErrFormat = errors.New("mvcc: unsupported store format")

	// ErrDamaged is returned when stored bytes do not decode. The member must
	// not go on; its data has to be replaced from another member.
	ErrDamaged = errors.New("mvcc: stored data is damaged")
)

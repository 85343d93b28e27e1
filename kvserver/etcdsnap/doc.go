// Package etcdsnap writes and reads snapshots in etcd's own format, so that
// what musterd has saved can be restored by etcd and the other way round.
//
// The format is a bbolt database with etcd's buckets (etcd's
// server/storage/schema), followed by its SHA-256. What "etcdctl snapshot
// save" stores is exactly that.
//
// A snapshot holds everything the members of a cluster agree on: the history
// of the keys as far as it is not compacted, leases, alarms, users and roles,
// the member list, and how far in the log all this is. Reading one leaves out
// the member list and the place in the log: both belong to the cluster it was
// taken from.
package etcdsnap

import "errors"

var (
	// ErrIncomplete is returned for a file that does not end with its checksum:
	// it is truncated, or was not saved by "etcdctl snapshot save".
	ErrIncomplete = errors.New("the snapshot has no checksum at its end")

	// ErrChecksum is returned for a file whose content is not what was saved.
	ErrChecksum = errors.New("the snapshot's checksum does not match its content")

	// ErrForeign is returned for a file that is intact but no snapshot this
	// version can read.
	ErrForeign = errors.New("the file is not a snapshot of etcd's that this version can read")

	// ErrNoRoom is returned when the disk has too little space for a snapshot
	// to be made.
	ErrNoRoom = errors.New("there is too little space on the disk to make a snapshot")
)

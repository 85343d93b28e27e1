package machine

import (
	"errors"
	"slices"

	"muster/kvserver/machine/auth"
	"muster/kvserver/mvcc"
)

// What a request can be answered with instead of a response. The texts are
// etcd's (api/v3rpc/rpctypes/error.go) where etcd has one.
var (
	// ErrCompacted is returned when a revision that was compacted is asked for.
	ErrCompacted = mvcc.ErrCompacted
	// ErrFutureRev is returned when a revision that does not exist yet is asked for.
	ErrFutureRev = mvcc.ErrFutureRev
	// ErrKeyNotFound is returned when a put is to keep the value or the lease
	// of a key that does not exist, and for an operation of a transaction that
	// is empty.
	ErrKeyNotFound = errors.New("etcdserver: key not found")
	// ErrLeaseNotFound is returned when a request names a lease that does not exist.
	ErrLeaseNotFound = errors.New("etcdserver: requested lease not found")
	// ErrLeaseExists is returned when a lease is granted under an ID that is taken.
	ErrLeaseExists = errors.New("etcdserver: lease already exists")
	// ErrLeaseTTLTooLarge is returned when a lease is granted for more than
	// 9,000,000,000 seconds.
	ErrLeaseTTLTooLarge = errors.New("etcdserver: too large lease TTL")
	// ErrMemberNotFound is returned when the attributes of an unknown member are set.
	ErrMemberNotFound = errors.New("etcdserver: member not found")
	// ErrNoSpace is returned for puts while the alarm NOSPACE is raised.
	ErrNoSpace = errors.New("etcdserver: mvcc: database space exceeded")
	// ErrCorrupt is returned for every request on keys while the alarm CORRUPT is raised.
	ErrCorrupt = errors.New("etcdserver: corrupt cluster")
	// ErrUnknownRequest is returned for a request that this version cannot carry out.
	ErrUnknownRequest = errors.New("etcdserver: unknown request")
)

// What the Check functions return.
var (
	// ErrEmptyKey is returned when a key is missing.
	ErrEmptyKey = errors.New("etcdserver: key is not provided")
	// ErrValueProvided is returned when a put that keeps the value has one.
	ErrValueProvided = errors.New("etcdserver: value is provided")
	// ErrLeaseProvided is returned when a put that keeps the lease has one.
	ErrLeaseProvided = errors.New("etcdserver: lease is provided")
	// ErrTooManyOps is returned when a branch of a transaction is too long.
	ErrTooManyOps = errors.New("etcdserver: too many operations in txn request")
	// ErrDuplicateKey is returned when a transaction puts a key twice, or puts
	// a key that it deletes.
	ErrDuplicateKey = errors.New("etcdserver: duplicate key given in txn request")
	// ErrInvalidSort is returned for a sort order or target that does not exist.
	ErrInvalidSort = errors.New("etcdserver: invalid sort option")
)

// What the machine itself returns.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("machine: the store is closed")
	// ErrNotReadOnly is returned when ReadTxn is given a transaction that is
	// not read-only.
	ErrNotReadOnly = errors.New("machine: the transaction is not read-only")
	// ErrNotNew is returned when members are seeded into a store that already
	// holds a cluster.
	ErrNotNew = errors.New("machine: the store already holds a cluster")
	// ErrBadBatch is returned when a payload is not a batch this version can
	// read.
	ErrBadBatch = errors.New("machine: malformed batch")
)

// errHalfWritten is returned when a transaction failed after it was checked:
// some of its operations may have been carried out, so no reason makes it the
// outcome of the request.
var errHalfWritten = errors.New("machine: a transaction failed after it was checked")

// requestErrors are, with those of package auth, the outcomes of a request. Any other error while applying
// is a failure of this member, which must stop.
var requestErrors = [...]error{
	ErrCompacted,
	ErrFutureRev,
	ErrKeyNotFound,
	ErrLeaseNotFound,
	ErrLeaseExists,
	ErrLeaseTTLTooLarge,
	ErrMemberNotFound,
	ErrNoSpace,
	ErrCorrupt,
	ErrUnknownRequest,
}

func isRequestError(err error) bool {
	if errors.Is(err, errHalfWritten) {
		return false
	}
	for _, e := range requestErrors {
		if errors.Is(err, e) {
			return true
		}
	}
	return slices.ContainsFunc(auth.Errors(), func(e error) bool { return errors.Is(err, e) })
}

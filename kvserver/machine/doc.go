// Package machine is the replicated state machine of a member: it applies the
// entries of the raft log, in order, to the multi-version store and to the
// few other things the members agree on: the leases, users and their permissions,
// the member list and the alarms.
//
// It is deterministic. Entries decide everything; no clock, no network and no
// random number is consulted, so all members that applied the same entries
// answer alike, whatever the groups in which the entries arrived.
//
// Everything an Apply changes, the applied index included, goes to disk as one
// atomic step. The store has no write-ahead log of its own: after a crash it
// is as it was after some earlier Apply, and the raft log supplies the rest.
package machine

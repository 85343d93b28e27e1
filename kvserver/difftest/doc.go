// Package difftest compares musterd with etcd. Its tests run both in this
// process, each a cluster of one member, give them the same requests, and ask
// that every field of every answer, every error and every watch event is the
// same. What may differ is listed in one table, exemptions_test.go, with the
// reason.
//
// The requests are drawn from a seed, by a generator that knows from etcd's
// answers which revisions, leases, users and watchers there are. A request is a
// value that does not depend on how it came about, so a sequence that fails is
// shortened by leaving requests out, and what is left becomes a case of
// regression_test.go.
//
//	go test ./kvserver/difftest -run TestRandomRequests -seeds 50 -requests 1000000
//
// It is a package of its own, and not a part of kvserver's tests, because it
// uses musterd as any client does: over the wire.
package difftest

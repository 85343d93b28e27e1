package difftest

import (
	"fmt"
	"math"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// keyRequests draws what the KV service is asked.
type keyRequests struct{ *generator }

func (g keyRequests) put() step {
	if g.oneIn(3000) {
		// What is too large for etcd, and for gRPC.
		size := pick(g.generator, 1536*1024-10_000, 1536*1024-60, 1536*1024+1, 3<<20)
		return g.by("KV.Put", &pb.PutRequest{Key: g.key(), Value: []byte(strings.Repeat("x", size))})
	}
	return g.by("KV.Put", g.putRequest(true))
}

// putRequest may keep the value or the lease of a key, unless the key may be
// deleted by the same transaction.
func (g keyRequests) putRequest(mayKeep bool) *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: g.value(), PrevKv: g.oneIn(3)}
	if len(g.leases) > 0 && g.oneIn(4) || g.oneIn(100) {
		r.Lease = g.leaseID()
	}
	if mayKeep && g.oneIn(16) {
		r.IgnoreValue = true
		if !g.oneIn(6) {
			r.Value = nil
		}
	}
	if mayKeep && g.oneIn(16) {
		r.IgnoreLease = true
		if !g.oneIn(6) {
			r.Lease = 0
		}
	}
	return r
}

func (g keyRequests) rangeRequest() step { return g.by("KV.Range", g.aRange()) }

func (g keyRequests) aRange() *pb.RangeRequest {
	r := &pb.RangeRequest{Serializable: g.oneIn(5), KeysOnly: g.oneIn(6), CountOnly: g.oneIn(8)}
	r.Key, r.RangeEnd = g.interval()
	if g.oneIn(5) {
		r.Revision = g.pastRevision()
	}
	if g.oneIn(3) {
		r.Limit = pick[int64](g.generator, 1, 1, 2, 3, 5, 12, 40, -1, math.MaxInt64)
	}
	if g.oneIn(3) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if g.oneIn(6) {
		for _, bound := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			if g.oneIn(3) {
				*bound = g.revision - g.Int64N(40)
			}
			if g.oneIn(30) {
				*bound = pick[int64](g.generator, -1, math.MaxInt64, math.MinInt64)
			}
		}
	}
	if g.oneIn(100) {
		r.SortOrder = pick[pb.RangeRequest_SortOrder](g.generator, 3, -1, 99)
	}
	if g.oneIn(100) {
		r.SortTarget = pick[pb.RangeRequest_SortTarget](g.generator, 5, -1, 99)
	}
	return r
}

func (g keyRequests) rangeStream() step {
	r := g.aRange()
	if !g.oneIn(5) {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(g.IntN(2)), pb.RangeRequest_KEY
		r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
	}
	return g.by("KV.RangeStream", r)
}

func (g keyRequests) deleteRange() step { return g.by("KV.DeleteRange", g.aDelete()) }

func (g keyRequests) aDelete() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{PrevKv: g.oneIn(3)}
	r.Key, r.RangeEnd = g.interval()
	if len(r.RangeEnd) > 0 && g.oneIn(2) { // or nothing would grow
		r.RangeEnd = nil
	}
	return r
}

func (g keyRequests) txn() step {
	switch g.IntN(400) {
	case 0:
		return g.by("KV.Txn", &pb.TxnRequest{Success: many(128)})
	case 1:
		return g.by("KV.Txn", &pb.TxnRequest{Failure: many(129)})
	case 2:
		return g.by("KV.Txn", &pb.TxnRequest{Success: append(many(100+g.IntN(30)), nest(&pb.TxnRequest{Success: many(20 + g.IntN(20))}))})
	case 3:
		return g.by("KV.Txn", &pb.TxnRequest{Compare: make129(g.aCompare())})
	}
	// etcd stops the process when an operation fails in the midst of a
	// transaction that writes, as a put does that keeps the value of a key
	// which the same transaction has deleted.
	return g.by("KV.Txn", g.aTxn(1, g.oneIn(2), g.oneIn(4)))
}

const deepestTxn = 3

// aTxn has deletions, or puts that keep something, but not both; or ranges
// only. Mostly no branch has a key put twice.
func (g keyRequests) aTxn(depth int, deletes, reads bool) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.aCompare())
	}
	r.Success, r.Failure = g.ops(depth, deletes, reads), g.ops(depth, deletes, reads)
	return r
}

func (g keyRequests) ops(depth int, deletes, reads bool) (ops []*pb.RequestOp) {
	var put []string
	for range g.IntN(5) {
		op := &pb.RequestOp{}
		switch n := g.IntN(30); {
		case n == 0 && g.oneIn(3):
			// no operation at all
		case reads && depth == 1 || n < 10:
			op.Request = &pb.RequestOp_RequestRange{RequestRange: g.aRange()}
		case reads || n < 15 && depth < deepestTxn:
			op = nest(g.aTxn(depth+1, deletes, reads && depth < deepestTxn))
		case n < 20 && deletes:
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.aDelete()}
		default:
			r := g.putRequest(!deletes)
			for slices.Contains(put, string(r.GetKey())) && !g.oneIn(10) {
				r.Key = g.key()
			}
			put = append(put, string(r.GetKey()))
			op.Request = &pb.RequestOp_RequestPut{RequestPut: r}
		}
		ops = append(ops, op)
	}
	return ops
}

func (g keyRequests) aCompare() *pb.Compare {
	c := &pb.Compare{Key: g.key(), Result: pb.Compare_CompareResult(g.IntN(4)), Target: pb.Compare_CompareTarget(g.IntN(5))}
	if g.oneIn(4) {
		c.Key, c.RangeEnd = g.interval()
	}
	revision := g.revision - g.Int64N(20)
	switch target := c.Target; {
	case g.oneIn(20): // nothing to compare with
	case target == pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case target == pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: pick(g.generator, 0, revision)}
	case target == pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: pick(g.generator, 0, revision)}
	case target == pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: pick[int64](g.generator, 0, 1, 2, 3, -1)}
	case target == pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: pick(g.generator, 0, g.leaseID())}
	}
	if g.oneIn(60) {
		c.Target = pick[pb.Compare_CompareTarget](g.generator, 0, 1, 2, 3, 4, 5, -1) // of another kind, or of none
	}
	if g.oneIn(100) {
		c.Result = pick[pb.Compare_CompareResult](g.generator, 4, -1)
	}
	return c
}

func nest(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func many(n int) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, n)
	for i := range ops {
		r := &pb.RangeRequest{Key: fmt.Append(nil, "k/", i), CountOnly: true}
		ops[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
	}
	return ops
}

func make129(c *pb.Compare) []*pb.Compare {
	list := make([]*pb.Compare, 129)
	for i := range list {
		list[i] = c
	}
	return list
}

func (g keyRequests) compaction() step {
	r := &pb.CompactionRequest{Physical: !g.oneIn(3)}
	switch g.IntN(8) {
	case 0:
		r.Revision = g.pastRevision()
	case 1:
		if r.Revision = g.revision; !g.oneIn(int(1 + g.depth/300)) {
			r.Revision = g.compacted + 1
		}
	default:
		// Often, and little at a time: most of the history is to stay.
		r.Revision = g.compacted + g.Int64N(max(1, min(g.depth, g.revision-g.compacted)/4))
		if g.revision-r.Revision > g.depth {
			r.Revision = g.revision - g.depth + g.Int64N(g.depth/2)
		}
	}
	return g.by("KV.Compact", r)
}

package machine

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	randomOps  = flag.Int("machine.ops", 2500, "requests per random test")
	randomSeed = flag.Uint64("machine.seed", 0, "seed of the random tests; 0 picks one")
)

// generator makes random requests on few keys, so that they meet. What it
// makes is what passes the Check functions.
type generator struct {
	*rand.Rand
	revision, compacted int64 // of the store, as far as the caller tells
}

func newGenerator(t testing.TB) *generator {
	t.Helper()
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -machine.seed=%d -machine.ops=%d", seed, *randomOps)
	return &generator{Rand: rand.New(rand.NewPCG(seed, 1)), revision: 1, compacted: -1}
}

func (g *generator) key() []byte {
	alphabet := []byte{0x00, 'a', 'b', 0xff}
	key := make([]byte, 1+g.IntN(2))
	for i := range key {
		key[i] = alphabet[g.IntN(len(alphabet))]
	}
	return key
}

func (g *generator) end() []byte {
	switch g.IntN(4) {
	case 0:
		return []byte{0}
	case 1:
		return g.key()
	default:
		return nil
	}
}

func (g *generator) value() []byte { return bytes.Repeat([]byte{byte('0' + g.IntN(4))}, g.IntN(3)) }

func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func (g *generator) request() *pb.InternalRaftRequest {
	switch n := g.IntN(100); {
	case n < 35:
		return &pb.InternalRaftRequest{Put: g.put(&touched{})}
	case n < 50:
		return &pb.InternalRaftRequest{DeleteRange: g.deleteRange(&touched{})}
	case n < 85:
		return &pb.InternalRaftRequest{Txn: g.txn(3, &touched{}, false)}
	case n < 97:
		return g.lease()
	default:
		rev := max(g.compacted, g.revision-20) - 2 + g.Int64N(20)
		return &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}}
	}
}

// lease makes a request on one of four leases, or on none.
func (g *generator) lease() *pb.InternalRaftRequest {
	id := g.Int64N(5)
	switch g.IntN(10) {
	case 0, 1, 2, 3, 4:
		r := &pb.LeaseGrantRequest{ID: id, TTL: 1 + g.Int64N(100)}
		if g.oneIn(8) {
			r.TTL = maxLeaseTTL + g.Int64N(2)
		}
		return &pb.InternalRaftRequest{LeaseGrant: r}
	case 5, 6:
		return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}
	default:
		r := &pb.LeaseCheckpointRequest{}
		for range g.IntN(3) {
			r.Checkpoints = append(r.Checkpoints, &pb.LeaseCheckpoint{ID: g.Int64N(5), Remaining_TTL: g.Int64N(50)})
		}
		return &pb.InternalRaftRequest{LeaseCheckpoint: r}
	}
}

// put returns nil when the key was changed already.
func (g *generator) put(changed *touched) *pb.PutRequest {
	p := &pb.PutRequest{Key: g.key(), PrevKv: g.oneIn(3), IgnoreValue: g.oneIn(5), IgnoreLease: g.oneIn(6)}
	if !changed.add(p.Key, nil) {
		return nil
	}
	if !p.IgnoreValue {
		p.Value = g.value()
	}
	if !p.IgnoreLease && g.oneIn(4) {
		p.Lease = 1 + g.Int64N(4) // which may not exist
	}
	return p
}

func (g *generator) deleteRange(changed *touched) *pb.DeleteRangeRequest {
	d := &pb.DeleteRangeRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.oneIn(3)}
	if !changed.add(d.Key, d.RangeEnd) {
		return nil
	}
	return d
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key:        g.key(),
		RangeEnd:   g.end(),
		KeysOnly:   g.oneIn(5),
		CountOnly:  g.oneIn(6),
		Limit:      g.Int64N(5),
		SortOrder:  pb.RangeRequest_SortOrder(g.IntN(3)),
		SortTarget: pb.RangeRequest_SortTarget(g.IntN(5)),
	}
	if g.oneIn(4) {
		r.Revision = g.compacted - 2 + g.Int64N(g.revision-g.compacted+4)
	}
	return r
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{
		Key:    g.key(),
		Result: pb.Compare_CompareResult(g.IntN(4)),
		Target: pb.Compare_CompareTarget(g.IntN(5)),
	}
	if g.oneIn(3) {
		c.RangeEnd = g.end()
	}
	small, rev := g.Int64N(3), max(0, g.revision-g.Int64N(10))
	switch c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: small}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: rev}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: rev}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: small}
	}
	if g.oneIn(10) {
		c.TargetUnion = nil
	}
	return c
}

func (g *generator) txn(depth int, changed *touched, readOnly bool) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	for range g.IntN(4) {
		if op := g.op(depth, changed, readOnly); op != nil {
			r.Success = append(r.Success, op)
		}
	}
	for range g.IntN(4) {
		if op := g.op(depth, changed, readOnly); op != nil {
			r.Failure = append(r.Failure, op)
		}
	}
	return r
}

func (g *generator) op(depth int, changed *touched, readOnly bool) *pb.RequestOp {
	n := g.IntN(10)
	switch {
	case readOnly || n < 3:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}}
	case n < 6:
		if p := g.put(changed); p != nil {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}}
		}
	case n < 8:
		if d := g.deleteRange(changed); d != nil {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: d}}
		}
	case depth > 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth-1, changed, false)}}
	}
	return nil
}

// touched are the intervals of keys that a request changes.
type touched [][2][]byte

// add tells whether the interval is apart from all others, and notes it.
func (t *touched) add(key, end []byte) bool {
	switch {
	case len(end) == 0:
		end = append(bytes.Clone(key), 0)
	case bytes.Equal(end, []byte{0}):
		end = bytes.Repeat([]byte{0xff}, 9)
	}
	for _, other := range *t {
		if bytes.Compare(key, other[1]) < 0 && bytes.Compare(other[0], end) < 0 {
			return false
		}
	}
	*t = append(*t, [2][]byte{key, end})
	return true
}

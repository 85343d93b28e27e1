package difftest

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// generator draws steps. What it knows of the servers it has from etcd's
// answers, so that its requests are about what is there, or just was.
type generator struct {
	*rand.Rand
	weights []weight
	total   int
	queue   []step // what has to come next

	depth               int64 // how much history is kept
	revision, compacted int64
	compactions         []int64
	leases              []int64
	auth                authKnowledge
	concurrency         concurrencyKnowledge
	alarms              map[pb.AlarmType]int // steps until it is cleared
	streams             map[int]bool
	nextStream          int
}

// weight is how often one kind of steps is drawn.
type weight struct {
	n    int
	draw func() step
}

// everything is the mix of all requests. Some put others into the queue.
func everything(g *generator) []weight {
	keys, auth, others := keyRequests{g}, authRequests{g}, otherRequests{g}
	return []weight{
		{220, keys.put},
		{170, keys.rangeRequest},
		{60, keys.rangeStream},
		{80, keys.deleteRange},
		{190, keys.txn},
		{8, keys.compaction},
		{60, others.lease},
		{45, others.watch},
		{60, auth.request},
		{12, auth.toggle},
		{12, others.lockOrElect},
		{8, others.maintenance},
		{8, others.hashKV},
		{1, others.alarm},
	}
}

// writes is a history to be hashed.
func writes(g *generator) []weight {
	keys, others := keyRequests{g}, otherRequests{g}
	return []weight{
		{400, keys.put},
		{120, keys.deleteRange},
		{250, keys.txn},
		{30, others.lease},
		{8, keys.compaction},
		{30, others.hashKV},
	}
}

func newGenerator(seed uint64, mix func(*generator) []weight) *generator {
	g := &generator{
		Rand:     rand.New(rand.NewPCG(seed, 0)), //nolint:gosec // has to be repeatable
		revision: 1, alarms: map[pb.AlarmType]int{}, streams: map[int]bool{}, nextStream: 1,
		auth: newAuthKnowledge(), concurrency: newConcurrencyKnowledge(),
	}
	// etcd shows a watcher a thousand revisions of the past at a time.
	g.depth = pick[int64](g, 50, 300, 300, 3000)
	g.weights = mix(g)
	for _, w := range g.weights {
		g.total += w.n
	}
	return g
}

func (g *generator) next() step {
	g.tickAlarms()
	if len(g.queue) > 0 {
		s := g.queue[0]
		g.queue = g.queue[1:]
		return s
	}
	n := g.IntN(g.total)
	for _, w := range g.weights {
		if n -= w.n; n < 0 {
			return w.draw()
		}
	}
	panic("the weights have no such sum")
}

// oneIn is true once in n times.
func (g *generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) by(method string, request proto.Message) step {
	return call{g.user(), "etcdserverpb." + method, request}
}

// heed learns from what etcd has answered.
func (g *generator) heed(s step, a answer) {
	if response, ok := a.response.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		g.revision = max(g.revision, response.GetHeader().GetRevision())
	}
	switch s := s.(type) {
	case openStream:
		g.streams[s.stream] = true
	case closeStream:
		delete(g.streams, s.stream)
	case restart:
		clear(g.streams)
		clear(g.auth.tokens)
		for _, user := range slices.Sorted(maps.Keys(g.auth.passwords)) {
			authRequests{g}.relogin(user)
		}
	case login:
		if a.code == codes.OK {
			g.auth.tokens[s.user] = true
		}
	case keepAlive:
		authRequests{g}.heedRefusal(s.user, a)
	case call:
		authRequests{g}.heedRefusal(s.user, a)
		if a.code == codes.OK {
			g.heedCall(s.request)
			g.concurrency.heed(s.request, a.response)
		}
	}
}

func (g *generator) heedCall(request proto.Message) {
	switch r := request.(type) {
	case *pb.CompactionRequest:
		g.compacted = r.GetRevision()
		g.compactions = append(g.compactions, g.compacted)
	case *pb.LeaseGrantRequest:
		g.leases = append(g.leases, r.GetID())
	case *pb.LeaseRevokeRequest:
		g.leases = slices.DeleteFunc(g.leases, func(id int64) bool { return id == r.GetID() })
	case *pb.AlarmRequest:
		if r.GetAction() == pb.AlarmRequest_ACTIVATE && r.GetAlarm() != pb.AlarmType_NONE {
			g.alarms[r.GetAlarm()] = 10 + g.IntN(40)
		}
	default:
		authRequests{g}.heedAuth(request)
	}
}

var longKey = strings.Repeat("l", 5000)

// keys are few, so that they meet, and more than sort.Sort sorts stably.
var keys = func() []string {
	list := []string{
		"a", "a", "a", "b", "b", "c", "d", "e", "a\x00", "a\x00b", "ab", "abc", "b\xff", "b\xff\xff", "c/1", "c/2",
		"\x00", "\x01", "\xff", "\xff\xff", "\x80\xfe binary", "ключ", longKey, longKey + "2",
	}
	for c := 'a'; c <= 'z'; c++ {
		list = append(list, "k/"+string(c))
	}
	return list
}()

func (g *generator) key() []byte {
	if g.oneIn(300) {
		return nil
	}
	return []byte(pick(g, keys...))
}

// interval is a key and an end of one of the kinds there are.
func (g *generator) interval() (key, end []byte) {
	key = g.key()
	switch g.IntN(14) {
	case 0:
		return key, []byte{0} // from the key on
	case 1:
		return []byte{0}, []byte{0} // everything
	case 2:
		return []byte("k/"), []byte("k0")
	case 3, 4:
		return key, prefixEnd(key)
	case 5, 6, 7:
		return key, g.key() // may be the wrong way round, or empty
	case 8:
		return key, append(slices.Clone(key), 0) // the key alone
	case 9:
		return key, key // nothing
	case 10:
		return []byte("a"), []byte("z")
	default:
		return key, nil
	}
}

// prefixEnd is the end of all that begin with the prefix, as clients make it.
func prefixEnd(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// pastRevision is one to read at: mostly a good one, often just not.
func (g *generator) pastRevision() int64 {
	switch g.IntN(12) {
	case 0:
		return g.compacted + g.Int64N(3) - 1
	case 1:
		return g.revision + g.Int64N(3)
	case 2:
		return pick(g, -1, math.MinInt64, math.MaxInt64, 1, g.revision+1000)
	default:
		return g.compacted + g.Int64N(g.revision-g.compacted+1)
	}
}

func (g *generator) value() []byte {
	switch g.IntN(20) {
	case 0:
		return nil
	case 1:
		return []byte("\x00\xff\xfe binary")
	case 2:
		return []byte(strings.Repeat("v", g.IntN(300)))
	case 3:
		if g.oneIn(20) {
			return []byte(strings.Repeat("V", 10000+g.IntN(20000)))
		}
		fallthrough
	default:
		return []byte{byte('0' + g.IntN(5))}
	}
}

func (g *generator) leaseID() int64 {
	if len(g.leases) > 0 && !g.oneIn(20) {
		return pick(g, g.leases...)
	}
	return pick(g, leaseIDs...)
}

package difftest

import (
	"maps"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/protobuf/proto"
)

// concurrencyKnowledge is who has which lock, and who leads where. Whoever asks
// for what another one has would wait.
type concurrencyKnowledge struct {
	locks   map[string]held
	leaders map[string]*v3electionpb.LeaderKey
}

type held struct {
	key   []byte
	lease int64
}

func newConcurrencyKnowledge() concurrencyKnowledge {
	return concurrencyKnowledge{locks: map[string]held{}, leaders: map[string]*v3electionpb.LeaderKey{}}
}

func (k *concurrencyKnowledge) heed(request, response proto.Message) {
	switch r := request.(type) {
	case *v3lockpb.LockRequest:
		k.locks[string(r.GetName())] = held{response.(*v3lockpb.LockResponse).GetKey(), r.GetLease()}
	case *v3lockpb.UnlockRequest:
		maps.DeleteFunc(k.locks, func(_ string, h held) bool { return string(h.key) == string(r.GetKey()) })
	case *v3electionpb.CampaignRequest:
		k.leaders[string(r.GetName())] = response.(*v3electionpb.CampaignResponse).GetLeader()
	case *v3electionpb.ResignRequest:
		delete(k.leaders, string(r.GetLeader().GetName()))
	case *pb.LeaseRevokeRequest:
		maps.DeleteFunc(k.locks, func(_ string, h held) bool { return h.lease == r.GetID() })
		maps.DeleteFunc(k.leaders, func(_ string, l *v3electionpb.LeaderKey) bool { return l.GetLease() == r.GetID() })
	}
}

// lockOrElect asks for locks and elections that are free, while nothing can
// keep it from knowing which are.
func (g otherRequests) lockOrElect() step {
	if g.auth.enabled || len(g.alarms) > 0 || len(g.leases) == 0 {
		return g.lease()
	}
	by := func(method string, request proto.Message) step { return call{nobody, method, request} }
	lease := g.leaseID()
	if g.oneIn(2) {
		name := pick(g.generator, "locks/1", "locks/2")
		if lock, is := g.concurrency.locks[name]; is {
			return by("v3lockpb.Lock.Unlock", &v3lockpb.UnlockRequest{Key: lock.key})
		}
		if g.oneIn(8) {
			return by("v3lockpb.Lock.Unlock", &v3lockpb.UnlockRequest{Key: []byte("locks/none")})
		}
		return by("v3lockpb.Lock.Lock", &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
	}
	name := pick(g.generator, "elections/1", "elections/2")
	leader, is := g.concurrency.leaders[name]
	if !is {
		if g.oneIn(6) {
			return by("v3electionpb.Election.Leader", &v3electionpb.LeaderRequest{Name: []byte(name)})
		}
		return by("v3electionpb.Election.Campaign", &v3electionpb.CampaignRequest{Name: []byte(name), Lease: lease, Value: g.value()})
	}
	leader = proto.CloneOf(leader)
	if g.oneIn(8) {
		leader.Rev--
	}
	switch g.IntN(4) {
	case 0:
		return by("v3electionpb.Election.Resign", &v3electionpb.ResignRequest{Leader: leader})
	case 1:
		return by("v3electionpb.Election.Leader", &v3electionpb.LeaderRequest{Name: []byte(name)})
	default:
		return by("v3electionpb.Election.Proclaim", &v3electionpb.ProclaimRequest{Leader: leader, Value: g.value()})
	}
}

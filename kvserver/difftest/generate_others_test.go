package difftest

import (
	"maps"
	"math"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

var leaseIDs = []int64{1, 2, 3, 4, 5, 0x7f, 0x80, 0x81, 0x12ff, 0x1300, 0x1301, 1 << 62, math.MaxInt64, math.MinInt64, -1, -2, -3}

// Leases outlive a run: when one expires is a matter of the clock.
var leaseTTLs = []int64{100_000, 200_000, 9_000_000_000}

// otherRequests draws what the other services are asked.
type otherRequests struct{ *generator }

func (g otherRequests) lease() step {
	switch g.IntN(14) {
	case 0, 1, 2:
		return g.by("Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: pick(g.generator, leaseIDs...), TTL: pick(g.generator, leaseTTLs...)})
	case 3:
		// One that is refused for its TTL; a short one would expire.
		return g.by("Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: g.leaseID(), TTL: 9_000_000_001})
	case 4:
		return leaseOfAnyID{g.user(), pick(g.generator, append(leaseTTLs, 9_000_000_001, 0, 1, -5)...)}
	case 5, 6:
		return g.by("Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: pick(g.generator, g.leaseID(), g.leaseID(), 0)})
	case 7, 8:
		k := keepAlive{user: g.user()}
		for range 1 + g.IntN(3) {
			k.ids = append(k.ids, g.leaseID())
		}
		return k
	case 9:
		return g.by("Lease.LeaseLeases", &pb.LeaseLeasesRequest{})
	default:
		return g.by("Lease.LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: pick(g.generator, g.leaseID(), g.leaseID(), 0), Keys: g.oneIn(2)})
	}
}

const (
	mostStreams = 4
	// Watchers of the past have to be waited for.
	pastOneIn = 4
)

func (g otherRequests) watch() step {
	streams := slices.Sorted(maps.Keys(g.streams))
	if len(streams) == 0 || len(streams) < mostStreams && g.oneIn(15) {
		g.nextStream++
		g.queue = append(g.queue, watch{g.nextStream, createRequest(g.watchRequest())})
		return openStream{g.user(), g.nextStream}
	}
	stream := pick(g.generator, streams...)
	switch n := g.IntN(60); {
	case n == 0:
		return closeStream{stream}
	case n < 15:
		return watch{stream, createRequest(g.watchRequest())}
	case n < 30:
		return watch{stream, cancelRequest(g.Int64N(10) - 2)}
	case n < 40:
		return watch{stream, progressRequest()}
	case n == 40:
		return watch{stream, &pb.WatchRequest{}}
	default:
		return settle{}
	}
}

func (g otherRequests) watchRequest() *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{PrevKv: g.oneIn(2), ProgressNotify: g.oneIn(2), Fragment: g.oneIn(3)}
	r.Key, r.RangeEnd = g.interval()
	if g.oneIn(4) {
		r.WatchId = g.Int64N(10) - 2
	}
	if g.oneIn(pastOneIn) {
		r.StartRevision = g.pastRevision()
	}
	for range g.IntN(2) * g.IntN(3) {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_FilterType(g.IntN(3))) // 2 means nothing
	}
	return r
}

func (g otherRequests) maintenance() step {
	switch g.IntN(60) {
	case 0:
		return g.by("Maintenance.Defragment", &pb.DefragmentRequest{})
	case 1:
		return g.by("Maintenance.Hash", &pb.HashRequest{})
	case 2:
		return g.restart()
	case 3, 4, 5:
		version := pick(g.generator, "3.6.0", "3.6", "3.6.7", "3.7.0", "3.5.0", "new", "", "3.6.0-rc.1", "-1.2.3", "3.8")
		action := pick(g.generator, pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_CANCEL, 7)
		return g.by("Maintenance.Downgrade", &pb.DowngradeRequest{Action: action, Version: version})
	case 6:
		service := pick(g.generator, "", "etcdserverpb.KV", "none")
		return call{g.user(), "grpc.health.v1.Health.Check", &healthpb.HealthCheckRequest{Service: service}}
	case 7, 8, 9, 10, 11, 12, 13, 14, 15:
		return g.by("Cluster.MemberList", &pb.MemberListRequest{Linearizable: g.oneIn(2)})
	case 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29:
		return g.by("Maintenance.Status", &pb.StatusRequest{})
	default:
		r := &pb.AlarmRequest{Action: pick[pb.AlarmRequest_AlarmAction](g.generator, 0, 0, 0, 2), MemberID: g.Uint64N(3), Alarm: pb.AlarmType(g.IntN(3))}
		return g.by("Maintenance.Alarm", r)
	}
}

func (g otherRequests) restart() step {
	if g.auth.enabled {
		return restart{g.auth.passwords[root]}
	}
	return restart{}
}

func (g otherRequests) hashKV() step {
	r := &pb.HashKVRequest{}
	switch n := len(g.compactions); {
	case n > 0 && g.oneIn(3):
		r.Revision = g.compactions[n-1-g.IntN(min(n, 15))] // etcd remembers some
	case !g.oneIn(3):
		r.Revision = g.pastRevision()
	}
	return g.by("Maintenance.HashKV", r)
}

func (g otherRequests) alarm() step {
	alarm := pb.AlarmType_NOSPACE
	if g.oneIn(3) {
		alarm = pick(g.generator, pb.AlarmType_CORRUPT, pb.AlarmType_NONE)
	}
	return g.by("Maintenance.Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: g.Uint64N(3), Alarm: alarm})
}

// tickAlarms clears an alarm after some steps, whoever has raised it.
func (g *generator) tickAlarms() {
	for _, alarm := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		left, raised := g.alarms[alarm]
		if !raised {
			continue
		}
		g.alarms[alarm] = left - 1
		if left > 0 || (authRequests{g}).isPreparing() {
			continue
		}
		delete(g.alarms, alarm)
		g.queue = append(g.queue, g.clearing(alarm)...)
	}
}

func (g *generator) clearing(alarm pb.AlarmType) (steps []step) {
	user := nobody
	if g.auth.enabled {
		user = root
		steps = append(steps, login{root, g.auth.passwords[root]})
	}
	for member := range uint64(3) {
		r := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: member, Alarm: alarm}
		steps = append(steps, call{user, "etcdserverpb.Maintenance.Alarm", r})
	}
	return steps
}

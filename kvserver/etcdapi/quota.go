package etcdapi

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/machine"
)

// What a request is taken to cost, in bytes, besides its keys and values;
// etcd's numbers (server/storage/quota.go).
const (
	leaseCost = 64
	keyCost   = 256
)

func putCost(r *pb.PutRequest) int64 {
	return int64(keyCost + len(r.GetKey()) + len(r.GetValue()))
}

// txnCost is that of the dearer branch, and nothing without a put.
func txnCost(r *pb.TxnRequest) int64 {
	return max(branchCost(r.GetSuccess()), branchCost(r.GetFailure()))
}

func branchCost(ops []*pb.RequestOp) (cost int64) {
	for _, op := range ops {
		if put := op.GetRequestPut(); put != nil {
			cost += putCost(put)
		}
		if txn := op.GetRequestTxn(); txn != nil {
			cost += txnCost(txn)
		}
	}
	return cost
}

// checkSpace refuses what would exceed the quota, after raising the alarm that
// has every member refuse it. As in etcd the cost counts with what is in use
// here and now: requests under way at the same time may together exceed the
// quota by what they add, and the next one raises the alarm.
func (a *api) checkSpace(ctx context.Context, cost int64) error {
	if cost == 0 || a.limits.QuotaBytes < 0 || a.store.Space().InUse()+cost < a.limits.QuotaBytes {
		return nil
	}
	alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: a.replica.Member()}
	if !a.raised(alarm) {
		// The request is refused whether or not this succeeds; the next one
		// tries again.
		_, _ = a.propose(ctx, &pb.InternalRaftRequest{Alarm: alarm})
	}
	return machine.ErrNoSpace
}

func (a *api) raised(alarm *pb.AlarmRequest) bool {
	return slices.ContainsFunc(a.store.Alarms(), func(raised *pb.AlarmMember) bool {
		return raised.GetAlarm() == alarm.GetAlarm() && raised.GetMemberID() == alarm.GetMemberID()
	})
}

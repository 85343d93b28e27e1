package kvserver

import (
	"context"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// TestAlarmsAreEtcds raises alarms by hand and compares what they forbid, one
// at a time: etcd lists several in the random order of a map. An
// action that does not exist is left out: etcd crashes.
func TestAlarmsAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	k := func(text string) []byte { return []byte(text) }
	alarm := func(name string, action pb.AlarmRequest_AlarmAction, member uint64, alarm pb.AlarmType) call {
		return maintain(name, pb.MaintenanceClient.Alarm, &pb.AlarmRequest{Action: action, MemberID: member, Alarm: alarm})
	}
	lease := func(name string, run func(context.Context, pb.LeaseClient) (proto.Message, error)) call {
		return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return run(ctx, pb.NewLeaseClient(conn))
		}}
	}
	const get, raise, lower = pb.AlarmRequest_GET, pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE
	const none, noSpace, corrupt = pb.AlarmType_NONE, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT
	everything := func() []call {
		return []call{
			put("put", &pb.PutRequest{Key: k("a"), Value: k("2")}),
			rangeOf("range", &pb.RangeRequest{Key: k("a")}),
			rangeOf("range: serializable", &pb.RangeRequest{Key: k("a"), Serializable: true}),
			txn("txn that reads", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}}),
			txn("txn that reads in a nested one", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}})}}),
			txn("txn that puts", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("b", "1")}}),
			txn("txn that deletes", &pb.TxnRequest{Success: []*pb.RequestOp{deleteOp("b", "")}}),
			deletion("delete", &pb.DeleteRangeRequest{Key: k("b")}),
			grant("grant", 8, 100),
			lease("revoke", func(ctx context.Context, c pb.LeaseClient) (proto.Message, error) {
				return c.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 7})
			}),
			lease("leases", func(ctx context.Context, c pb.LeaseClient) (proto.Message, error) {
				return c.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
			}),
			compact("compact", &pb.CompactionRequest{Revision: 2}),
			hashKV("hash", 0),
			maintain("defragment", pb.MaintenanceClient.Defragment, &pb.DefragmentRequest{}),
			maintain("status", pb.MaintenanceClient.Status, &pb.StatusRequest{}),
		}
	}
	calls := append([]call{
		put("before", &pb.PutRequest{Key: k("a"), Value: k("1")}),
		grant("before: grant", 7, 100),
		alarm("raise nothing", raise, 5, none),
		alarm("clear what is not raised", lower, 5, corrupt),
		alarm("raise corrupt", raise, 5, corrupt),
		alarm("raise it again", raise, 5, corrupt),
		alarm("all", get, 0, none),
		alarm("of one kind, whichever member", get, 99, corrupt),
		alarm("of the other kind", get, 5, noSpace),
	}, everything()...)
	calls = append(calls,
		alarm("clear another member's", lower, 6, corrupt),
		put("still corrupt", &pb.PutRequest{Key: k("a")}),
		alarm("clear", lower, 5, corrupt),
		alarm("raise no space for the cluster", raise, 0, noSpace),
	)
	calls = append(calls, everything()...)
	calls = append(calls, alarm("clear no space", lower, 0, noSpace), alarm("none is left", get, 0, none))
	for _, c := range append(calls, everything()...) {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
}

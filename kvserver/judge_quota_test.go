package kvserver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// TestQuotaIsEtcds fills both servers to their quota and compares what they
// refuse, and that space which a compaction gives back can be used again.
func TestQuotaIsEtcds(t *testing.T) {
	const quota = 1 << 20
	etcd, ours := bothSidesWith(t, func(etcd *embed.Config, ours *Config) {
		etcd.QuotaBackendBytes, ours.QuotaBackendBytes = quota, quota
	})
	made := map[side]int{etcd: fill(t, etcd), ours: fill(t, ours)}
	full := map[side]int{etcd: keysOf(t, etcd), ours: keysOf(t, ours)}
	if full[ours] < 15 || full[ours] > 17 || full[ours] != made[ours] {
		t.Errorf("%d puts of 64 KiB, and %d keys, filled %d bytes", made[ours], full[ours], quota)
	}
	if more := full[etcd] - made[etcd]; more != 0 && more != 1 {
		t.Errorf("etcd made %d puts, and has %d keys", made[etcd], full[etcd])
	}
	k := func(text string) []byte { return []byte(text) }
	for _, c := range []call{
		put("put", &pb.PutRequest{Key: k("a"), Value: k("1")}),
		put("put: no key", &pb.PutRequest{Value: make([]byte, 64<<10)}),
		txn("txn with a put", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("a", "1")}}),
		txn("txn with a put that is not made", &pb.TxnRequest{Failure: []*pb.RequestOp{putOp("a", "1")}}),
		txn("txn with a nested put", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Failure: []*pb.RequestOp{putOp("a", "1")}})}}),
		txn("txn that reads", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}}),
		txn("txn that deletes", &pb.TxnRequest{Success: []*pb.RequestOp{deleteOp("a", "")}}),
		maintain("alarms", pb.MaintenanceClient.Alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET}),
		maintain("alarms of the other kind", pb.MaintenanceClient.Alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pb.AlarmType_CORRUPT}),
		grantSome("lease"),
		rangeOf("count", &pb.RangeRequest{Key: k("a"), RangeEnd: k("z"), CountOnly: true, KeysOnly: true}),
	} {
		t.Run(c.name, func(t *testing.T) {
			want, got := unnumbered(t, etcd, c, full), unnumbered(t, ours, c, full)
			if want != got {
				t.Errorf("the answer is\n%s\netcd's is\n%s", got, want)
			}
		})
	}
	for _, s := range []side{etcd, ours} {
		errs := statusErrors(t, s)
		if len(errs) != 1 || !strings.Contains(errs[0], "alarm:NOSPACE") || !strings.Contains(errs[0], "memberID:") {
			t.Errorf("%s: status has the errors %q", s.url, errs)
		}
	}

	// Neither deletes nor compaction are refused, and then there is room.
	for _, s := range []side{etcd, ours} {
		deleted := must(t, s, pb.NewKVClient(s.conn).DeleteRange, &pb.DeleteRangeRequest{Key: k("fill"), RangeEnd: k("film")})
		if deleted.Deleted != int64(full[s]) {
			t.Errorf("%s: %d keys were deleted of %d", s.url, deleted.Deleted, full[s])
		}
		must(t, s, pb.NewKVClient(s.conn).Compact, &pb.CompactionRequest{Revision: deleted.Header.Revision, Physical: true})
		must(t, s, pb.NewMaintenanceClient(s.conn).Defragment, &pb.DefragmentRequest{})
	}
	refused := put("put after compaction", &pb.PutRequest{Key: k("a"), Value: k("1")})
	for _, s := range []side{etcd, ours} {
		if got := unnumbered(t, s, refused, full); !strings.Contains(got, "database space exceeded") {
			t.Errorf("%s: while the alarm is raised: %s", s.url, got)
		}
		alarms := must(t, s, pb.NewMaintenanceClient(s.conn).Alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET}).Alarms
		for _, alarm := range alarms {
			must(t, s, pb.NewMaintenanceClient(s.conn).Alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: alarm.Alarm, MemberID: alarm.MemberID})
		}
		if errs := statusErrors(t, s); len(alarms) != 1 || len(errs) != 0 {
			t.Errorf("%s: the alarms were %v, status has the errors %q", s.url, alarms, errs)
		}
		least := full[s] - 2
		if s == etcd {
			least = 5 // what it counts trails behind what it is given
		}
		if again := fill(t, s); again < least {
			t.Errorf("%s: %d puts filled it first, %d when it was emptied", s.url, full[s], again)
		}
	}
}

// Without a bound nothing is refused, and status repeats what was asked for.
func TestQuotaOff(t *testing.T) {
	etcd, ours := bothSidesWith(t, func(etcd *embed.Config, ours *Config) {
		etcd.QuotaBackendBytes, ours.QuotaBackendBytes = -5, -5
	})
	for _, s := range []side{etcd, ours} {
		must(t, s, pb.NewKVClient(s.conn).Put, &pb.PutRequest{Key: []byte("a")})
		if got := must(t, s, pb.NewMaintenanceClient(s.conn).Status, &pb.StatusRequest{}).DbSizeQuota; got != -5 {
			t.Errorf("%s: the quota is %d", s.url, got)
		}
	}
}

func grantSome(name string) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		return pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
	}}
}

// fill puts 64 KiB under a new key until that is refused for want of space,
// and returns how often it was not.
func fill(t *testing.T, s side) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for n := 0; ; n++ {
		_, err := pb.NewKVClient(s.conn).Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "fill%d", n), Value: make([]byte, 64<<10)})
		if err == nil {
			continue
		}
		if status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != "etcdserver: mvcc: database space exceeded" {
			t.Fatalf("%s: put %d: %v", s.url, n, err)
		}
		return n
	}
}

// keysOf counts what fill has put. etcd makes the put for which it finds no room
// any more, and refuses it, when it has noticed how full it is only meanwhile.
func keysOf(t *testing.T, s side) int {
	t.Helper()
	return int(must(t, s, pb.NewKVClient(s.conn).Range, &pb.RangeRequest{Key: []byte("fill"), RangeEnd: []byte("film"), CountOnly: true}).Count)
}

// unnumbered is an answer without what depends on how much was put before.
func unnumbered(t *testing.T, s side, c call, full map[side]int) string {
	t.Helper()
	text, set := answer(t, s, c)
	text = blanks.ReplaceAllString(text, " ")
	text = strings.ReplaceAll(text, fmt.Sprintf("revision: %d", full[s]+1), "revision: full")
	return fmt.Sprint(strings.ReplaceAll(text, fmt.Sprintf("count: %d", full[s]), "count: full"), set)
}

func statusErrors(t *testing.T, s side) []string {
	t.Helper()
	return must(t, s, pb.NewMaintenanceClient(s.conn).Status, &pb.StatusRequest{}).Errors
}

// must makes a call that must succeed.
func must[Q, R any](t *testing.T, s side, method func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) R {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	response, err := method(ctx, request)
	if err != nil {
		t.Fatalf("%s: %v: %v", s.url, request, err)
	}
	return response
}

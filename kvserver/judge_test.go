package kvserver

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/internal/loopback"
)

// side is one of the two servers that have to answer alike.
type side struct {
	conn   *grpc.ClientConn
	url    string
	server *Server // nil for etcd
}

// bothSides starts etcd and a member of ours, both alone and empty.
func bothSides(t *testing.T) (etcd, ours side) {
	t.Helper()
	return bothSidesWith(t, func(*embed.Config, *Config) {})
}

// bothSidesWith starts both as set makes them. They are connected to without
// TLS, whatever it says.
func bothSidesWith(t *testing.T, set func(etcd *embed.Config, ours *Config)) (etcd, ours side) {
	t.Helper()
	config := embed.NewConfig()
	config.Dir = filepath.Join(t.TempDir(), "etcd")
	config.LogLevel, config.LogOutputs = "fatal", []string{filepath.Join(t.TempDir(), "etcd.log")}
	config.UnsafeNoFsync = true
	client, peer := freeURL(t), freeURL(t)
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	alike := single(t)
	alike.ElectionTimeout, alike.HeartbeatInterval = Default().ElectionTimeout, Default().HeartbeatInterval
	set(config, &alike)
	judge, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(judge.Close)
	select {
	case <-judge.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready")
	}
	// It agrees with itself on a version, and migrates its storage, a little later.
	for deadline := time.After(30 * time.Second); ; {
		if version := judge.Server.StorageVersion(); version != nil && version.String() == etcdsnap.Version {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatal("etcd has not migrated its storage")
		}
	}

	server, err := Start(alike)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-server.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("musterd is not ready")
	}
	ours = connect(t, server.clients[0].Addr().String())
	ours.server = server
	return connect(t, client.Host), ours
}

func connect(t *testing.T, address string) side {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return side{conn: conn, url: "http://" + address}
}

func freeURL(t testing.TB) url.URL {
	t.Helper()
	return url.URL{Scheme: "http", Host: loopback.Address(t)}
}

type call struct {
	name string
	run  func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error)
}

func kv[Q, R proto.Message](name string, method func(pb.KVClient, context.Context, Q, ...grpc.CallOption) (R, error), request Q) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		return method(pb.NewKVClient(conn), ctx, request)
	}}
}

func rangeOf(name string, r *pb.RangeRequest) call { return kv(name, pb.KVClient.Range, r) }
func put(name string, r *pb.PutRequest) call       { return kv(name, pb.KVClient.Put, r) }
func deletion(name string, r *pb.DeleteRangeRequest) call {
	return kv(name, pb.KVClient.DeleteRange, r)
}
func txn(name string, r *pb.TxnRequest) call { return kv(name, pb.KVClient.Txn, r) }
func compact(name string, r *pb.CompactionRequest) call {
	return kv(name, pb.KVClient.Compact, r)
}

func putOp(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func rangeOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func deleteOp(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func txnOp(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func compare(key string, result pb.Compare_CompareResult, revision int64) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_MOD, Result: result, TargetUnion: &pb.Compare_ModRevision{ModRevision: revision}}
}

func many(n int) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, n)
	for i := range ops {
		ops[i] = putOp(fmt.Sprint("many", i), "")
	}
	return ops
}

// calls run in order on both sides.
func calls() []call {
	k := func(text string) []byte { return []byte(text) }
	list := []call{
		rangeOf("range of nothing", &pb.RangeRequest{Key: k("a")}),
		put("put", &pb.PutRequest{Key: k("a"), Value: k("1")}),
		put("put again", &pb.PutRequest{Key: k("a"), Value: k("2"), PrevKv: true}),
		put("put b", &pb.PutRequest{Key: k("b"), Value: k("1")}),
		put("put keeps the value", &pb.PutRequest{Key: k("a"), IgnoreValue: true}),
		put("put keeps the lease", &pb.PutRequest{Key: k("a"), Value: k("3"), IgnoreLease: true}),
		put("put: no key", &pb.PutRequest{Value: k("1")}),
		put("put: value and ignore", &pb.PutRequest{Key: k("a"), Value: k("1"), IgnoreValue: true}),
		put("put: lease and ignore", &pb.PutRequest{Key: k("a"), Lease: 5, IgnoreLease: true}),
		put("put: no key to keep the value of", &pb.PutRequest{Key: k("none"), IgnoreValue: true}),
		put("put: no such lease", &pb.PutRequest{Key: k("a"), Lease: 12345}),
		put("put: too large", &pb.PutRequest{Key: k("a"), Value: make([]byte, 1536*1024+1)}),
		put("put: larger than gRPC allows", &pb.PutRequest{Key: k("a"), Value: make([]byte, 3<<20)}),
		rangeOf("range", &pb.RangeRequest{Key: k("a")}),
		rangeOf("range: serializable", &pb.RangeRequest{Key: k("a"), Serializable: true}),
		rangeOf("range: everything", &pb.RangeRequest{Key: k("\x00"), RangeEnd: k("\x00")}),
		rangeOf("range: sorted, limited", &pb.RangeRequest{Key: k("a"), RangeEnd: k("z"), Limit: 1, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_KEY}),
		rangeOf("range: keys only", &pb.RangeRequest{Key: k("a"), RangeEnd: k("z"), KeysOnly: true}),
		rangeOf("range: count only", &pb.RangeRequest{Key: k("a"), RangeEnd: k("z"), CountOnly: true}),
		rangeOf("range: at a revision", &pb.RangeRequest{Key: k("a"), Revision: 2}),
		rangeOf("range: revision to come", &pb.RangeRequest{Key: k("a"), Revision: 1000}),
		rangeOf("range: no key", &pb.RangeRequest{}),
		rangeOf("range: no such order", &pb.RangeRequest{Key: k("a"), SortOrder: 17}),
		rangeOf("range: no such target", &pb.RangeRequest{Key: k("a"), SortTarget: 17}),
		rangeOf("range: revision filters", &pb.RangeRequest{Key: k("a"), RangeEnd: k("z"), MinModRevision: 4, MaxCreateRevision: 2}),
		rangeOf("range: end before start", &pb.RangeRequest{Key: k("z"), RangeEnd: k("a")}),
		txn("txn: nothing", &pb.TxnRequest{}),
		txn("txn: success", &pb.TxnRequest{Compare: []*pb.Compare{compare("a", pb.Compare_GREATER, 1)}, Success: []*pb.RequestOp{putOp("t", "1"), rangeOp("t")}, Failure: []*pb.RequestOp{rangeOp("a")}}),
		txn("txn: failure", &pb.TxnRequest{Compare: []*pb.Compare{compare("a", pb.Compare_EQUAL, 999)}, Success: []*pb.RequestOp{putOp("t", "2")}, Failure: []*pb.RequestOp{rangeOp("a")}}),
		txn("txn: read-only", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a"), rangeOp("b")}}),
		txn("txn: nested", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{putOp("n", "1")}}), deleteOp("b", "")}}),
		txn("txn: compare without key", &pb.TxnRequest{Compare: []*pb.Compare{{}}}),
		txn("txn: put without key", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("", "1")}}),
		txn("txn: range without key", &pb.TxnRequest{Failure: []*pb.RequestOp{rangeOp("")}}),
		txn("txn: delete without key", &pb.TxnRequest{Success: []*pb.RequestOp{deleteOp("", "")}}),
		txn("txn: empty operation", &pb.TxnRequest{Success: []*pb.RequestOp{{}}}),
		txn("txn: as many operations as allowed", &pb.TxnRequest{Success: many(128)}),
		txn("txn: one too many", &pb.TxnRequest{Success: many(129)}),
		txn("txn: nested, one too many", &pb.TxnRequest{Success: append(many(100), txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{putOp("x1", ""), putOp("x2", "")}}), txnOp(&pb.TxnRequest{Success: many(60)}))}),
		txn("txn: the same key twice", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("d", ""), putOp("d", "")}}),
		txn("txn: put and delete overlap", &pb.TxnRequest{Success: []*pb.RequestOp{deleteOp("c", "e"), putOp("d", "")}}),
		txn("txn: future range", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: k("a"), Revision: 1000}}}}}),
		txn("txn: put and future range", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("t", "9"), {Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: k("a"), Revision: 1000}}}}}),
		txn("txn: no such lease", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k("a"), Lease: 77}}}}}),
		txn("txn: too large", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("a", strings.Repeat("x", 1536*1024))}}),
		deletion("delete", &pb.DeleteRangeRequest{Key: k("t"), PrevKv: true}),
		deletion("delete nothing", &pb.DeleteRangeRequest{Key: k("t")}),
		deletion("delete: no key", &pb.DeleteRangeRequest{}),
		deletion("delete a range", &pb.DeleteRangeRequest{Key: k("many"), RangeEnd: k("manz"), PrevKv: true}),
		compact("compact", &pb.CompactionRequest{Revision: 4, Physical: true}),
		compact("compact again", &pb.CompactionRequest{Revision: 4}),
		compact("compact the past", &pb.CompactionRequest{Revision: 2}),
		compact("compact the future", &pb.CompactionRequest{Revision: 1000}),
		compact("compact revision 0", &pb.CompactionRequest{}),
		rangeOf("range: compacted", &pb.RangeRequest{Key: k("a"), Revision: 3}),
		rangeOf("range: the compacted revision itself", &pb.RangeRequest{Key: k("a"), Revision: 4}),
		txn("txn: compacted range", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: k("a"), Revision: 3}}}}}),
		rangeOf("range: at the end", &pb.RangeRequest{Key: k("\x00"), RangeEnd: k("\x00")}),
	}
	list = append(list, leaseCalls()...)
	list = append(list, maintenanceCalls()...)
	return append(list,
		call{"member list", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		}},
		call{"member list, serializable", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{})
		}},
		call{"status", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
		}},
		call{"alarms", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return pb.NewMaintenanceClient(conn).Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
		}},
		call{"range that requires a leader", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
			return pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("a")})
		}},
		call{"no such method", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			answer := &pb.RangeResponse{}
			return answer, conn.Invoke(ctx, "/etcdserverpb.KV/Nothing", &pb.RangeRequest{}, answer)
		}},
		call{"no such service", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			answer := &pb.RangeResponse{}
			return answer, conn.Invoke(ctx, "/etcdserverpb.Nothing/Range", &pb.RangeRequest{}, answer)
		}},
	)
}

// differing names what may differ: identities, sizes and the log's progress.
var differing = map[protoreflect.Name]bool{
	"cluster_id": true, "member_id": true, "raft_term": true, "raftTerm": true, "raftIndex": true, "raftAppliedIndex": true,
	"dbSize": true, "dbSizeInUse": true, "dbSizeQuota": true, "leader": true, "ID": true, "peerURLs": true, "clientURLs": true,
	"token": true, "memberID": true,
}

// mask clears the differing fields but tells whether they were set at all.
func mask(m protoreflect.Message, set map[string]bool) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case differing[field.Name()]:
			set[string(field.FullName())] = true
			m.Clear(field)
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				mask(value.List().Get(i).Message(), set)
			}
		case field.Message() != nil && !field.IsMap():
			mask(value.Message(), set)
		}
		return true
	})
}

func TestAnswersAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	for _, c := range calls() {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
}

func compareAnswers(t *testing.T, etcd, ours side, c call) {
	t.Helper()
	want, wantSet := answer(t, etcd, c)
	got, gotSet := answer(t, ours, c)
	// prototext varies its blanks on purpose.
	if want, got := blanks.ReplaceAllString(want, " "), blanks.ReplaceAllString(got, " "); want != got {
		t.Errorf("the answer differs (-etcd +ours):\n%s", cmp.Diff(want, got))
	}
	if diff := cmp.Diff(wantSet, gotSet); diff != "" {
		t.Errorf("other fields are set (-etcd +ours):\n%s", diff)
	}
}

// answer is what a call is answered with, in text without the differing
// fields, and which of those were set.
func answer(t *testing.T, s side, c call) (text string, set map[string]bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	response, err := c.run(ctx, s.conn)
	if err != nil {
		return fmt.Sprintf("%v: %s", status.Code(err), status.Convert(err).Message()), nil
	}
	set = map[string]bool{}
	mask(response.ProtoReflect(), set)
	return prototext.MarshalOptions{Multiline: true}.Format(response), set
}

var blanks = regexp.MustCompile(` +`)

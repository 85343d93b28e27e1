package kvserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// services are what etcd registers; reflection is not among them.
var services = []string{
	"etcdserverpb.Auth", "etcdserverpb.Cluster", "etcdserverpb.KV", "etcdserverpb.Lease", "etcdserverpb.Maintenance", "etcdserverpb.Watch",
	"grpc.health.v1.Health", "v3electionpb.Election", "v3lockpb.Lock",
}

// called are the methods that the walk calls first, in this order and with
// these requests; the others follow with an empty one.
var called = []struct {
	method  string
	request proto.Message
}{
	{pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{ID: 7, TTL: 600}},
	{pb.Lease_LeaseKeepAlive_FullMethodName, &pb.LeaseKeepAliveRequest{ID: 7}},
	{pb.KV_Put_FullMethodName, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}},
	{pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: []byte("k")}},
	{pb.KV_RangeStream_FullMethodName, &pb.RangeRequest{Key: []byte("k")}},
	{pb.Watch_Watch_FullMethodName, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}},
	{v3lockpb.Lock_Lock_FullMethodName, &v3lockpb.LockRequest{Name: []byte("lock"), Lease: 7}},
	{v3lockpb.Lock_Unlock_FullMethodName, &v3lockpb.UnlockRequest{Key: []byte("lock/7")}},
	{v3electionpb.Election_Leader_FullMethodName, &v3electionpb.LeaderRequest{Name: []byte("seat")}},
	{v3electionpb.Election_Campaign_FullMethodName, &v3electionpb.CampaignRequest{Name: []byte("seat"), Lease: 7, Value: []byte("me")}},
	{v3electionpb.Election_Leader_FullMethodName, &v3electionpb.LeaderRequest{Name: []byte("seat")}},
	{v3electionpb.Election_Observe_FullMethodName, &v3electionpb.LeaderRequest{Name: []byte("seat")}},
	{v3electionpb.Election_Proclaim_FullMethodName, &v3electionpb.ProclaimRequest{Leader: &v3electionpb.LeaderKey{Name: []byte("seat"), Key: []byte("seat/7"), Rev: 1, Lease: 7}}},
	{v3electionpb.Election_Resign_FullMethodName, &v3electionpb.ResignRequest{Leader: &v3electionpb.LeaderKey{Name: []byte("seat"), Key: []byte("seat/7"), Rev: 5, Lease: 7}}},
	// An empty compaction, of revision 0, changes what etcd hashes later.
	{pb.Maintenance_HashKV_FullMethodName, &pb.HashKVRequest{}},
	{pb.Maintenance_Downgrade_FullMethodName, &pb.DowngradeRequest{Version: "3.6.0"}},
	{healthpb.Health_Check_FullMethodName, &healthpb.HealthCheckRequest{Service: "etcdserverpb.KV"}},
	{healthpb.Health_Watch_FullMethodName, &healthpb.HealthCheckRequest{Service: "etcdserverpb.KV"}},
	{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &healthpb.HealthCheckRequest{}},
}

// neverAlike are contents of files that are each side's own.
var neverAlike = []protoreflect.FullName{
	"etcdserverpb.HashResponse.hash", "etcdserverpb.SnapshotResponse.blob", "etcdserverpb.SnapshotResponse.remaining_bytes",
}

// Every method of every service answers as etcd's does, and none that it is not
// implemented.
func TestEveryMethodAnswers(t *testing.T) {
	t.Parallel()
	etcd, ours := bothSides(t)
	infos := ours.server.grpc.GetServiceInfo()
	var registered, todo []string
	for service, info := range infos {
		registered = append(registered, service)
		for _, method := range info.Methods {
			todo = append(todo, "/"+service+"/"+method.Name)
		}
	}
	slices.Sort(registered)
	if diff := cmp.Diff(services, registered); diff != "" {
		t.Errorf("the services differ (-etcd +ours):\n%s", diff)
	}
	slices.Sort(todo)
	compare := func(method string, request proto.Message) string {
		want, got := walk(t, etcd.conn, method, request), walk(t, ours.conn, method, request)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: the answer differs (-etcd +ours):\n%s", method, diff)
		}
		return got
	}
	for _, c := range called {
		compare(c.method, c.request)
		todo = slices.DeleteFunc(todo, func(method string) bool { return method == c.method })
	}
	for _, method := range todo {
		if got := compare(method, nil); strings.HasPrefix(got, codes.Unimplemented.String()) {
			t.Errorf("%s: %s", method, got)
		}
	}
}

// walk calls a method, with an empty request if it is nil, and returns its
// first answer in text.
func walk(t *testing.T, conn *grpc.ClientConn, method string, request proto.Message) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	response := proto.Message(&healthpb.HealthCheckResponse{})
	if found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(method[1:], "/", "."))); err == nil {
		described := found.(protoreflect.MethodDescriptor)
		if request == nil {
			request = newMessage(t, described.Input())
		}
		response = newMessage(t, described.Output())
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err == nil {
		err = stream.SendMsg(request)
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		err = stream.RecvMsg(response)
	}
	if err != nil {
		return fmt.Sprintf("%v: %s", status.Code(err), status.Convert(err).Message())
	}
	set := map[string]bool{}
	mask(response.ProtoReflect(), set)
	response.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if slices.Contains(neverAlike, field.FullName()) {
			set[string(field.FullName())] = true
			response.ProtoReflect().Clear(field)
		}
		return true
	})
	delete(set, "etcdserverpb.SnapshotResponse.remaining_bytes")
	text := blanks.ReplaceAllString(prototext.MarshalOptions{Multiline: true}.Format(response), " ")
	return fmt.Sprintf("%s%v", text, set)
}

func newMessage(t *testing.T, descriptor protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

// A member that has not joined its cluster does not say that it serves.
func TestHealthWaitsForTheMember(t *testing.T) {
	t.Parallel()
	config := single(t)
	config.InitialCluster = config.Name + "=http://127.0.0.1:1,absent=http://127.0.0.1:2"
	config.InitialAdvertisePeerURLs = []string{"http://127.0.0.1:1"}
	server, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn := connect(t, server.clients[0].Addr().String()).conn
	response, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || response.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("%v, %v", response, err)
	}
}

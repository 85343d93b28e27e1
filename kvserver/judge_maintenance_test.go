package kvserver

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
)

// maintain makes a call of a method of the maintenance service.
func maintain[Q, R proto.Message](name string, method func(pb.MaintenanceClient, context.Context, Q, ...grpc.CallOption) (R, error), request Q) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		return method(pb.NewMaintenanceClient(conn), ctx, request)
	}}
}

func hashKV(name string, rev int64) call {
	return maintain(name, pb.MaintenanceClient.HashKV, &pb.HashKVRequest{Revision: rev})
}

func downgrade(name string, action pb.DowngradeRequest_DowngradeAction, version string) call {
	return maintain(name, pb.MaintenanceClient.Downgrade, &pb.DowngradeRequest{Action: action, Version: version})
}

// maintenanceCalls follow on a compaction at revision 4.
func maintenanceCalls() []call {
	const validate, enable, cancel = pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE, pb.DowngradeRequest_CANCEL
	return []call{
		hashKV("hash: now", 0),
		hashKV("hash: before", 7),
		hashKV("hash: compacted", 3),
		hashKV("hash: at the compaction", 4),
		hashKV("hash: to come", 1000),
		hashKV("hash: negative", -1),
		maintain("defragment", pb.MaintenanceClient.Defragment, &pb.DefragmentRequest{}),
		hashKV("hash: now, after defragmenting", 0),
		downgrade("downgrade: would do", validate, "3.6.0"),
		downgrade("downgrade: would do, patch", validate, "3.6.7"),
		downgrade("downgrade: would do, short", validate, "3.6"),
		downgrade("downgrade: to this", validate, "3.7.0"),
		downgrade("downgrade: too far", validate, "3.5.0"),
		downgrade("downgrade: no version", validate, "new"),
		downgrade("downgrade: no version at all", validate, ""),
		downgrade("downgrade: enable too far", enable, "3.5.0"),
		downgrade("downgrade: enable no version", enable, "1.2.3.4"),
		downgrade("downgrade: cancel none", cancel, ""),
		downgrade("downgrade: no such action", 17, "3.6.0"),
	}
}

// A snapshot taken over the wire, as etcdctl takes it, holds what the member
// has at that moment.
func TestSnapshotOverTheWire(t *testing.T) {
	server, err := Start(single(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	<-server.Ready()
	conn := connect(t, server.clients[0].Addr().String()).conn
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	maintenance, keys := pb.NewMaintenanceClient(conn), pb.NewKVClient(conn)
	hash := func() uint32 {
		response, err := maintenance.Hash(ctx, &pb.HashRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return response.Hash
	}
	write := func(i int) {
		if _, err := keys.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: make([]byte, 4096)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		write(i)
	}
	want, err := maintenance.HashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		t.Fatal(err)
	}
	before := hash()
	if again := hash(); again != before {
		t.Errorf("the hash of the same is %x and %x", before, again)
	}

	path := filepath.Join(t.TempDir(), "snapshot.db")
	version, err := snapshot.SaveWithVersion(ctx, zap.NewNop(), clientv3.Config{Endpoints: []string{server.clients[0].Addr().String()}}, path)
	if err != nil || version != etcdsnap.Version {
		t.Fatalf("saved a snapshot of version %q: %v", version, err)
	}
	write(100)
	if hash() == before {
		t.Error("a put has not changed the hash")
	}
	file, err := etcdsnap.Open(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "built")
	if err := file.Restore(ctx, dir, machine.Options{}); err != nil {
		t.Fatal(err)
	}
	m, err := machine.Open(filepath.Join(filepath.Dir(dir), "kv"), machine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Install(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := m.History().HashKV(ctx, 0); err != nil || got.Hash != want.Hash || got.Current != want.Header.Revision {
		t.Errorf("the snapshot's keys are %+v, %v, the member had %v", got, err, want)
	}
	for _, close := range []func() error{file.Close, m.Close} {
		if err := close(); err != nil {
			t.Error(err)
		}
	}
}

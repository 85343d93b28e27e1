package kvserver

import (
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	utl "go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// TestDowngradeIsEtcds enables a downgrade and cancels it. etcd takes its time
// to call itself by the other version.
func TestDowngradeIsEtcds(t *testing.T) {
	const validate, enable, cancel = pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE, pb.DowngradeRequest_CANCEL
	etcd, ours := bothSides(t)
	same := func(calls ...call) {
		t.Helper()
		for _, c := range calls {
			t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
		}
	}
	same(put("put", &pb.PutRequest{Key: []byte("a")}), downgrade("too far", enable, "3.5"), downgrade("enable", enable, "3.6.2"))
	status := func(s side) *pb.StatusResponse {
		return must(t, s, pb.NewMaintenanceClient(s.conn).Status, &pb.StatusRequest{})
	}
	within(t, 30*time.Second, "etcd is of version 3.6", func() bool { return status(etcd).StorageVersion == "3.6.0" })
	same(
		maintain("status", pb.MaintenanceClient.Status, &pb.StatusRequest{}),
		downgrade("the same again", validate, "3.6"),
		downgrade("enable the same again", enable, "3.6"),
		downgrade("further", validate, "3.5"),
		downgrade("enable further", enable, "3.5"),
	)
	for _, s := range []side{etcd, ours} {
		path := filepath.Join(t.TempDir(), "snapshot.db")
		if got, err := snapshot.SaveWithVersion(t.Context(), zap.NewNop(), clientv3.Config{Endpoints: []string{s.url}}, path); err != nil || got != "3.6.0" {
			t.Errorf("%s: a snapshot of version %q was saved: %v", s.url, got, err)
		}
		if got, err := utl.NewV3(zap.NewNop()).Status(path); err != nil || got.Version != "3.6.0" {
			t.Errorf("%s: the snapshot is %+v: %v", s.url, got, err)
		}
	}
	same(downgrade("cancel", cancel, ""))
	for _, s := range []side{etcd, ours} {
		if got := status(s).DowngradeInfo; got.GetEnabled() || got.GetTargetVersion() != "" {
			t.Errorf("%s: cancelled: %v", s.url, got)
		}
	}
}

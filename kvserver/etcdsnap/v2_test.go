package etcdsnap_test

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
	"muster/kvserver/v2tree"
	"muster/kvserver/v2tree/v2pb"
)

// TestV2: version 2's data is in the snapshot for a musterd, and not in the way
// of an etcd. It is in no hash.
func TestV2(t *testing.T) {
	m := openMachine(t)
	if err := m.Membership().Seed([]machine.Member{{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}}}, machine.Position{}); err != nil {
		t.Fatal(err)
	}
	l := &log{m: m}
	if err := l.apply(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("key"), Value: []byte("of version 3")}}); err != nil {
		t.Fatal(err)
	}
	before := backendHash(t, export(t, m))
	set, err := v2tree.Wrap(&v2pb.Request{Method: v2pb.Request_PUT, Path: []byte("/1/key"), Value: []byte("of version 2"), Expires: 2e18})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.apply(t, set); err != nil {
		t.Fatal(err)
	}
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	after, err := etcdsnap.Hash(t.Context(), image)
	if err := image.Close(); err != nil {
		t.Error(err)
	}
	if err != nil || after != before {
		t.Errorf("hash %x, before %x, %v", after, before, err)
	}
	path := export(t, m)
	judge := restoreInEtcd(t, path)
	if resp, err := judge.Server.Range(t.Context(), &pb.RangeRequest{Key: []byte("key")}); err != nil || resp.Count != 1 {
		t.Errorf("etcd has %v, %v", resp, err)
	}
	restored := restore(t, path)
	e, err := restored.V2().Get("/1/key", false, time.Unix(0, 2e18).Add(-time.Minute))
	if err != nil || *e.Node.Value != "of version 2" || e.Node.TTL != 60 || e.EtcdIndex != 4 {
		t.Errorf("restored %+v, %v", e, err)
	}
	if e, _, err := restored.V2().Find("/1/key", false, 1); err != nil || e == nil {
		t.Errorf("the history is lost: %+v, %v", e, err)
	}
}

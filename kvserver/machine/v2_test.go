package machine

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/v2tree"
	"muster/kvserver/v2tree/v2pb"
)

// v2Request makes a request of version 2 on a few paths.
func (g *generator) v2Request() *pb.InternalRaftRequest {
	at := "/1"
	for range 1 + g.IntN(3) {
		at += "/" + []string{"a", "b", "_c"}[g.IntN(3)]
	}
	now := time.Unix(1_700_000_000, 0).Add(time.Duration(g.IntN(1000)) * time.Second)
	r := &v2pb.Request{
		Method: []v2pb.Request_Method{v2pb.Request_PUT, v2pb.Request_PUT, v2pb.Request_POST, v2pb.Request_DELETE, v2pb.Request_SYNC, 9}[g.IntN(6)],
		Path:   []byte(at), Value: g.value(), Dir: g.oneIn(4), Recursive: g.oneIn(2), Time: now.UnixNano(),
	}
	if g.oneIn(3) {
		r.Expires = now.Add(time.Duration(g.IntN(100)) * time.Second).UnixNano()
	}
	return wrapV2(r)
}

func wrapV2(r *v2pb.Request) *pb.InternalRaftRequest {
	wrapped, err := v2tree.Wrap(r)
	if err != nil {
		panic(err) // it is bytes and numbers
	}
	return wrapped
}

func setV2(at, value string) *pb.InternalRaftRequest {
	return wrapV2(&v2pb.Request{Method: v2pb.Request_PUT, Path: []byte(at), Value: []byte(value)})
}

func TestV2(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	var told []string
	m.V2().Observe(func(changes []v2tree.Change) {
		for _, c := range changes {
			told = append(told, fmt.Sprint(c.Event.EtcdIndex, c.Event.Action, c.Event.Node.Key))
		}
	})
	revision := m.Revision()
	outcomes := applyNext(t, m, setV2("/1/a", "x"), put("key"), setV2("/1/a/b", "y"), setV2("/1/c", "z"))
	if len(outcomes) != 4 || outcomes[0].V2.Event == nil || outcomes[0].Response != nil || outcomes[1].Response == nil {
		t.Errorf("outcomes %+v", outcomes)
	}
	if refused := outcomes[2].V2.Err; refused == nil || refused.ErrorCode != 104 || refused.Index != 4 {
		t.Errorf("a node below a file: %+v", refused)
	}
	if got, want := strings.Join(told, " "), "4set/1/a 5set/1/c"; got != want {
		t.Errorf("told %s, want %s", got, want)
	}
	if m.Revision() != revision+1 {
		t.Errorf("revision %d after %d and one put", m.Revision(), revision)
	}
	if e, err := m.V2().Get("/1/c", false, time.Now()); err != nil || *e.Node.Value != "z" || e.EtcdIndex != 5 {
		t.Errorf("got %+v, %v", e, err)
	}
	if e, index, err := m.V2().Find("/1/c", false, 1); err != nil || e.Node.ModifiedIndex != 5 || index != 5 {
		t.Errorf("found %+v at %d, %v", e, index, err)
	}
}

// TestV2DoesNotTouchV3: version 3's alarms do not concern version 2, and what
// it writes is in no hash of version 3.
func TestV2DoesNotTouchV3(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	applyNext(t, m, put("key"), &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 1}})
	before, err := m.History().HashKV(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	used := m.Space().InUse()
	if outcomes := applyNext(t, m, setV2("/1/a", "x")); outcomes[0].V2.Err != nil || outcomes[0].Err != nil {
		t.Errorf("refused: %+v", outcomes[0])
	}
	after, err := m.History().HashKV(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("hash %v, before %v", after, before)
	}
	if m.Space().InUse() != used {
		t.Errorf("%d bytes in use, before %d", m.Space().InUse(), used)
	}
}

// TestV2Installed: a checkpoint brings version 2's data with it, and tells those
// who watch.
func TestV2Installed(t *testing.T) {
	fs := vfs.NewMem()
	from := openMem(t, fs)
	defer closeMachine(t, from)
	applyNext(t, from, setV2("/1/a", "x"))
	dir := filepath.Join(t.Name(), "checkpoint")
	if err := fs.MkdirAll(t.Name(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Checkpoint(dir); err != nil {
		t.Fatal(err)
	}
	to, err := Open("another", Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	defer closeMachine(t, to)
	installs := 0
	to.V2().Observe(func(changes []v2tree.Change) {
		if changes == nil {
			installs++
		}
	})
	if err := to.Install(dir); err != nil {
		t.Fatal(err)
	}
	if e, err := to.V2().Get("/1/a", false, time.Now()); err != nil || *e.Node.Value != "x" {
		t.Errorf("got %+v, %v", e, err)
	}
	if installs != 1 {
		t.Errorf("told of %d installs, want 1", installs)
	}
}

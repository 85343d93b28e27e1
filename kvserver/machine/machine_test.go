package machine

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/proto"
)

const machineDir = "data/machine"

// openMem opens a machine on a file system in memory.
func openMem(t testing.TB, fs vfs.FS) *Machine {
	t.Helper()
	m, err := Open(machineDir, Options{FS: fs, CacheBytes: 8 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func closeMachine(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// batchOf encodes requests into a payload; their IDs count from first.
func batchOf(t testing.TB, first uint64, requests ...*pb.InternalRaftRequest) []byte {
	t.Helper()
	encoded := make([][]byte, len(requests))
	for i, r := range requests {
		r.Header = &pb.RequestHeader{ID: first + uint64(i)}
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		encoded[i] = b
	}
	return EncodeBatch(7, encoded)
}

func all(uint64) bool { return true }

// applyNext applies requests as the next entry and returns their outcomes.
func applyNext(t testing.TB, m *Machine, requests ...*pb.InternalRaftRequest) []Outcome {
	t.Helper()
	index, _ := m.Applied()
	outcomes, err := m.Apply([]Entry{{Index: index + 1, Term: 1, Payload: batchOf(t, 1, requests...)}}, all)
	if err != nil {
		t.Fatal(err)
	}
	if len(outcomes) != len(requests) {
		t.Fatalf("%d outcomes of %d requests", len(outcomes), len(requests))
	}
	return outcomes
}

func put(key string) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte("v")}}
}

func alarm(action pb.AlarmRequest_AlarmAction, member uint64, t pb.AlarmType) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: action, MemberID: member, Alarm: t}}
}

func TestNewMachine(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	if index, term := m.Applied(); index != 0 || term != 0 {
		t.Errorf("applied %d in term %d", index, term)
	}
	if got := m.Revision(); got != 1 {
		t.Errorf("revision %d, want 1", got)
	}
	if got := m.CompactedRevision(); got != -1 {
		t.Errorf("compacted revision %d, want -1", got)
	}
	if m.Members() != nil || m.Alarms() != nil {
		t.Errorf("members %v, alarms %v", m.Members(), m.Alarms())
	}
}

func TestSeedMembers(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	reversed := []Member{seededMembers[1], seededMembers[0]}
	if err := m.Membership().Seed(reversed, Position{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Errorf("the same members again: %v", err)
	}
	for _, others := range [][]Member{seededMembers[:1], {{ID: 99}}, append([]Member{{ID: 99}}, seededMembers...)} {
		if err := m.Membership().Seed(others, Position{}); !errors.Is(err, ErrNotNew) {
			t.Errorf("members %v instead: %v", others, err)
		}
	}
	closeMachine(t, m) // without a flush: seeding is durable by itself
	m = openMem(t, fs)
	defer closeMachine(t, m)
	if got := m.Members(); !reflect.DeepEqual(got, seededMembers) {
		t.Errorf("members %+v, want %+v", got, seededMembers)
	}
	m.Members()[0].PeerURLs[0] = "changed"
	if got := m.Members(); !reflect.DeepEqual(got, seededMembers) {
		t.Error("a caller changed the member list")
	}
	applyNext(t, m, put("a"))
	if err := m.Membership().Seed(seededMembers, Position{}); !errors.Is(err, ErrNotNew) {
		t.Errorf("after an entry was applied: %v", err)
	}
}

func TestPublish(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Fatal(err)
	}
	publish := func(id uint64) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
			Member_ID:        id,
			MemberAttributes: &membershippb.Attributes{Name: "controller-0", ClientUrls: []string{"https://127.0.0.1:2379"}},
		}}
	}
	outcomes := applyNext(t, m, publish(11), publish(99))
	if outcomes[0].Err != nil || !errors.Is(outcomes[1].Err, ErrMemberNotFound) || outcomes[1].Response != nil {
		t.Errorf("outcomes %+v", outcomes)
	}
	want := []Member{seededMembers[0].clone(), seededMembers[1]}
	want[0].Name, want[0].ClientURLs = "controller-0", []string{"https://127.0.0.1:2379"}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := m.Members(); !reflect.DeepEqual(got, want) {
			t.Errorf("members %+v, want %+v", got, want)
		}
		closeMachine(t, m)
		m = openMem(t, fs)
	}
	closeMachine(t, m)
}

func TestAlarms(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	const noSpace, corrupt, none = pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT, pb.AlarmType_NONE
	const raise, lower, list = pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE, pb.AlarmRequest_GET
	for i, step := range []struct {
		action         pb.AlarmRequest_AlarmAction
		member         uint64
		alarm          pb.AlarmType
		answer, raised string
	}{
		{list, 0, none, "", ""},
		{raise, 2, noSpace, "2:NOSPACE", "2:NOSPACE"},
		{raise, 2, noSpace, "2:NOSPACE", "2:NOSPACE"},
		{raise, 1, noSpace, "1:NOSPACE", "1:NOSPACE 2:NOSPACE"},
		{raise, 1, none, "", "1:NOSPACE 2:NOSPACE"},
		{raise, 3, corrupt, "3:CORRUPT", "1:NOSPACE 2:NOSPACE 3:CORRUPT"},
		{list, 9, corrupt, "3:CORRUPT", "1:NOSPACE 2:NOSPACE 3:CORRUPT"},
		{list, 9, none, "1:NOSPACE 2:NOSPACE 3:CORRUPT", "1:NOSPACE 2:NOSPACE 3:CORRUPT"},
		{lower, 3, noSpace, "", "1:NOSPACE 2:NOSPACE 3:CORRUPT"},
		{lower, 2, noSpace, "2:NOSPACE", "1:NOSPACE 3:CORRUPT"},
		{lower, 3, corrupt, "3:CORRUPT", "1:NOSPACE"},
		{lower, 1, noSpace, "1:NOSPACE", ""},
	} {
		out := applyNext(t, m, alarm(step.action, step.member, step.alarm))[0]
		if out.Err != nil {
			t.Fatalf("step %d: %v", i, out.Err)
		}
		resp := out.Response.(*pb.AlarmResponse)
		if got := alarmNames(resp.Alarms); got != step.answer || resp.Header.GetRevision() != 1 {
			t.Errorf("step %d: answer %v, want %q", i, resp, step.answer)
		}
		if got := alarmNames(m.Alarms()); got != step.raised {
			t.Errorf("step %d: raised %q, want %q", i, got, step.raised)
		}
	}
	if out := applyNext(t, m, alarm(99, 1, noSpace))[0]; !errors.Is(out.Err, ErrUnknownRequest) {
		t.Errorf("an action that does not exist: %+v", out)
	}
}

func alarmNames(alarms []*pb.AlarmMember) string {
	var names []string
	for _, a := range alarms {
		names = append(names, fmt.Sprintf("%d:%v", a.MemberID, a.Alarm))
	}
	return strings.Join(names, " ")
}

func TestAlarmsForbid(t *testing.T) {
	txnOf := func(ops ...*pb.RequestOp) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Failure: ops}}
	}
	putOp := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a")}}}
	deleteOp := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("a")}}}
	nestedPut := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{putOp}}}}
	for _, c := range []struct {
		name             string
		request          *pb.InternalRaftRequest
		noSpace, corrupt error
	}{
		{"put", put("a"), ErrNoSpace, ErrCorrupt},
		{"txn with put", txnOf(deleteOp, putOp), ErrNoSpace, ErrCorrupt},
		{"txn with nested put", txnOf(nestedPut), ErrNoSpace, ErrCorrupt},
		{"txn without put", txnOf(deleteOp), nil, ErrCorrupt},
		{"delete", &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a")}}, nil, ErrCorrupt},
		{"lease grant", grant(1), ErrNoSpace, ErrCorrupt},
		{"lease revoke", revoke(7), nil, ErrCorrupt},
		{"compaction", &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 2}}, nil, ErrCorrupt},
	} {
		for raised, want := range map[pb.AlarmType]error{pb.AlarmType_NONE: nil, pb.AlarmType_NOSPACE: c.noSpace, pb.AlarmType_CORRUPT: c.corrupt} {
			m := openMem(t, vfs.NewMem())
			outcomes := applyNext(t, m, put("a"), grant(7), alarm(pb.AlarmRequest_ACTIVATE, 1, raised), c.request)
			if got := outcomes[3].Err; !errors.Is(got, want) || want == nil && got != nil {
				t.Errorf("%s with %v: %v, want %v", c.name, raised, got, want)
			}
			closeMachine(t, m)
		}
	}
}

// TestUnknownAndMalformed makes sure that what cannot be carried out changes
// nothing but the applied index.
func TestUnknownAndMalformed(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	for _, r := range []*pb.InternalRaftRequest{
		{},
		{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: "3.7.0"}},
		{Range: &pb.RangeRequest{Key: []byte("a")}},
		{DowngradeVersionTest: &pb.DowngradeVersionTestRequest{}},
	} {
		if out := applyNext(t, m, r)[0]; !errors.Is(out.Err, ErrUnknownRequest) || out.Response != nil {
			t.Errorf("%v: %+v", r, out)
		}
	}
	malformed := EncodeBatch(1, [][]byte{{0xff, 0xff}})
	if out, err := m.Apply([]Entry{{Index: 5, Term: 1, Payload: malformed}}, all); err != nil || len(out) != 0 {
		t.Errorf("a malformed request: %v, %v", out, err)
	}
	if index, _ := m.Applied(); index != 5 || m.Revision() != 1 {
		t.Errorf("applied %d at revision %d, want 5 at 1", index, m.Revision())
	}
}

// TestApplyIsAllOrNothing makes sure that a group with an entry that cannot be
// applied leaves no trace.
func TestApplyIsAllOrNothing(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	good := Entry{Index: 2, Term: 1, Payload: batchOf(t, 1, put("a"))}
	for name, bad := range map[string]Entry{
		"malformed":  {Index: 3, Term: 1, Payload: []byte("nonsense")},
		"went back":  {Index: 2, Term: 1},
		"newer kind": {Index: 3, Term: 1, Payload: []byte{batchVersion + 1, 0, 0, 0, 0, 0, 0, 0, 0}},
	} {
		if out, err := m.Apply([]Entry{good, bad}, all); err == nil || out != nil {
			t.Errorf("%s: %v, %v", name, out, err)
		}
		if index, _ := m.Applied(); index != 0 || m.Revision() != 1 {
			t.Errorf("%s: applied %d at revision %d", name, index, m.Revision())
		}
	}
	if _, err := m.Apply([]Entry{good}, nil); err != nil {
		t.Fatal(err)
	}
	if got := m.Revision(); got != 2 {
		t.Errorf("revision %d, want 2", got)
	}
}

func TestReadTxnRefusesWrites(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	_, err := m.ReadTxn(context.Background(), &pb.TxnRequest{Failure: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a")}}},
	}})
	if !errors.Is(err, ErrNotReadOnly) {
		t.Errorf("error %v", err)
	}
}

func TestClosed(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	closeMachine(t, m)
	closeMachine(t, m)
	ctx := context.Background()
	for name, call := range map[string]func() error{
		"Apply":       func() error { _, err := m.Apply([]Entry{{Index: 1}}, nil); return err },
		"Range":       func() error { _, err := m.Range(ctx, &pb.RangeRequest{Key: []byte("a")}); return err },
		"ReadTxn":     func() error { _, err := m.ReadTxn(ctx, &pb.TxnRequest{}); return err },
		"Flush":       m.Flush,
		"Checkpoint":  func() error { _, err := m.Checkpoint("data/c"); return err },
		"Install":     func() error { return m.Install("data/c") },
		"ScrubStep":   func() error { _, err := m.Space().ScrubStep(context.Background(), 1); return err },
		"SeedMembers": func() error { return m.Membership().Seed(nil, Position{}) },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDirectory opens directories as crashes and people leave them.
func TestDirectory(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(fs vfs.FS) error
		want   string // in the error; empty for success
	}{
		{"as it was", func(vfs.FS) error { return nil }, ""},
		{"marker lost before the first start was complete", func(fs vfs.FS) error {
			return fs.Remove(machineDir + "/marker.current.000001.store-000001")
		}, ""},
		{"leftovers", func(fs vfs.FS) error {
			return errors.Join(fs.MkdirAll(machineDir+"/store-000002", 0o700), fs.MkdirAll(machineDir+"/creating", 0o700))
		}, ""},
		{"marker lost among stores", func(fs vfs.FS) error {
			return errors.Join(fs.Remove(machineDir+"/marker.current.000001.store-000001"), fs.MkdirAll(machineDir+"/store-000002", 0o700))
		}, "restore the directory"},
		{"store lost", func(fs vfs.FS) error { return fs.RemoveAll(machineDir + "/store-000001") }, "does not exist"},
	} {
		fs := vfs.NewMem()
		m := openMem(t, fs)
		applyNext(t, m, put("a"))
		if err := m.Flush(); err != nil {
			t.Fatal(err)
		}
		closeMachine(t, m)
		if err := c.change(fs); err != nil {
			t.Fatal(err)
		}
		m, err := Open(machineDir, Options{FS: fs})
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if index, _ := m.Applied(); index != 1 {
			t.Errorf("%s: applied %d, want 1", c.name, index)
		}
		if names, err := fs.List(machineDir); err != nil || len(names) != 3 {
			t.Errorf("%s: files %q, %v", c.name, names, err)
		}
		closeMachine(t, m)
	}
}

// TestOneProcess makes sure that a directory in use is refused.
func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "is another member running") {
		t.Errorf("a second machine in the same directory: %v", err)
	}
	closeMachine(t, m)
	m, err = Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
}

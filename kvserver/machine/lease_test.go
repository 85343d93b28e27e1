package machine

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func grant(id int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 10 * id}}
}

func revoke(id int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}
}

func checkpoint(id, remaining int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{
		Checkpoints: []*pb.LeaseCheckpoint{{ID: 99, Remaining_TTL: 1}, {ID: id, Remaining_TTL: remaining}},
	}}
}

func putWith(key string, lease int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Lease: lease}}
}

// mustApply fails the test when a request is refused.
func mustApply(t testing.TB, m *Machine, requests ...*pb.InternalRaftRequest) []Outcome {
	t.Helper()
	outcomes := applyNext(t, m, requests...)
	for i, o := range outcomes {
		if o.Err != nil {
			t.Fatalf("%v: %v", requests[i], o.Err)
		}
	}
	return outcomes
}

func keysOf(t testing.TB, m *Machine, id int64) []string {
	t.Helper()
	keys, err := m.Leases().Keys(id)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, k := range keys {
		names = append(names, string(k))
	}
	return names
}

func TestLeases(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	mustApply(t, m, grant(3), grant(1), putWith("b", 1), putWith("a", 1), putWith("c", 3), put("d"))
	mustApply(t, m, putWith("d", 1), putWith("c", 1), checkpoint(1, 4))
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	m = openMem(t, fs)
	defer closeMachine(t, m)

	all, err := m.Leases().All()
	if want := []Lease{{ID: 1, TTL: 10, Remaining: 4}, {ID: 3, TTL: 30}}; err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("leases %v, %v, want %v", all, err, want)
	}
	if got := keysOf(t, m, 1); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("keys of lease 1: %q", got)
	}
	if got := keysOf(t, m, 3); got != nil {
		t.Errorf("keys of lease 3: %q", got)
	}
	if l, err := m.Leases().Get(3); err != nil || l.TTL != 30 {
		t.Errorf("lease 3: %+v, %v", l, err)
	}
	mustApply(t, m, checkpoint(1, 0), put("b"))
	if l, err := m.Leases().Get(1); err != nil || l.Remaining != 0 {
		t.Errorf("lease 1 after it was renewed: %+v, %v", l, err)
	}
	if got := keysOf(t, m, 1); !slices.Equal(got, []string{"a", "c", "d"}) {
		t.Errorf("keys of lease 1 after a put without: %q", got)
	}
}

// A revocation deletes the keys in one revision and in order, and is one step
// with the removal of the lease.
func TestRevoke(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	mustApply(t, m, grant(1), grant(2), putWith("c", 1), putWith("a", 1), putWith("b", 2), put("d"))
	var told seen
	if _, err := m.History().Observe(told.observe); err != nil {
		t.Fatal(err)
	}
	out := mustApply(t, m, revoke(1))
	if got := out[0].Response.(*pb.LeaseRevokeResponse).Header.Revision; got != 6 {
		t.Errorf("revoked at revision %d, want 6", got)
	}
	if !slices.Equal(told, seen{"6 a- c-"}) {
		t.Errorf("deleted %q", told)
	}
	for name, err := range map[string]error{
		"revoke": applyNext(t, m, revoke(1))[0].Err,
		"put":    applyNext(t, m, putWith("a", 1))[0].Err,
		"get":    func() error { _, err := m.Leases().Get(1); return err }(),
		"keys":   func() error { _, err := m.Leases().Keys(1); return err }(),
	} {
		if !errors.Is(err, ErrLeaseNotFound) {
			t.Errorf("%s after the lease was revoked: %v", name, err)
		}
	}
	// The same ID again begins without keys.
	mustApply(t, m, grant(1))
	if got := keysOf(t, m, 1); got != nil {
		t.Errorf("a new lease has keys %q", got)
	}
	out = mustApply(t, m, revoke(1))
	if got := out[0].Response.(*pb.LeaseRevokeResponse).Header.Revision; got != 6 {
		t.Errorf("a lease without keys was revoked at revision %d, want 6", got)
	}
}

func TestObserveLeases(t *testing.T) {
	fs := vfs.NewMem()
	checkpointAt(t, fs)
	m := openMem(t, fs)
	mustApply(t, m, grant(1))
	var told [][]LeaseChange
	all, err := m.Leases().Observe(func(changes []LeaseChange) { told = append(told, changes) })
	if err != nil || !reflect.DeepEqual(all, []Lease{{ID: 1, TTL: 10}}) {
		t.Fatalf("leases %v, %v", all, err)
	}
	mustApply(t, m, grant(2), putWith("a", 2), checkpoint(1, 5))
	mustApply(t, m, put("a"))
	mustApply(t, m, revoke(2))
	if err := m.Install(incomingDir); err != nil {
		t.Fatal(err)
	}
	want := [][]LeaseChange{
		{{Lease: Lease{ID: 2, TTL: 20}}, {Lease: Lease{ID: 1, TTL: 10, Remaining: 5}}},
		{{Lease: Lease{ID: 2, TTL: 20}, Gone: true}},
		nil,
	}
	if !reflect.DeepEqual(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	closeMachine(t, m)
	if _, err := m.Leases().Observe(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("observing a closed machine: %v", err)
	}
}

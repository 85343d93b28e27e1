package machine

import (
	"bytes"
	"encoding/base64"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
)

// setUp makes users root and u, the latter with a role that may write keys
// that begin with "x" and read none, and enables auth.
func setUp(t testing.TB, m *Machine) {
	t.Helper()
	hash := base64.StdEncoding.EncodeToString([]byte("hash"))
	mustApply(t, m,
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root", HashedPassword: hash}},
		&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "r"}},
		&pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "r",
			Perm: &authpb.Permission{PermType: authpb.Permission_WRITE, Key: []byte("x"), RangeEnd: []byte("y")}}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", HashedPassword: hash}},
		&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}},
		&pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}},
	)
}

// applyAs applies requests of a user, who was found out in the present state.
func applyAs(t testing.TB, m *Machine, user string, requests ...*pb.InternalRaftRequest) []Outcome {
	t.Helper()
	index, _ := m.Applied()
	var encoded [][]byte
	for i, r := range requests {
		r.Header = &pb.RequestHeader{ID: uint64(i) + 1, Username: user, AuthRevision: m.Auth().Revision()}
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		encoded = append(encoded, b)
	}
	outcomes, err := m.Apply([]Entry{{Index: index + 1, Term: 1, Payload: EncodeBatch(1, encoded)}}, all)
	if err != nil || len(outcomes) != len(requests) {
		t.Fatalf("%d outcomes of %d requests: %v", len(outcomes), len(requests), err)
	}
	return outcomes
}

func TestPermittedWhenApplied(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	mustApply(t, m, grant(1), putWith("secret", 1), grant(2), putWith("x0", 2))
	setUp(t, m)
	nested := func(p *pb.PutRequest) *pb.InternalRaftRequest {
		inner := &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: p}}}}
		return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}}}}
	}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	m = openMem(t, fs) // permissions survive
	defer closeMachine(t, m)
	before := m.Revision()
	for _, c := range []struct {
		name    string
		user    string
		request *pb.InternalRaftRequest
		want    error
	}{
		{"put", "u", put("a"), auth.ErrPermissionDenied},
		{"put by nobody", "", put("x"), auth.ErrPermissionDenied},
		{"put with a lease of others", "u", putWith("x", 1), auth.ErrPermissionDenied},
		{"nested put", "u", nested(&pb.PutRequest{Key: []byte("a")}), auth.ErrPermissionDenied},
		{"nested put with a lease of others", "u", nested(&pb.PutRequest{Key: []byte("x"), Lease: 1}), auth.ErrPermissionDenied},
		{"nested put with the previous value", "u", nested(&pb.PutRequest{Key: []byte("x"), PrevKv: true}), auth.ErrPermissionDenied},
		{"delete", "u", deleteAll(), auth.ErrPermissionDenied},
		{"revoke", "u", revoke(1), auth.ErrPermissionDenied},
		{"administer", "u", &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}}, auth.ErrPermissionDenied},
		{"administer by nobody", "", &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}}, auth.ErrUserEmpty},
	} {
		if got := applyAs(t, m, c.user, c.request)[0]; !errors.Is(got.Err, c.want) || got.Response != nil {
			t.Errorf("%s: %+v, want %v", c.name, got, c.want)
		}
	}
	if m.Revision() != before {
		t.Errorf("revision %d, want %d: what was refused changed something", m.Revision(), before)
	}
	for _, o := range applyAs(t, m, "u", put("x"), putWith("x", 2), revoke(2), nested(&pb.PutRequest{Key: []byte("x")})) {
		if o.Err != nil {
			t.Errorf("what is permitted: %v", o.Err)
		}
	}
}

// A permission that is taken in the same entry, before the put, is taken.
func TestPermissionTakenMeanwhile(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	setUp(t, m)
	index, _ := m.Applied()
	revision := m.Auth().Revision()
	take := &pb.InternalRaftRequest{
		Header:             &pb.RequestHeader{ID: 1, Username: "root", AuthRevision: revision},
		AuthUserRevokeRole: &pb.AuthUserRevokeRoleRequest{Name: "u", Role: "r"},
	}
	late := put("x")
	late.Header = &pb.RequestHeader{ID: 2, Username: "u", AuthRevision: revision}
	var encoded [][]byte
	for _, r := range []*pb.InternalRaftRequest{take, late} {
		b, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		encoded = append(encoded, b)
	}
	outcomes, err := m.Apply([]Entry{{Index: index + 1, Term: 1, Payload: EncodeBatch(1, encoded)}}, all)
	if err != nil || outcomes[0].Err != nil || !errors.Is(outcomes[1].Err, auth.ErrAuthOldRevision) {
		t.Errorf("%v, %v", outcomes, err)
	}
}

func TestObserveTokens(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	setUp(t, m)
	var told []TokenChange
	m.ObserveTokens(func(changes []TokenChange) { told = append(told, changes...) })
	login := &pb.InternalRaftRequest{Authenticate: &pb.InternalAuthenticateRequest{Name: "u", SimpleToken: "abc"}}
	out := applyAs(t, m, "", login)[0]
	token := out.Response.(*pb.AuthenticateResponse).GetToken()
	if out.Err != nil || token != "abc.2" {
		t.Fatalf("token %q, %v", token, out.Err)
	}
	hash := base64.StdEncoding.EncodeToString([]byte("other"))
	applyAs(t, m, "root", &pb.InternalRaftRequest{AuthUserChangePassword: &pb.AuthUserChangePasswordRequest{Name: "u", HashedPassword: hash}})
	applyAs(t, m, "root", &pb.InternalRaftRequest{AuthUserDelete: &pb.AuthUserDeleteRequest{Name: "nobody"}})
	applyAs(t, m, "root", &pb.InternalRaftRequest{AuthUserDelete: &pb.AuthUserDeleteRequest{Name: "u"}})
	applyAs(t, m, "root", &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}})
	applyAs(t, m, "", &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}})
	want := []TokenChange{{User: "u", Token: "abc.2"}, {User: "u", Gone: true}, {User: "u", Gone: true}, {Gone: true}}
	if !reflect.DeepEqual(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// A password in clear leaves no trace in the files.
func TestNoPasswordStored(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	out := applyNext(t, m,
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", Password: "in-the-clear"}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "stored-name", HashedPassword: base64.StdEncoding.EncodeToString([]byte("hash"))}})
	if !errors.Is(out[0].Err, auth.ErrNoPassword) || out[1].Err != nil {
		t.Fatalf("%v", out)
	}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	dir := fs.PathJoin(machineDir, storeName(1))
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found bool
	for _, name := range names {
		f, err := fs.Open(fs.PathJoin(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		content := make([]byte, info.Size())
		if _, err := f.ReadAt(content, 0); err != nil && info.Size() > 0 {
			t.Fatal(err)
		}
		found = found || bytes.Contains(content, []byte("stored-name"))
		if bytes.Contains(content, []byte("in-the-clear")) {
			t.Errorf("%s has the password", name)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !found {
		t.Error("the files do not have the user either, so the test shows nothing")
	}
	m = openMem(t, fs)
	defer closeMachine(t, m)
	if got := m.Auth().UserNames(); !slices.Equal(got, []string{"stored-name"}) {
		t.Errorf("users %q", got)
	}
}

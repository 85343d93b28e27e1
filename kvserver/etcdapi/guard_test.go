package etcdapi

import (
	"context"
	"errors"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
	"muster/kvserver/token"
)

// knownStore knows users only.
type knownStore struct {
	Store
	known *auth.State
}

func (s knownStore) Auth() *auth.State { return s.known }

// someUsers has root, and u who may read "k" and what begins with "p".
func someUsers(t *testing.T) *api {
	t.Helper()
	s := auth.Load(false, 0, nil, nil)
	for _, change := range []func(auth.Change) (*auth.State, error){
		func(c auth.Change) (*auth.State, error) { return c.AddRole("r") },
		func(c auth.Change) (*auth.State, error) {
			return c.GrantPermission("r", &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("k")})
		},
		func(c auth.Change) (*auth.State, error) {
			return c.GrantPermission("r", &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("p"), RangeEnd: []byte("q")})
		},
		func(c auth.Change) (*auth.State, error) {
			return c.AddUser(&pb.AuthUserAddRequest{Name: "u", Options: &authpb.UserAddOptions{NoPassword: true}})
		},
		func(c auth.Change) (*auth.State, error) { return c.GrantRole("u", "r") },
		func(c auth.Change) (*auth.State, error) {
			return c.AddUser(&pb.AuthUserAddRequest{Name: "root", Options: &authpb.UserAddOptions{NoPassword: true}})
		},
		func(c auth.Change) (*auth.State, error) { return c.GrantRole("root", "root") },
		auth.Change.Enable,
	} {
		var err error
		if s, err = change(s.Change()); err != nil {
			t.Fatal(err)
		}
	}
	tokens, err := token.New("simple", token.Config{TTL: 1 << 40, CatchUp: func(context.Context) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	tokens.Observe([]machine.TokenChange{{User: "root", Token: "root.1"}, {User: "u", Token: "u.2"}})
	return &api{store: knownStore{known: s}, access: Access{Tokens: tokens}}
}

func showing(t *testing.T, token string) context.Context {
	t.Helper()
	if token == "" {
		return t.Context()
	}
	return metadata.NewIncomingContext(t.Context(), metadata.Pairs("token", token))
}

// Every method of etcd's API is for root, unless it is known to ask for
// something else; a method to come is for root (CVE-2026-33413).
func TestEveryMethodIsGuarded(t *testing.T) {
	a := someUsers(t)
	var forRoot []string
	var services []protoreflect.ServiceDescriptor
	for _, file := range []protoreflect.FileDescriptor{pb.File_rpc_proto, v3lockpb.File_v3lock_proto, v3electionpb.File_v3election_proto} {
		for i := range file.Services().Len() {
			services = append(services, file.Services().Get(i))
		}
	}
	for _, service := range services {
		methods := service.Methods()
		for j := range methods.Len() {
			method := methods.Get(j)
			name := "/" + string(service.FullName()) + "/" + string(method.Name())
			if needOfMethod(name) == needRoot {
				forRoot = append(forRoot, string(method.Name()))
			}
		}
	}
	slices.Sort(forRoot)
	want := []string{"Alarm", "Compact", "Defragment", "Downgrade", "Hash", "HashKV", "MemberAdd", "MemberPromote", "MemberRemove", "MemberUpdate", "MoveLeader", "Snapshot"}
	if !slices.Equal(forRoot, want) {
		t.Errorf("for root are %q, want %q", forRoot, want)
	}

	for _, c := range []struct {
		method, token string
		request       any
		want          error
	}{
		{"/etcdserverpb.Maintenance/Hash", "", nil, auth.ErrUserEmpty},
		{"/etcdserverpb.Maintenance/Hash", "u.2", nil, auth.ErrPermissionDenied},
		{"/etcdserverpb.Maintenance/Hash", "x.3", nil, token.ErrInvalid},
		{"/etcdserverpb.Maintenance/Hash", "root.1", nil, nil},
		{"etcdserverpb.Maintenance/Hash", "u.2", nil, auth.ErrPermissionDenied}, // no slash: CVE-2026-33186
		{"/etcdserverpb.Maintenance/Alarm", "u.2", &pb.AlarmRequest{}, nil},
		{"/etcdserverpb.Maintenance/Alarm", "", &pb.AlarmRequest{}, auth.ErrUserEmpty},
		{"/etcdserverpb.Maintenance/Alarm", "u.2", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE}, auth.ErrPermissionDenied},
		{"/etcdserverpb.Maintenance/Status", "", nil, auth.ErrUserEmpty},
		{"/etcdserverpb.Maintenance/Status", "u.2", nil, nil},
		{"/etcdserverpb.KV/Range", "", nil, nil},
		{"/made.up/Method", "u.2", nil, auth.ErrPermissionDenied},
	} {
		err := a.admit(showing(t, c.token), needOf(c.method, c.request))
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s with %q: %v, want %v", c.method, c.token, err, c.want)
		}
		// Both kinds of calls ask, before anything else happens.
		called := false
		_, err = a.guardUnary(showing(t, c.token), c.request, &grpc.UnaryServerInfo{FullMethod: c.method}, func(context.Context, any) (any, error) {
			called = true
			return nil, nil
		})
		if called != (c.want == nil) || called != (err == nil) {
			t.Errorf("%s with %q: called %v, %v", c.method, c.token, called, err)
		}
	}
	called := false
	err := a.guardStream(nil, fakeStream{ctx: showing(t, "u.2")}, &grpc.StreamServerInfo{FullMethod: pb.Maintenance_Snapshot_FullMethodName}, func(any, grpc.ServerStream) error {
		called = true
		return nil
	})
	if called || err == nil {
		t.Errorf("a snapshot for u: called %v, %v", called, err)
	}
	a.store = knownStore{known: a.store.Auth().Change().Disable()}
	if err := a.admit(t.Context(), needRoot); err != nil {
		t.Errorf("without auth: %v", err)
	}
}

type fakeStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s fakeStream) Context() context.Context { return s.ctx }

// Whoever may read one key may not watch what follows it (CVE-2026-73499).
func TestWhoMayWatch(t *testing.T) {
	a := someUsers(t)
	for _, c := range []struct {
		token, key, end string
		want            error
	}{
		{"u.2", "k", "", nil},
		{"u.2", "k", "k\x00", nil},
		{"u.2", "k", "\x00", auth.ErrPermissionDenied},
		{"u.2", "k", "l", auth.ErrPermissionDenied},
		{"u.2", "p", "q", nil},
		{"u.2", "p1", "p2", nil},
		{"u.2", "p", "\x00", auth.ErrPermissionDenied},
		{"u.2", "", "", auth.ErrPermissionDenied},
		{"u.2", "", "\x00", auth.ErrPermissionDenied},
		{"", "k", "", auth.ErrUserEmpty},
		{"x.3", "k", "", token.ErrInvalid},
		{"root.1", "", "\x00", nil},
	} {
		err := a.mayWatch(showing(t, c.token), &pb.WatchCreateRequest{Key: []byte(c.key), RangeEnd: []byte(c.end)})
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%q watches [%q, %q): %v, want %v", c.token, c.key, c.end, err, c.want)
		}
	}
}

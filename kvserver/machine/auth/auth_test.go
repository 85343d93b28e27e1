package auth

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// build makes a state out of lines: "user NAME ROLE...", "role NAME",
// "read|write|both ROLE KEY [END]" and "on".
func build(t testing.TB, lines ...string) *State {
	t.Helper()
	s := Load(false, 0, nil, nil)
	for _, line := range lines {
		f := strings.Fields(line)
		var err error
		switch f[0] {
		case "user":
			s, err = s.Change().AddUser(&pb.AuthUserAddRequest{Name: f[1], Options: &authpb.UserAddOptions{NoPassword: true}})
			for _, role := range f[2:] {
				if err == nil {
					s, err = s.Change().GrantRole(f[1], role)
				}
			}
		case "role":
			s, err = s.Change().AddRole(f[1])
		case "on":
			s, err = s.Change().Enable()
		default:
			p := &authpb.Permission{Key: []byte(f[2])}
			p.PermType = map[string]authpb.Permission_Type{"read": authpb.Permission_READ, "write": authpb.Permission_WRITE, "both": authpb.Permission_READWRITE}[f[0]]
			if len(f) > 3 {
				p.RangeEnd = []byte(strings.ReplaceAll(f[3], "open", "\x00"))
			}
			s, err = s.Change().GrantPermission(f[1], p)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return s
}

func enabled(t testing.TB) *State {
	return build(t, "role r", "both r k", "read r a c", "read r c e", "write r x open", "role empty",
		"user root root", "user u r", "user nobody empty", "on")
}

func (s *State) identity(user string) Identity { return Identity{User: user, Revision: s.revision} }

func TestPermissions(t *testing.T) {
	s := enabled(t)
	for _, c := range []struct {
		user, key, end string
		read, write    error
	}{
		{"u", "k", "", nil, nil},
		{"u", "k", "k\x00", nil, nil}, // the same in another way
		{"u", "k", "l", ErrPermissionDenied, ErrPermissionDenied},
		{"u", "k", "\x00", ErrPermissionDenied, ErrPermissionDenied},
		{"u", "kk", "", ErrPermissionDenied, ErrPermissionDenied},
		{"u", "a", "", nil, ErrPermissionDenied},
		{"u", "b", "d", nil, ErrPermissionDenied}, // two permissions together
		{"u", "a", "e", nil, ErrPermissionDenied},
		{"u", "a", "f", ErrPermissionDenied, ErrPermissionDenied},
		{"u", "y", "\x00", ErrPermissionDenied, nil},
		{"u", "z", "", ErrPermissionDenied, nil},
		{"nobody", "a", "", ErrPermissionDenied, ErrPermissionDenied},
		{"unknown", "a", "", ErrPermissionDenied, ErrPermissionDenied},
		{"root", "a", "\x00", nil, nil},
	} {
		who := s.identity(c.user)
		if err := s.Of(who).Read([]byte(c.key), []byte(c.end)); !errors.Is(err, c.read) || c.read == nil && err != nil {
			t.Errorf("%s reads [%q, %q): %v, want %v", c.user, c.key, c.end, err, c.read)
		}
		err := s.Of(who).Delete(&pb.DeleteRangeRequest{Key: []byte(c.key), RangeEnd: []byte(c.end)})
		if !errors.Is(err, c.write) || c.write == nil && err != nil {
			t.Errorf("%s writes [%q, %q): %v, want %v", c.user, c.key, c.end, err, c.write)
		}
	}
}

func TestIdentity(t *testing.T) {
	s := enabled(t)
	key := []byte("k")
	if err := s.Of(Identity{}).Read(key, nil); !errors.Is(err, ErrUserEmpty) {
		t.Errorf("nobody: %v", err)
	}
	if err := s.Of(Identity{User: "root", Revision: s.revision - 1}).Read(key, nil); !errors.Is(err, ErrAuthOldRevision) {
		t.Errorf("an old revision: %v", err)
	}
	for user, want := range map[string]error{"": ErrUserEmpty, "unknown": ErrUserNotFound, "u": ErrPermissionDenied, "root": nil} {
		if err := s.Of(Identity{User: user}).Administer(); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%q administers: %v, want %v", user, err, want)
		}
	}
	off := s.Change().Disable()
	if off.Of(Identity{}).Read(key, nil) != nil || off.Of(Identity{}).Administer() != nil || off.Enabled() || !s.Enabled() {
		t.Error("without auth everybody may do everything")
	}
	if s.Of(s.identity("u")).SeeUser("u") != nil || s.Of(s.identity("u")).SeeUser("root") == nil {
		t.Error("users see themselves only")
	}
	if s.Of(s.identity("u")).SeeRole("r") != nil || s.Of(s.identity("u")).SeeRole("empty") == nil || s.Of(s.identity("root")).SeeRole("empty") != nil {
		t.Error("users see their own roles only")
	}
}

// Whatever a transaction could do needs permission, in either branch and
// however deep: nested operations were once forgotten (CVE-2026-33343), and in
// them the previous value and the lease of a put (CVE-2026-44283).
func TestTxnPermissions(t *testing.T) {
	s := enabled(t)
	attached := func(id int64) ([][]byte, error) {
		if id == 7 {
			return [][]byte{[]byte("x1"), []byte("secret")}, nil
		}
		return nil, nil
	}
	put := func(key string, prev bool, lease int64) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), PrevKv: prev, Lease: lease}}}
	}
	get := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
	}
	del := func(key string, prev bool) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), PrevKv: prev}}}
	}
	for _, c := range []struct {
		name string
		op   *pb.RequestOp
		want error
	}{
		{"put", put("x", false, 0), nil},
		{"put elsewhere", put("secret", false, 0), ErrPermissionDenied},
		{"put with the previous value", put("x", true, 0), ErrPermissionDenied},
		{"put with the previous value, readable", put("k", true, 0), nil},
		{"put with a lease of others", put("x", false, 7), ErrPermissionDenied},
		{"put with a new lease", put("x", false, 8), nil},
		{"range", get("a"), nil},
		{"range elsewhere", get("secret"), ErrPermissionDenied},
		{"delete", del("x", false), nil},
		{"delete elsewhere", del("a", false), ErrPermissionDenied},
		{"delete with the previous value", del("x", true), ErrPermissionDenied},
	} {
		nest := func(r *pb.TxnRequest) *pb.TxnRequest {
			return &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}}}
		}
		ops := []*pb.RequestOp{c.op}
		for where, r := range map[string]*pb.TxnRequest{
			"then":        {Success: ops},
			"else":        {Failure: ops},
			"nested":      nest(&pb.TxnRequest{Failure: ops}),
			"nested deep": nest(nest(nest(&pb.TxnRequest{Success: ops}))),
		} {
			err := s.Of(s.identity("u")).Txn(r, attached)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("%s, %s: %v, want %v", c.name, where, err, c.want)
			}
			if err := s.Of(s.identity("root")).Txn(r, attached); err != nil {
				t.Errorf("%s, %s, by root: %v", c.name, where, err)
			}
		}
	}
	compare := &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a"), RangeEnd: []byte("z")}}}
	if err := s.Of(s.identity("u")).Txn(compare, nil); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("a compare tells what is in the range: %v", err)
	}
	broken := errors.New("broken")
	fail := func(int64) ([][]byte, error) { return nil, broken }
	if err := s.Of(s.identity("u")).Txn(&pb.TxnRequest{Success: []*pb.RequestOp{put("x", false, 9)}}, fail); !errors.Is(err, broken) {
		t.Errorf("a lease that cannot be read: %v", err)
	}
}

// A password in clear is never taken, so that it cannot get into the state of
// any member (CVE-2021-28235 was of that kind).
func TestPasswords(t *testing.T) {
	s := build(t)
	hashed := base64.StdEncoding.EncodeToString([]byte("hash"))
	if _, err := s.Change().AddUser(&pb.AuthUserAddRequest{Name: "u", Password: "clear"}); !errors.Is(err, ErrNoPassword) {
		t.Errorf("a user with a password in clear: %v", err)
	}
	s, err := s.Change().AddUser(&pb.AuthUserAddRequest{Name: "u", HashedPassword: hashed})
	if err != nil || string(s.User("u").Password) != "hash" {
		t.Fatalf("user %v, %v", s.User("u"), err)
	}
	if _, err := s.Change().ChangePassword(&pb.AuthUserChangePasswordRequest{Name: "u", Password: "clear"}); !errors.Is(err, ErrNoPassword) {
		t.Errorf("a new password in clear: %v", err)
	}
	next, err := s.Change().ChangePassword(&pb.AuthUserChangePasswordRequest{Name: "u", HashedPassword: base64.StdEncoding.EncodeToString([]byte("other"))})
	if err != nil || string(next.User("u").Password) != "other" || string(s.User("u").Password) != "hash" {
		t.Errorf("changed from %v to %v, %v", s.User("u"), next.User("u"), err)
	}
	none := build(t, "user u", "user root root", "on")
	if err := none.Authenticate("u"); !errors.Is(err, ErrAuthFailed) {
		t.Errorf("a user without password authenticates: %v", err)
	}
}

// What was known before a change stays as it was.
func TestStatesDoNotChange(t *testing.T) {
	s := enabled(t)
	describe := func() []string {
		var lines []string
		for _, u := range s.Users() {
			lines = append(lines, u.String())
		}
		for _, r := range s.Roles() {
			lines = append(lines, r.String())
		}
		return lines
	}
	before := describe()
	for name, change := range map[string]func() (*State, error){
		"DeleteUser":       func() (*State, error) { return s.Change().DeleteUser("u") },
		"GrantRole":        func() (*State, error) { return s.Change().GrantRole("u", "empty") },
		"RevokeRole":       func() (*State, error) { return s.Change().RevokeRole("u", "r") },
		"AddRole":          func() (*State, error) { return s.Change().AddRole("new") },
		"DeleteRole":       func() (*State, error) { return s.Change().DeleteRole("r") },
		"GrantPermission":  func() (*State, error) { return s.Change().GrantPermission("r", &authpb.Permission{Key: []byte("k")}) },
		"RevokePermission": func() (*State, error) { return s.Change().RevokePermission("r", []byte("k"), nil) },
	} {
		next, err := change()
		if err != nil || next.Revision() != s.Revision()+1 {
			t.Errorf("%s: revision %d after %d, %v", name, next.Revision(), s.Revision(), err)
		}
		if got := describe(); !slices.Equal(got, before) {
			t.Errorf("%s changed\n%q to\n%q", name, before, got)
		}
	}
	if err := s.Of(s.identity("u")).Read([]byte("a"), nil); err != nil {
		t.Fatal(err)
	}
	taken, err := s.Change().RevokeRole("u", "r")
	if err != nil {
		t.Fatal(err)
	}
	if err := taken.Of(taken.identity("u")).Read([]byte("a"), nil); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("a role that was taken still permits: %v", err)
	}
}

package difftest

import (
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const root = "root"

var (
	userNames = []string{"u1", "u2", "u3", "u4"}
	roleNames = []string{"r1", "r2", "r3"}
)

// authKnowledge is what the generator knows of users.
type authKnowledge struct {
	enabled   bool
	passwords map[string]string // of those who have one
	tokens    map[string]bool   // who has one
	age       int               // times that auth could have been disabled
	granted   []*pb.AuthRoleGrantPermissionRequest
}

func newAuthKnowledge() authKnowledge {
	return authKnowledge{passwords: map[string]string{}, tokens: map[string]bool{}}
}

// user draws who asks. While auth is not enabled nobody looks.
func (g *generator) user() string {
	if !g.auth.enabled {
		if g.oneIn(50) {
			return pick(g, root, "u1", garbage)
		}
		return nobody
	}
	switch n := g.IntN(20); {
	case n < 11:
		return root
	case n < 18:
		return pick(g, userNames...)
	default:
		return pick(g, nobody, garbage)
	}
}

// authRequests draws what the Auth service is asked.
type authRequests struct{ *generator }

// heedRefusal has a user log in whose token is not good any more, sooner or
// later.
func (g authRequests) heedRefusal(user string, a answer) {
	old := a.code == codes.Unauthenticated || a.code == codes.InvalidArgument && strings.Contains(a.message, "revision")
	missing := a.code == codes.InvalidArgument && strings.Contains(a.message, "user name is empty") && user != nobody
	if old || missing {
		g.relogin(user)
	}
}

func (g authRequests) relogin(user string) {
	password, known := g.auth.passwords[user]
	if known && g.auth.enabled && (user == root || g.oneIn(3)) {
		g.queue = append(g.queue, login{user, password})
	}
}

func (g authRequests) heedAuth(request proto.Message) {
	switch r := request.(type) {
	case *pb.AuthEnableRequest:
		g.auth.enabled, g.auth.age = true, 0
	case *pb.AuthDisableRequest:
		g.auth.enabled = false
		clear(g.auth.tokens)
	case *pb.AuthRoleGrantPermissionRequest:
		g.auth.granted = append(g.auth.granted, r)
	case *pb.AuthUserAddRequest:
		if !r.GetOptions().GetNoPassword() {
			g.auth.passwords[r.GetName()] = r.GetPassword()
		}
	case *pb.AuthUserDeleteRequest:
		delete(g.auth.passwords, r.GetName())
	case *pb.AuthUserChangePasswordRequest:
		g.auth.passwords[r.GetName()] = r.GetPassword()
	}
}

// toggle enables auth, after what that needs, or disables it.
func (g authRequests) toggle() step {
	if g.auth.enabled {
		if g.auth.age++; g.auth.age < 4 {
			return login{root, g.auth.passwords[root]}
		}
		g.queue = append(g.queue, call{root, "etcdserverpb.Auth.AuthDisable", &pb.AuthDisableRequest{}})
		return login{root, g.auth.passwords[root]}
	}
	if !g.oneIn(4) {
		return g.by("Auth.AuthStatus", &pb.AuthStatusRequest{})
	}
	if g.oneIn(8) { // unprepared
		return g.by("Auth.AuthEnable", &pb.AuthEnableRequest{})
	}
	ask := func(method string, request proto.Message) {
		g.queue = append(g.queue, call{nobody, "etcdserverpb.Auth." + method, request})
	}
	for _, user := range append([]string{root}, userNames...) {
		ask("UserAdd", &pb.AuthUserAddRequest{Name: user, Password: "pw " + user, Options: &authpb.UserAddOptions{}})
		ask("UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: user, Password: "pw " + user})
	}
	ask("RoleAdd", &pb.AuthRoleAddRequest{Name: root})
	ask("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: root, Role: root})
	for i, role := range roleNames {
		ask("RoleAdd", &pb.AuthRoleAddRequest{Name: role})
		ask("RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: g.permission()})
		ask("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: userNames[i], Role: role})
	}
	ask("AuthEnable", &pb.AuthEnableRequest{})
	for _, user := range append([]string{root}, userNames...) {
		g.queue = append(g.queue, login{user, "pw " + user})
	}
	return call{nobody, "etcdserverpb.Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: root}}
}

func (g authRequests) permission() *authpb.Permission {
	p := &authpb.Permission{PermType: authpb.Permission_Type(g.IntN(3))}
	p.Key, p.RangeEnd = g.interval()
	if g.oneIn(4) {
		p.Key, p.RangeEnd = []byte("a"), []byte("l")
	}
	if g.oneIn(60) {
		p.PermType = 7
	}
	return p
}

func (g authRequests) aUser() string {
	switch g.IntN(30) {
	case 0:
		return ""
	case 1:
		return root
	case 2:
		return "nobody at all"
	default:
		return pick(g.generator, userNames...)
	}
}

func (g authRequests) aRole() string {
	switch g.IntN(30) {
	case 0:
		return ""
	case 1:
		return root
	case 2:
		return "no role at all"
	default:
		return pick(g.generator, roleNames...)
	}
}

func (g authRequests) password() string {
	return pick(g.generator, "pw1", "pw1", "pw2", "", strings.Repeat("p", 72), strings.Repeat("p", 73))
}

// hashedPassword is what only etcd's servers are meant to send each other.
func (g authRequests) hashedPassword() string {
	return pick(g.generator, "no base64", "bm8gaGFzaA==", "JDJhJDA0JHZLN1lzdHpqUXFHVlVCYmZ1RGVLM2VJa0VtSDlXRjBYRFF6OTdXVzhmdHFJMFVpS0p2c3NP")
}

// request is drawn so that what is taken away is also given.
func (g authRequests) request() step {
	if g.auth.enabled && g.oneIn(3) {
		user := g.aUser()
		password, known := g.auth.passwords[user]
		if !known || g.oneIn(6) {
			password = g.password()
		}
		return login{user, password}
	}
	user, role := g.aUser(), g.aRole()
	switch g.IntN(24) {
	case 0, 1:
		r := &pb.AuthUserAddRequest{Name: user, Password: g.password(), Options: &authpb.UserAddOptions{NoPassword: g.oneIn(6)}}
		if g.oneIn(6) {
			r.Options = nil
		}
		if g.oneIn(12) {
			r.HashedPassword = g.hashedPassword()
		}
		if user == root { // who has to be able to disable auth
			r.Password, r.Options = "pw root", nil
		}
		return g.by("Auth.UserAdd", r)
	case 2, 3:
		return g.by("Auth.UserGet", &pb.AuthUserGetRequest{Name: user})
	case 4:
		return g.by("Auth.UserList", &pb.AuthUserListRequest{})
	case 5:
		return g.by("Auth.UserDelete", &pb.AuthUserDeleteRequest{Name: user})
	case 6:
		if user == root {
			user = "u1"
		}
		r := &pb.AuthUserChangePasswordRequest{Name: user, Password: g.password()}
		if g.oneIn(12) {
			r.HashedPassword = g.hashedPassword()
		}
		return g.by("Auth.UserChangePassword", r)
	case 7, 8, 9:
		return g.by("Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: user, Role: role})
	case 10:
		return g.by("Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role})
	case 11, 12:
		return g.by("Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: role})
	case 13, 14:
		return g.by("Auth.RoleGet", &pb.AuthRoleGetRequest{Role: role})
	case 15:
		return g.by("Auth.RoleList", &pb.AuthRoleListRequest{})
	case 16:
		return g.by("Auth.RoleDelete", &pb.AuthRoleDeleteRequest{Role: role})
	case 17, 18, 19:
		r := &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: g.permission()}
		if g.oneIn(30) {
			r.Perm = nil
		}
		return g.by("Auth.RoleGrantPermission", r)
	case 20, 21, 22:
		r := &pb.AuthRoleRevokePermissionRequest{Role: role}
		r.Key, r.RangeEnd = g.interval()
		if n := len(g.auth.granted); n > 0 && !g.oneIn(4) {
			granted := g.auth.granted[n-1-g.IntN(min(n, 5))]
			r.Role, r.Key, r.RangeEnd = granted.GetName(), granted.GetPerm().GetKey(), granted.GetPerm().GetRangeEnd()
		}
		return g.by("Auth.RoleRevokePermission", r)
	default:
		return g.by("Auth.AuthStatus", &pb.AuthStatusRequest{})
	}
}

// isPreparing tells whether a step is queued that others depend on.
func (g authRequests) isPreparing() bool {
	return slices.ContainsFunc(g.queue, func(s step) bool { c, ok := s.(call); return ok && strings.HasSuffix(c.method, "AuthEnable") })
}

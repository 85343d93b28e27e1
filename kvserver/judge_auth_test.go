package kvserver

import (
	"context"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// logins has the tokens of users, by side and name.
type logins map[*grpc.ClientConn]map[string]string

// as makes a call with the last token of a user; of nobody when it is empty.
func (l logins) as(user string, c call) call {
	name := "nobody: " + c.name
	if user != "" {
		name = user + ": " + c.name
	}
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		if token := l[conn][user]; token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
		}
		return c.run(ctx, conn)
	}}
}

// authenticate keeps the token under a name.
func (l logins) authenticate(name, user, password, as string) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		response, err := pb.NewAuthClient(conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		if l[conn] == nil {
			l[conn] = map[string]string{}
		}
		if err == nil {
			l[conn][as] = response.GetToken()
		}
		return response, err
	}}
}

func authCall[Q, R proto.Message](name string, method func(pb.AuthClient, context.Context, Q, ...grpc.CallOption) (R, error), request Q) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		return method(pb.NewAuthClient(conn), ctx, request)
	}}
}

func addUser(name, user, password string, noPassword bool) call {
	return authCall(name, pb.AuthClient.UserAdd, &pb.AuthUserAddRequest{Name: user, Password: password, Options: &authpb.UserAddOptions{NoPassword: noPassword}})
}

func getUser(name, user string) call {
	return authCall(name, pb.AuthClient.UserGet, &pb.AuthUserGetRequest{Name: user})
}

func changePassword(name, user, password string) call {
	return authCall(name, pb.AuthClient.UserChangePassword, &pb.AuthUserChangePasswordRequest{Name: user, Password: password})
}

func grantRole(name, user, role string) call {
	return authCall(name, pb.AuthClient.UserGrantRole, &pb.AuthUserGrantRoleRequest{User: user, Role: role})
}

func revokeRole(name, user, role string) call {
	return authCall(name, pb.AuthClient.UserRevokeRole, &pb.AuthUserRevokeRoleRequest{Name: user, Role: role})
}

func addRole(name, role string) call {
	return authCall(name, pb.AuthClient.RoleAdd, &pb.AuthRoleAddRequest{Name: role})
}

func getRole(name, role string) call {
	return authCall(name, pb.AuthClient.RoleGet, &pb.AuthRoleGetRequest{Role: role})
}

func permit(name, role string, kind authpb.Permission_Type, key, end string) call {
	return authCall(name, pb.AuthClient.RoleGrantPermission, &pb.AuthRoleGrantPermissionRequest{
		Name: role, Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)},
	})
}

func forbid(name, role, key, end string) call {
	return authCall(name, pb.AuthClient.RoleRevokePermission, &pb.AuthRoleRevokePermissionRequest{Role: role, Key: []byte(key), RangeEnd: []byte(end)})
}

func authStatus() call {
	return authCall("status of auth", pb.AuthClient.AuthStatus, &pb.AuthStatusRequest{})
}

func enableAuth() call {
	return authCall("enable auth", pb.AuthClient.AuthEnable, &pb.AuthEnableRequest{})
}

func disableAuth() call {
	return authCall("disable auth", pb.AuthClient.AuthDisable, &pb.AuthDisableRequest{})
}

func listUsers() call {
	return authCall("list users", pb.AuthClient.UserList, &pb.AuthUserListRequest{})
}

func listRoles() call {
	return authCall("list roles", pb.AuthClient.RoleList, &pb.AuthRoleListRequest{})
}

// beforeAuth makes users and roles, with everything that is refused on the way.
func (l logins) beforeAuth() []call {
	return []call{
		put("put a", &pb.PutRequest{Key: []byte("a"), Value: []byte("1")}),
		put("put secret", &pb.PutRequest{Key: []byte("secret"), Value: []byte("1")}),
		grant("grant 21", 21, 1000),
		put("put secret with a lease", &pb.PutRequest{Key: []byte("secret2"), Lease: 21}),
		grant("grant 22", 22, 1000),
		put("put a with a lease", &pb.PutRequest{Key: []byte("a2"), Lease: 22}),
		authStatus(), listUsers(), listRoles(),
		enableAuth(),
		disableAuth(),
		l.authenticate("authenticate in vain", "u", "pass", "u"),
		addUser("user without name", "", "x", false),
		addUser("user u", "u", "pass-u", false),
		addUser("user u again", "u", "pass-u", false),
		addUser("user with a long password", "long", strings.Repeat("x", 73), false),
		addUser("user with an empty password", "empty", "", false),
		addUser("user without password", "none", "", true),
		addUser("user without password, with one", "none2", "ignored", true),
		authCall("user without options", pb.AuthClient.UserAdd, &pb.AuthUserAddRequest{Name: "plain", Password: "pass-plain"}),
		getUser("get u", "u"), getUser("get nobody", "nobody"),
		listUsers(),
		changePassword("change a password", "u", "other-u"),
		changePassword("change nobody's password", "nobody", "x"),
		changePassword("change the password of who has none", "none", "x"),
		changePassword("change to a long password", "u", strings.Repeat("x", 73)),
		changePassword("change to no password", "empty", ""),
		addRole("role r", "r"), addRole("role r again", "r"), addRole("role without name", ""),
		permit("read a to c", "r", authpb.READ, "a", "c"),
		permit("read and write a", "r", authpb.READWRITE, "a", ""),
		permit("write w", "r", authpb.WRITE, "w", "x"),
		permit("read from y on", "r", authpb.READ, "y", "\x00"),
		permit("role that does not exist", "s", authpb.READ, "a", ""),
		permit("an empty range", "r", authpb.READ, "z", "a"),
		permit("no key", "r", authpb.READ, "", ""),
		authCall("no permission", pb.AuthClient.RoleGrantPermission, &pb.AuthRoleGrantPermissionRequest{Name: "r"}),
		forbid("take what was not given", "r", "q", ""),
		forbid("take from no role", "s", "a", ""),
		getRole("get r", "r"), getRole("get no role", "s"), getRole("get root", "root"),
		grantRole("u gets r", "u", "r"), grantRole("u gets r again", "u", "r"),
		grantRole("u gets no role", "u", "s"), grantRole("nobody gets r", "nobody", "r"),
		revokeRole("u loses no role", "u", "s"), revokeRole("nobody loses r", "nobody", "r"),
		authCall("delete no role", pb.AuthClient.RoleDelete, &pb.AuthRoleDeleteRequest{Role: "s"}),
		authCall("delete no user", pb.AuthClient.UserDelete, &pb.AuthUserDeleteRequest{Name: "nobody"}),
		getUser("get u", "u"),
		enableAuth(),
		addUser("user root", "root", "pass-root", false),
		enableAuth(),
		addRole("role root", "root"),
		grantRole("root gets root", "root", "root"),
		authStatus(), enableAuth(), enableAuth(),
	}
}

// everything asks for a bit of all that needs permission.
func everything() []call {
	k := func(text string) []byte { return []byte(text) }
	maintain := func(name string, run func(context.Context, pb.MaintenanceClient) (proto.Message, error)) call {
		return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return run(ctx, pb.NewMaintenanceClient(conn))
		}}
	}
	list := []call{
		rangeOf("range a", &pb.RangeRequest{Key: k("a")}),
		rangeOf("range a, serializable", &pb.RangeRequest{Key: k("a"), Serializable: true}),
		rangeOf("range secret", &pb.RangeRequest{Key: k("secret")}),
		rangeOf("range secret, serializable", &pb.RangeRequest{Key: k("secret"), Serializable: true}),
		rangeOf("range a to c", &pb.RangeRequest{Key: k("a"), RangeEnd: k("c")}),
		rangeOf("range a to d", &pb.RangeRequest{Key: k("a"), RangeEnd: k("d"), CountOnly: true}),
		rangeOf("range from a on", &pb.RangeRequest{Key: k("a"), RangeEnd: k("\x00")}),
		rangeOf("range from z on", &pb.RangeRequest{Key: k("z"), RangeEnd: k("\x00")}),
		rangeOf("range of no key", &pb.RangeRequest{}),
		streamOf("stream a", &pb.RangeRequest{Key: k("a")}),
		streamOf("stream a to d", &pb.RangeRequest{Key: k("a"), RangeEnd: k("d")}),
		streamOf("stream from a on", &pb.RangeRequest{Key: k("a"), RangeEnd: k("\x00")}),
		put("put w", &pb.PutRequest{Key: k("w"), Value: k("1")}),
		put("put w and see", &pb.PutRequest{Key: k("w"), PrevKv: true}),
		put("put secret", &pb.PutRequest{Key: k("secret")}),
		put("put w with others' lease", &pb.PutRequest{Key: k("w"), Lease: 21}),
		deletion("delete w", &pb.DeleteRangeRequest{Key: k("w")}),
		deletion("delete w and see", &pb.DeleteRangeRequest{Key: k("w"), PrevKv: true}),
		deletion("delete all", &pb.DeleteRangeRequest{Key: k("\x00"), RangeEnd: k("\x00"), PrevKv: false}),
		put("put a again", &pb.PutRequest{Key: k("a"), Value: k("1")}),
		txn("read-only txn", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}}),
		txn("read-only txn of secret", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}, Failure: []*pb.RequestOp{rangeOp("secret")}}),
		txn("read-only txn that compares secret", &pb.TxnRequest{Compare: []*pb.Compare{compare("secret", pb.Compare_EQUAL, 1)}, Success: []*pb.RequestOp{rangeOp("a")}}),
		txn("txn", &pb.TxnRequest{Success: []*pb.RequestOp{putOp("w", "1"), rangeOp("a")}}),
		txn("nested put of secret", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Failure: []*pb.RequestOp{putOp("secret", "1")}})}}),
		txn("nested range of secret", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("secret")}})}}),
		txn("nested delete of secret", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{deleteOp("secret", "")}})}}),
		txn("nested put that shows what was there", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{{
			Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k("w"), PrevKv: true}}}}})}}),
		txn("nested put with others' lease", &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{{
			Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k("w"), Lease: 21}}}}})}}),
		compact("compact", &pb.CompactionRequest{Revision: 3}),
		lessor("leases", pb.LeaseClient.LeaseLeases, &pb.LeaseLeasesRequest{}),
		timeToLive("time to live", 21, false), timeToLive("time to live with keys", 21, true), timeToLive("time to live with keys, none", 999, true),
		keepAlive("keep others' lease alive", 21), keepAlive("keep no lease alive", 999),
		revoke("revoke others' lease", 21), revoke("revoke no lease", 999),
		grant("grant 31", 31, 1000), timeToLive("time to live of one's own", 31, true), keepAlive("keep one's own alive", 31), revoke("revoke one's own", 31),
		authStatus(), listUsers(), listRoles(), getUser("get u", "u"), getUser("get root", "root"), getRole("get r", "r"), getRole("get root", "root"),
		addRole("add a role", "mine"), addUser("add a user", "mine", "x", false), grantRole("get root's role", "u", "root"),
		changePassword("change root's password", "root", "mine"), disableAuth(),
		{"member list", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		}},
		maintain("status", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.Status(ctx, &pb.StatusRequest{})
		}),
		maintain("see alarms", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.Alarm(ctx, &pb.AlarmRequest{})
		}),
		maintain("clear an alarm", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
		}),
	}
	return list
}

// administration is for root, who is not asked here: this version does not
// have all of it.
func administration() []call {
	maintain := func(name string, run func(context.Context, pb.MaintenanceClient) (proto.Message, error)) call {
		return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return run(ctx, pb.NewMaintenanceClient(conn))
		}}
	}
	member := func(name string, run func(context.Context, pb.ClusterClient) (proto.Message, error)) call {
		return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return run(ctx, pb.NewClusterClient(conn))
		}}
	}
	return []call{
		maintain("defragment", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.Defragment(ctx, &pb.DefragmentRequest{})
		}),
		maintain("hash", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.Hash(ctx, &pb.HashRequest{})
		}),
		maintain("hash of keys", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.HashKV(ctx, &pb.HashKVRequest{})
		}),
		maintain("snapshot", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			stream, err := c.Snapshot(ctx, &pb.SnapshotRequest{})
			if err != nil {
				return nil, err
			}
			return stream.Recv()
		}),
		maintain("move the leader", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1})
		}),
		maintain("downgrade", func(ctx context.Context, c pb.MaintenanceClient) (proto.Message, error) {
			return c.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})
		}),
		member("add a member", func(ctx context.Context, c pb.ClusterClient) (proto.Message, error) {
			return c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}})
		}),
		member("remove a member", func(ctx context.Context, c pb.ClusterClient) (proto.Message, error) {
			return c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 1})
		}),
		member("update a member", func(ctx context.Context, c pb.ClusterClient) (proto.Message, error) {
			return c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}})
		}),
		member("promote a member", func(ctx context.Context, c pb.ClusterClient) (proto.Message, error) {
			return c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 1})
		}),
	}
}

// Who may do what, and what everybody else is told, is as in etcd.
func TestAuthAnswersAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	l := logins{}
	list := append(l.beforeAuth(),
		l.authenticate("wrong password", "root", "pass-u", "root"),
		l.authenticate("old password", "u", "pass-u", "u"),
		l.authenticate("no such user", "nobody", "x", "nobody"),
		l.authenticate("user without password", "none", "", "none"),
		l.authenticate("user with an empty password", "empty", "", "empty"),
		l.authenticate("root", "root", "pass-root", "root"),
		l.authenticate("u", "u", "other-u", "u"),
		l.authenticate("plain", "plain", "pass-plain", "plain"),
	)
	for _, user := range []string{"", "u", "plain"} {
		for _, c := range append(everything(), administration()...) {
			list = append(list, l.as(user, c))
		}
	}
	for _, c := range everything() {
		if c.name != "change root's password" && c.name != "disable auth" {
			list = append(list, l.as("root", c))
		}
	}
	list = append(list,
		l.as("u", revoke("revoke a lease of its own keys", 22)),
		l.as("root", revokeRole("the last root", "root", "root")),
		l.as("root", authCall("delete root", pb.AuthClient.UserDelete, &pb.AuthUserDeleteRequest{Name: "root"})),
		l.as("root", revokeRole("u loses root", "u", "root")),
		l.as("root", revokeRole("u loses r", "u", "r")),
		l.as("u", rangeOf("range a without the role", &pb.RangeRequest{Key: []byte("a")})),
		l.as("root", changePassword("plain's password", "plain", "new")),
		l.as("plain", rangeOf("a token from before the change", &pb.RangeRequest{Key: []byte("a")})),
		l.as("plain", l.authenticate("the old password", "plain", "pass-plain", "plain")),
		l.as("plain", l.authenticate("in spite of an invalid token", "plain", "new", "plain")),
		l.as("plain", rangeOf("a new token", &pb.RangeRequest{Key: []byte("a")})),
		l.as("root", authCall("delete plain", pb.AuthClient.UserDelete, &pb.AuthUserDeleteRequest{Name: "plain"})),
		l.as("plain", put("a token of a user who is gone", &pb.PutRequest{Key: []byte("a")})),
		l.as("plain", authStatus()),
		l.as("root", authCall("delete role r", pb.AuthClient.RoleDelete, &pb.AuthRoleDeleteRequest{Role: "r"})),
		l.as("root", getUser("get u", "u")),
		l.as("root", disableAuth()),
		l.as("root", rangeOf("range with a token nobody asks for", &pb.RangeRequest{Key: []byte("a")})),
		rangeOf("range without", &pb.RangeRequest{Key: []byte("a")}),
		enableAuth(),
		l.as("root", rangeOf("a token from before", &pb.RangeRequest{Key: []byte("a")})),
	)
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
}

// Tokens can be shown in etcd's two headers, and as bearer tokens.
func TestTokenHeadersAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	l := logins{}
	for _, c := range []call{
		addUser("user root", "root", "pass", false), addRole("role root", "root"), grantRole("root gets root", "root", "root"), enableAuth(),
		l.authenticate("root", "root", "pass", "root"),
	} {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
	for name, headers := range map[string]func(token string) []string{
		"token":                          func(token string) []string { return []string{"token", token} },
		"token, bearer":                  func(token string) []string { return []string{"token", "Bearer " + token} },
		"authorization":                  func(token string) []string { return []string{"authorization", token} },
		"authorization, bearer":          func(token string) []string { return []string{"authorization", "Bearer " + token} },
		"authorization, bearer in small": func(token string) []string { return []string{"authorization", "bearer " + token} },
		"both":                           func(token string) []string { return []string{"token", "x.1", "authorization", token} },
		"garbage":                        func(string) []string { return []string{"token", "garbage"} },
		"unknown":                        func(string) []string { return []string{"token", "abc.1"} },
		"empty":                          func(string) []string { return []string{"token", ""} },
		"of a gateway":                   func(string) []string { return []string{"grpcgateway-accept", "*/*"} },
	} {
		t.Run(name, func(t *testing.T) {
			compareAnswers(t, etcd, ours, call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
				ctx = metadata.AppendToOutgoingContext(ctx, headers(l[conn]["root"])...)
				return pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("a")})
			}})
		})
	}
}

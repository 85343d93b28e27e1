package clustertest

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// A token is good on every member from the moment it is given out, and what was
// taken from a user is taken on every member from the moment that is answered.
func TestAuthHoldsOnEveryMember(t *testing.T) {
	c := startCluster(t, time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	login := func(m *member, user, password string) context.Context {
		t.Helper()
		response, err := pb.NewAuthClient(c.dialOnce(m)).Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		must(response, err)
		return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, response.GetToken())
	}
	auth := pb.NewAuthClient(c.dialOnce(c.members[0]))
	for _, user := range []string{"root", "u"} {
		must(auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: user, Password: "pass"}))
		must(auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: user}))
		must(auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: user, Role: user}))
	}
	permission := &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte("k")}
	must(auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "u", Perm: permission}))
	must(auth.AuthEnable(ctx, &pb.AuthEnableRequest{}))

	for _, changer := range c.members {
		root := login(changer, "root", "pass")
		admin := pb.NewAuthClient(c.dialOnce(changer))
		u := login(changer, "u", "pass")
		for _, m := range c.members {
			kv := pb.NewKVClient(c.dialOnce(m))
			must(kv.Put(u, &pb.PutRequest{Key: []byte("k")}))
			must(kv.Range(u, &pb.RangeRequest{Key: []byte("k"), Serializable: true}))
		}
		must(admin.UserRevokeRole(root, &pb.AuthUserRevokeRoleRequest{Name: "u", Role: "u"}))
		for _, m := range c.members {
			kv := pb.NewKVClient(c.dialOnce(m))
			if _, err := kv.Put(u, &pb.PutRequest{Key: []byte("k")}); err == nil {
				t.Errorf("%s takes a put from a user who lost the role on %s", m.name, changer.name)
			}
			if _, err := kv.Range(u, &pb.RangeRequest{Key: []byte("k")}); err == nil {
				t.Errorf("%s answers a user who lost the role on %s", m.name, changer.name)
			}
		}
		must(admin.UserGrantRole(root, &pb.AuthUserGrantRoleRequest{User: "u", Role: "u"}))
		must(admin.UserChangePassword(root, &pb.AuthUserChangePasswordRequest{Name: "u", Password: "pass"}))
		for _, m := range c.members {
			_, err := pb.NewKVClient(c.dialOnce(m)).Range(u, &pb.RangeRequest{Key: []byte("k")})
			if err == nil || rpctypes.Error(err).Error() != rpctypes.ErrInvalidAuthToken.Error() {
				t.Errorf("%s: a token from before the password was changed on %s: %v", m.name, changer.name, err)
			}
		}
	}
}

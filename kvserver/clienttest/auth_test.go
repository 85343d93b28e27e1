package clienttest

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// login is a client of one member with a password.
func (c *cluster) login(t *testing.T, member int, user, password string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{c.endpoints[member]}, DialTimeout: patience, Logger: zap.NewNop(), Username: user, Password: password,
	})
	check(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// A client that has logged in gets itself a new token when users and roles
// change, and goes on.
func testAuth(t *testing.T, c *cluster) {
	ctx, anyone := bounded(t), c.client(t, 0)
	for _, name := range []string{"root", "u"} {
		_, err := anyone.UserAdd(ctx, name, "pass-"+name)
		check(t, err)
		_, err = anyone.RoleAdd(ctx, name)
		check(t, err)
		_, err = anyone.UserGrantRole(ctx, name, name)
		check(t, err)
	}
	grant := func(by *clientv3.Client, prefix string) {
		t.Helper()
		_, err := by.RoleGrantPermission(ctx, "u", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
		check(t, err)
	}
	grant(anyone, "mine/")
	_, err := anyone.AuthEnable(ctx)
	check(t, err)
	for i := range c.endpoints { // each has heard of it once it has answered
		status, err := c.client(t, i).AuthStatus(ctx)
		check(t, err)
		if !status.Enabled {
			t.Errorf("auth is not enabled on member %d", i)
		}
	}
	root := c.login(t, 1, "root", "pass-root")
	defer func() {
		_, err := root.AuthDisable(ctx)
		check(t, err)
	}()
	if _, err := anyone.Get(ctx, "mine/a"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("nobody reads: %v", err)
	}
	wrong := clientv3.Config{Endpoints: c.endpoints[:1], DialTimeout: patience, Logger: zap.NewNop(), Username: "u", Password: "wrong"}
	if client, err := clientv3.New(wrong); !errors.Is(err, rpctypes.ErrAuthFailed) {
		_ = client.Close()
		t.Errorf("the wrong password: %v", err)
	}

	u := c.login(t, 2, "u", "pass-u")
	s, err := concurrency.NewSession(u)
	check(t, err)
	check(t, concurrency.NewMutex(s, "mine/lock").Lock(ctx))
	watched := u.Watch(ctx, "mine/", clientv3.WithPrefix(), clientv3.WithRev(1))
	if event := next(t, watched).Events[0]; string(event.Kv.Key[:5]) != "mine/" {
		t.Errorf("watched %v", event)
	}
	if refused := next(t, u.Watch(ctx, "other/")); !refused.Canceled {
		t.Errorf("may watch what it may not read: %v", refused)
	}
	put(t, u, "mine/a", "1")
	if _, err := u.Put(ctx, "other/a", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("may put what it may not: %v", err)
	}
	grant(root, "other/")
	// The member that u talks to may hear of it a little later.
	for {
		_, err := u.Put(ctx, "other/a", "2")
		if err == nil {
			break
		}
		if !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Fatal(err)
		}
	}
	wantValue(t, u, "other/a", "2")
	wantValue(t, u, "mine/a", "1")
	check(t, s.Close())
}

package kvserver

import (
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// waiting calls, and returns the channel of the error once it waits behind the
// one who has the lock, as far as that can be seen: there are two keys.
func waiting(t *testing.T, p person, lock string, call func() error) <-chan error {
	t.Helper()
	returned := make(chan error, 1)
	go func() { returned <- call() }()
	deadline := time.After(30 * time.Second)
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		response, err := pb.NewKVClient(p.conn).Range(p.ctx(), &pb.RangeRequest{Key: []byte(lock + "/"), RangeEnd: []byte(lock + "0"), CountOnly: true})
		p.must(response, err)
		if response.GetCount() == 2 {
			return returned
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatal("nobody waits for ", lock)
		}
	}
}

// Whoever waits for a lock waits with the rights of its own, whoever else
// waits: one stream of watches for all would have those of the first.
func TestLocksHaveTheRightsOfTheirCallers(t *testing.T) {
	t.Parallel()
	server := running(t, single(t))
	nobody := person{t: t, conn: connect(t, server.clients[0].Addr().String()).conn}
	nobody.enable()
	root, u := nobody.login("root", "pass-root"), nobody.login("u", "pass-u")
	auth := pb.NewAuthClient(root.conn)
	root.must(auth.RoleGrantPermission(root.ctx(), &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("k/"), RangeEnd: []byte("k0")}}))
	locks := v3lockpb.NewLockClient(nobody.conn)
	lock := func(p person, name string) ([]byte, error) {
		granted, err := pb.NewLeaseClient(p.conn).LeaseGrant(p.ctx(), &pb.LeaseGrantRequest{TTL: 600})
		p.must(granted, err)
		locked, err := locks.Lock(p.ctx(), &v3lockpb.LockRequest{Name: []byte(name), Lease: granted.GetID()})
		return locked.GetKey(), err
	}
	_, err := lock(u, "secret")
	u.expect(rpctypes.ErrGRPCPermissionDenied, err)
	held := map[string][]byte{}
	for _, name := range []string{"k", "secret"} {
		held[name], err = lock(root, name)
		root.must(nil, err)
	}
	again := func(p person, name string) func() error {
		return func() error { _, err := lock(p, name); return err }
	}
	first := waiting(t, u, "k", again(u, "k"))
	second := waiting(t, root, "secret", again(root, "secret"))
	for name, returned := range map[string]<-chan error{"k": first, "secret": second} {
		root.must(locks.Unlock(root.ctx(), &v3lockpb.UnlockRequest{Key: held[name]}))
		select {
		case err := <-returned:
			if err != nil {
				t.Errorf("lock %s: %v", name, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("lock %s is not had", name)
		}
	}
}

// A member that stops does not wait for those who wait for a lock.
func TestWaitingForALockEndsWithTheMember(t *testing.T) {
	t.Parallel()
	server, err := Start(single(t))
	if err != nil {
		t.Fatal(err)
	}
	<-server.Ready()
	nobody := person{t: t, conn: connect(t, server.clients[0].Addr().String()).conn}
	locks := v3lockpb.NewLockClient(nobody.conn)
	if _, err := locks.Lock(t.Context(), &v3lockpb.LockRequest{Name: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	returned := waiting(t, nobody, "k", func() error {
		_, err := locks.Lock(t.Context(), &v3lockpb.LockRequest{Name: []byte("k")})
		return err
	})
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-returned:
		if err == nil {
			t.Error("locked twice")
		}
	case <-time.After(30 * time.Second):
		t.Error("waits still")
	}
}

// Somebody whom a certificate names has that name's rights on locks, too.
func TestLocksKnowCertificates(t *testing.T) {
	t.Parallel()
	config := single(t)
	files, clientTLS, name := certificates(t)
	config.ListenClientURLs, config.ClientTLS = []string{"https://127.0.0.1:0"}, files
	config.AdvertiseClientURLs = config.ListenClientURLs
	client := connectTLS(t, running(t, config), clientTLS)
	client.enable()
	root := client.login("root", "pass-root")
	auth, locks := pb.NewAuthClient(client.conn), v3lockpb.NewLockClient(client.conn)
	root.must(auth.RoleGrantPermission(root.ctx(), &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("k/"), RangeEnd: []byte("k0")}}))
	root.must(auth.UserAdd(root.ctx(), &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}}))
	root.must(auth.UserGrantRole(root.ctx(), &pb.AuthUserGrantRoleRequest{User: name, Role: "r"}))
	_, err := locks.Lock(client.ctx(), &v3lockpb.LockRequest{Name: []byte("secret")})
	client.expect(rpctypes.ErrGRPCPermissionDenied, err)
	client.must(locks.Lock(client.ctx(), &v3lockpb.LockRequest{Name: []byte("k")}))
	root.must(locks.Lock(root.ctx(), &v3lockpb.LockRequest{Name: []byte("secret")}))
}

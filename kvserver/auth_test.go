package kvserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"muster/kvserver/tlsfiles"
	"muster/pki"
)

// running starts a member, stops it at the end, and returns it when it is
// ready.
func running(t *testing.T, config Config) *Server {
	t.Helper()
	config.BcryptCost = bcrypt.MinCost
	server, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-server.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("not ready")
	}
	return server
}

// person is a client who shows a token, unless it is empty.
type person struct {
	t     *testing.T
	conn  *grpc.ClientConn
	token string
}

func (p person) ctx() context.Context {
	if p.token == "" {
		return p.t.Context()
	}
	return metadata.AppendToOutgoingContext(p.t.Context(), rpctypes.TokenFieldNameGRPC, p.token)
}

func (p person) login(user, password string) person {
	p.t.Helper()
	response, err := pb.NewAuthClient(p.conn).Authenticate(p.t.Context(), &pb.AuthenticateRequest{Name: user, Password: password})
	if err != nil {
		p.t.Fatal(err)
	}
	p.token = response.GetToken()
	return p
}

// expect wants the error of etcd's, or none.
func (p person) expect(want, err error) {
	p.t.Helper()
	if (want == nil) != (err == nil) || want != nil && rpctypes.Error(err).Error() != rpctypes.Error(want).Error() {
		p.t.Errorf("%v, want %v", err, want)
	}
}

func (p person) get(key string, want error) {
	p.t.Helper()
	_, err := pb.NewKVClient(p.conn).Range(p.ctx(), &pb.RangeRequest{Key: []byte(key)})
	p.expect(want, err)
}

func (p person) must(_ any, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// enable makes root, and u who may read and write "k", with their passwords,
// and enables auth.
func (p person) enable() {
	p.t.Helper()
	ctx, auth := p.ctx(), pb.NewAuthClient(p.conn)
	p.must(auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "pass-root"}))
	p.must(auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "root"}))
	p.must(auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}))
	p.must(auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: "pass-u"}))
	p.must(auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}))
	p.must(auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("k")}}))
	p.must(auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}))
	p.must(auth.AuthEnable(ctx, &pb.AuthEnableRequest{}))
}

// record is a log that can be read while it is written.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// Neither the log of what happens nor any file of the data directory has a
// password (CVE-2021-28235), and the former has no token.
func TestPasswordsStaySecret(t *testing.T) {
	config, log := single(t), &record{}
	config.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	config.BcryptCost = bcrypt.MinCost
	server, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	nobody := person{t: t, conn: connect(t, server.clients[0].Addr().String()).conn}
	nobody.enable()
	root := nobody.login("root", "pass-root")
	auth := pb.NewAuthClient(root.conn)
	root.must(auth.UserAdd(root.ctx(), &pb.AuthUserAddRequest{Name: "without", Password: "pass-without", Options: &authpb.UserAddOptions{NoPassword: true}}))
	root.must(auth.UserChangePassword(root.ctx(), &pb.AuthUserChangePasswordRequest{Name: "u", Password: "pass-changed"}))
	u := nobody.login("u", "pass-changed")
	_, err = auth.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: "u", Password: "pass-wrong"})
	nobody.expect(rpctypes.ErrGRPCAuthFailed, err)
	_, err = auth.UserAdd(root.ctx(), &pb.AuthUserAddRequest{Name: "u", Password: "pass-refused"})
	root.expect(rpctypes.ErrGRPCUserAlreadyExist, err)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}

	secrets := []string{"pass-root", "pass-u", "pass-without", "pass-changed", "pass-wrong", "pass-refused"}
	named := false
	err = filepath.WalkDir(config.DataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		named = named || bytes.Contains(content, []byte("without"))
		for _, secret := range secrets {
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%s has the password %s", path, secret)
			}
		}
		return err
	})
	if err != nil || !named {
		t.Errorf("the files do not have the user either (%v), so the test shows nothing", err)
	}
	if !strings.Contains(log.String(), `msg="refused a login" user=u from=127.`) {
		t.Error("the wrong password is not in the log")
	}
	for _, secret := range append(secrets, root.token, u.token) {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %s", secret)
		}
	}
}

// certificates makes them for a server, and for a client; the latter's common
// name is returned, too.
func certificates(t *testing.T) (files tlsfiles.Files, client *tls.Config, name string) {
	t.Helper()
	dir := t.TempDir()
	bundle, _, err := pki.Ensure(t.Context(), filepath.Join(dir, "pki"), pki.Spec{
		Algorithm: pki.ECDSAP256, CALifetime: 24 * time.Hour, LeafLifetime: time.Hour,
		Hosts: []pki.Host{{Name: "m1", SANs: []string{"127.0.0.1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	save := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair, err := tls.X509KeyPair(bundle.HealthcheckClient.Cert, bundle.HealthcheckClient.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle.CA)
	files = tlsfiles.Files{
		Cert: save("server.crt", bundle.Hosts["m1"].Server.Cert), Key: save("server.key", bundle.Hosts["m1"].Server.Key),
		CA: save("ca.crt", bundle.CA), RequireClientCert: true,
	}
	client = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: pool}
	return files, client, pair.Leaf.Subject.CommonName
}

func connectTLS(t *testing.T, server *Server, config *tls.Config) person {
	t.Helper()
	conn, err := grpc.NewClient(server.clients[0].Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return person{t: t, conn: conn}
}

// The common name of a client's certificate is its user, but a token comes
// first, and what the JSON gateway passes on is nobody's (CVE-2018-16886).
func TestCertificateNamesTheUser(t *testing.T) {
	config := single(t)
	config.ListenClientURLs = []string{"https://127.0.0.1:0"}
	config.AdvertiseClientURLs = config.ListenClientURLs
	files, clientTLS, name := certificates(t)
	config.ClientTLS = files
	client := connectTLS(t, running(t, config), clientTLS)
	auth := pb.NewAuthClient(client.conn)
	client.enable()
	client.get("k", rpctypes.ErrGRPCPermissionDenied) // somebody, but unknown
	root := client.login("root", "pass-root")
	root.get("k", nil)
	root.must(auth.UserAdd(root.ctx(), &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}}))
	root.must(auth.UserGrantRole(root.ctx(), &pb.AuthUserGrantRoleRequest{User: name, Role: "r"}))
	client.get("k", nil)
	client.get("secret", rpctypes.ErrGRPCPermissionDenied)
	_, err := pb.NewKVClient(client.conn).Put(client.ctx(), &pb.PutRequest{Key: []byte("k")})
	client.expect(nil, err)

	gateway := metadata.AppendToOutgoingContext(t.Context(), "grpcgateway-accept", "*/*")
	_, err = pb.NewKVClient(client.conn).Range(gateway, &pb.RangeRequest{Key: []byte("k")})
	client.expect(rpctypes.ErrGRPCUserEmpty, err)
	root.must(auth.UserGrantRole(root.ctx(), &pb.AuthUserGrantRoleRequest{User: name, Role: "root"}))
	_, err = auth.AuthDisable(gateway, &pb.AuthDisableRequest{})
	client.expect(rpctypes.ErrGRPCUserEmpty, err)
	_, err = pb.NewKVClient(client.conn).Put(gateway, &pb.PutRequest{Key: []byte("k")})
	client.expect(rpctypes.ErrGRPCUserEmpty, err)

	invalid := client
	invalid.token = "invalid.1"
	invalid.get("k", rpctypes.ErrGRPCInvalidAuthToken)
}

// A certificate that nobody asked for and nobody checked names nobody.
func TestUncheckedCertificateNamesNobody(t *testing.T) {
	config := single(t)
	config.ListenClientURLs = []string{"https://127.0.0.1:0"}
	config.AdvertiseClientURLs = config.ListenClientURLs
	files, clientTLS, name := certificates(t)
	files.RequireClientCert = false
	config.ClientTLS = files
	client := connectTLS(t, running(t, config), clientTLS)
	client.must(pb.NewAuthClient(client.conn).UserAdd(client.ctx(), &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}}))
	client.enable()
	client.get("k", rpctypes.ErrGRPCUserEmpty)
}

// Web tokens carry the auth revision: a change of permissions ends them.
func TestWebTokensOfAServer(t *testing.T) {
	config := single(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("a shared secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	config.AuthToken = "jwt,sign-method=HS256,priv-key=" + key
	nobody := person{t: t, conn: connect(t, running(t, config).clients[0].Addr().String()).conn}
	nobody.enable()
	root, u := nobody.login("root", "pass-root"), nobody.login("u", "pass-u")
	if strings.Count(u.token, ".") != 2 {
		t.Errorf("%q is no web token", u.token)
	}
	u.get("k", nil)
	u.get("secret", rpctypes.ErrGRPCPermissionDenied)
	root.must(pb.NewAuthClient(root.conn).RoleAdd(root.ctx(), &pb.AuthRoleAddRequest{Name: "another"}))
	u.get("k", rpctypes.ErrGRPCAuthOldRevision)
	_, err := pb.NewKVClient(u.conn).Put(u.ctx(), &pb.PutRequest{Key: []byte("k")})
	u.expect(rpctypes.ErrGRPCAuthOldRevision, err)
	nobody.login("u", "pass-u").get("k", nil)
}

// A lease expires although its keys are somebody's.
func TestLeaseExpiresWithAuth(t *testing.T) {
	nobody := person{t: t, conn: connect(t, running(t, single(t)).clients[0].Addr().String()).conn}
	nobody.enable()
	u := nobody.login("u", "pass-u")
	kv := pb.NewKVClient(u.conn)
	granted, err := pb.NewLeaseClient(u.conn).LeaseGrant(u.ctx(), &pb.LeaseGrantRequest{TTL: 1})
	u.must(granted, err)
	u.must(kv.Put(u.ctx(), &pb.PutRequest{Key: []byte("k"), Lease: granted.GetID()}))
	deadline := time.After(20 * time.Second)
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		response, err := kv.Range(u.ctx(), &pb.RangeRequest{Key: []byte("k"), CountOnly: true})
		u.must(response, err)
		if response.GetCount() == 0 {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatal("the key of a lease of 1 s is there after 20 s")
		}
	}
}

func TestNoSuchTokens(t *testing.T) {
	config := single(t)
	config.AuthToken = "jwt,sign-method=HS256"
	server, err := Start(config)
	if err == nil {
		_ = server.Close()
		t.Fatal("started")
	}
	if !strings.Contains(err.Error(), "--auth-token: jwt tokens signed by HS256: the key is missing") {
		t.Errorf("error %q", err)
	}
}

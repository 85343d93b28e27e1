package machine

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	etcdauth "go.etcd.io/etcd/server/v3/auth"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3alarm"
	"go.etcd.io/etcd/server/v3/etcdserver/apply"
	"go.etcd.io/etcd/server/v3/etcdserver/cindex"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/internal/randomtest"
	"muster/kvserver/machine/auth"
)

// authJudge is everything with which etcd's server applies requests.
type authJudge struct {
	*judge
	applier apply.UberApplier
	auth    etcdauth.AuthStore
	stored  etcdauth.AuthBackend
	index   cindex.ConsistentIndexer
}

// idle is a member of etcd that has nothing to say about raft.
type idle struct{}

func (idle) MemberID() types.ID     { return 0 }
func (idle) Leader() types.ID       { return 0 }
func (idle) CommittedIndex() uint64 { return 0 }
func (idle) AppliedIndex() uint64   { return 0 }
func (idle) Term() uint64           { return 0 }
func (idle) ForceSnapshot()         {}

func newAuthJudge(t testing.TB) *authJudge {
	t.Helper()
	j := newJudge(t)
	log := zap.NewNop()
	done := make(chan struct{})
	close(done)
	tokens, err := etcdauth.NewTokenProvider(log, "simple", func(uint64) <-chan struct{} { return done }, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	alarms, err := v3alarm.NewAlarmStore(log, schema.NewAlarmBackend(log, j.backend))
	if err != nil {
		t.Fatal(err)
	}
	a := &authJudge{judge: j, stored: schema.NewAuthBackend(log, j.backend), index: cindex.NewConsistentIndex(j.backend)}
	a.auth = etcdauth.NewAuthStore(log, a.stored, tokens, 4)
	t.Cleanup(func() {
		if err := a.auth.Close(); err != nil {
			t.Error(err)
		}
	})
	a.applier = apply.NewUberApplier(apply.ApplierOptions{
		Logger:               log,
		KV:                   j.kv,
		AlarmStore:           alarms,
		AuthStore:            a.auth,
		Lessor:               j.lessor,
		Cluster:              membership.NewCluster(log),
		RaftStatus:           idle{},
		SnapshotServer:       idle{},
		ConsistentIndex:      a.index,
		Backend:              j.backend,
		WarningApplyDuration: time.Hour,
	})
	return a
}

func (j *authJudge) apply(index uint64, r *pb.InternalRaftRequest) (proto.Message, error) {
	j.index.SetConsistentIndex(index, 1)
	result := j.applier.Apply(&apply.InternalRaftRequestWrapper{InternalRaftRequest: r}, membership.ApplyBoth)
	if result.Physc != nil && result.Err == nil {
		<-result.Physc
	}
	return result.Resp, result.Err
}

func sameAuthError(got, want error) bool {
	for _, pair := range [][2]error{
		{auth.ErrRootUserNotExist, etcdauth.ErrRootUserNotExist},
		{auth.ErrRootRoleNotExist, etcdauth.ErrRootRoleNotExist},
		{auth.ErrUserAlreadyExist, etcdauth.ErrUserAlreadyExist},
		{auth.ErrUserEmpty, etcdauth.ErrUserEmpty},
		{auth.ErrUserNotFound, etcdauth.ErrUserNotFound},
		{auth.ErrRoleAlreadyExist, etcdauth.ErrRoleAlreadyExist},
		{auth.ErrRoleNotFound, etcdauth.ErrRoleNotFound},
		{auth.ErrRoleEmpty, etcdauth.ErrRoleEmpty},
		{auth.ErrAuthFailed, etcdauth.ErrAuthFailed},
		{auth.ErrNoPassword, etcdauth.ErrNoPasswordUser},
		{auth.ErrPermissionNotGiven, etcdauth.ErrPermissionNotGiven},
		{auth.ErrPermissionDenied, etcdauth.ErrPermissionDenied},
		{auth.ErrRoleNotGranted, etcdauth.ErrRoleNotGranted},
		{auth.ErrPermissionNotGranted, etcdauth.ErrPermissionNotGranted},
		{auth.ErrAuthNotEnabled, etcdauth.ErrAuthNotEnabled},
		{auth.ErrInvalidAuthMgmt, etcdauth.ErrInvalidAuthMgmt},
		{auth.ErrAuthOldRevision, etcdauth.ErrAuthOldRevision},
	} {
		if errors.Is(want, pair[1]) {
			return errors.Is(got, pair[0])
		}
	}
	return sameError(got, want)
}

// describe has everything that is stored about users and roles.
func describe(enabled bool, revision uint64, users []*authpb.User, roles []*authpb.Role) []string {
	lines := []string{fmt.Sprintf("enabled %t revision %d", enabled, revision)}
	for _, u := range users {
		lines = append(lines, fmt.Sprintf("user %s %x %q %t", u.Name, u.Password, u.Roles, u.GetOptions().GetNoPassword()))
	}
	for _, r := range roles {
		line := fmt.Sprintf("role %s", r.Name)
		for _, p := range r.KeyPermission {
			line += fmt.Sprintf(" %s[%q,%q)", p.PermType, p.Key, p.RangeEnd)
		}
		lines = append(lines, line)
	}
	return lines
}

func (j *authJudge) describe() []string {
	return describe(j.auth.IsAuthEnabled(), j.auth.Revision(), j.stored.GetAllUsers(), j.stored.GetAllRoles())
}

func describeAuth(m *Machine) []string {
	s := m.Auth()
	return describe(s.Enabled(), s.Revision(), s.Users(), s.Roles())
}

func (g *generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) user() string { return g.one("root", "root", "u1", "u2", "u3", "") }

func (g *generator) role() string { return g.one("root", "r1", "r2", "r3", "") }

func (g *generator) hash() string {
	if g.oneIn(4) {
		return "not base64"
	}
	return base64.StdEncoding.EncodeToString([]byte(g.one("hash-1", "hash-2")))
}

// authRequest makes a request about users and roles.
func (g *generator) authRequest() *pb.InternalRaftRequest {
	r := &pb.InternalRaftRequest{}
	switch g.IntN(20) {
	case 0, 1:
		r.AuthEnable = &pb.AuthEnableRequest{}
	case 2:
		if g.oneIn(4) {
			r.AuthDisable = &pb.AuthDisableRequest{}
		} else {
			r.AuthStatus = &pb.AuthStatusRequest{}
		}
	case 3:
		r.Authenticate = &pb.InternalAuthenticateRequest{Name: g.user(), SimpleToken: "token"}
	case 4, 5:
		r.AuthUserAdd = &pb.AuthUserAddRequest{Name: g.user(), HashedPassword: g.hash()}
		if g.oneIn(3) {
			r.AuthUserAdd.Options = &authpb.UserAddOptions{NoPassword: g.oneIn(2)}
		}
	case 6:
		if g.oneIn(3) {
			r.AuthUserDelete = &pb.AuthUserDeleteRequest{Name: g.user()}
		} else {
			r.AuthUserChangePassword = &pb.AuthUserChangePasswordRequest{Name: g.user(), HashedPassword: g.hash()}
		}
	case 7:
		r.AuthUserGet = &pb.AuthUserGetRequest{Name: g.user()}
	case 8, 9, 10:
		r.AuthUserGrantRole = &pb.AuthUserGrantRoleRequest{User: g.user(), Role: g.role()}
	case 11:
		r.AuthUserRevokeRole = &pb.AuthUserRevokeRoleRequest{Name: g.user(), Role: g.role()}
	case 12:
		if g.oneIn(2) {
			r.AuthUserList = &pb.AuthUserListRequest{}
		} else {
			r.AuthRoleList = &pb.AuthRoleListRequest{}
		}
	case 13, 14:
		r.AuthRoleAdd = &pb.AuthRoleAddRequest{Name: g.role()}
	case 15:
		if g.oneIn(3) {
			r.AuthRoleDelete = &pb.AuthRoleDeleteRequest{Role: g.role()}
		} else {
			r.AuthRoleGet = &pb.AuthRoleGetRequest{Role: g.role()}
		}
	case 16, 17, 18:
		r.AuthRoleGrantPermission = &pb.AuthRoleGrantPermissionRequest{Name: g.role()}
		if !g.oneIn(10) {
			r.AuthRoleGrantPermission.Perm = &authpb.Permission{
				PermType: authpb.Permission_Type(g.IntN(4)), // 3 is none
				Key:      g.key(),
				RangeEnd: g.end(),
			}
		}
	default:
		r.AuthRoleRevokePermission = &pb.AuthRoleRevokePermissionRequest{Role: g.role(), Key: g.key(), RangeEnd: g.end()}
	}
	return r
}

// TestAuthLikeEtcd applies random requests of random users, about users and
// about keys, here and with everything that etcd's server applies them with.
// Every response and error is compared, and what is stored.
func TestAuthLikeEtcd(t *testing.T) {
	g := newGenerator(t)
	j := newAuthJudge(t)
	fs := vfs.NewMem()
	m := openMem(t, fs)
	defer func() { closeMachine(t, m) }()

	counts := map[string]int{}
	musts := []string{auth.ErrPermissionDenied.Error(), auth.ErrAuthOldRevision.Error(), auth.ErrUserEmpty.Error()}
	if *randomOps >= 20000 {
		for _, err := range auth.Errors() {
			musts = append(musts, err.Error())
		}
	}
	for index := uint64(1); index <= uint64(2**randomOps) || index <= randomtest.Patience && randomtest.Lacks(counts, musts) != ""; index++ {
		g.revision, g.compacted = m.Revision(), m.CompactedRevision()
		r := g.request()
		if g.oneIn(2) {
			r = g.authRequest()
		}
		if g.oneIn(2000) { // a new cluster, in which auth can be enabled soon
			r = &pb.InternalRaftRequest{AuthDisable: &pb.AuthDisableRequest{}}
		}
		r.Header = &pb.RequestHeader{ID: index, Username: g.user(), AuthRevision: m.Auth().Revision()}
		if g.oneIn(8) {
			r.Header.AuthRevision -= uint64(g.IntN(2))
		} else if g.oneIn(20) {
			r.Header.AuthRevision = 0
		}
		encoded, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		outcomes, err := m.Apply([]Entry{{Index: index, Term: 1, Payload: EncodeBatch(1, [][]byte{encoded})}}, all)
		if err != nil || len(outcomes) != 1 {
			t.Fatalf("request %v: %v, %v", r, outcomes, err)
		}
		got := outcomes[0]
		want, wantErr := j.apply(index, r)
		if !sameAuthError(got.Err, wantErr) || wantErr == nil && !proto.Equal(got.Response, want) {
			t.Fatalf("request %d %v:\n     %v\nerror %v\netcd %v\nerror %v", index, r, got.Response, got.Err, want, wantErr)
		}
		if got, want := describeAuth(m), j.describe(); !slices.Equal(got, want) {
			t.Fatalf("after request %d %v:\n     %q\netcd %q", index, r, got, want)
		}
		if got.Err != nil {
			counts[got.Err.Error()]++
		} else {
			counts[string(proto.MessageName(got.Response).Name())]++
		}
		if g.oneIn(500) {
			if err := m.Flush(); err != nil {
				t.Fatal(err)
			}
			closeMachine(t, m)
			m = openMem(t, fs)
		}
	}
	t.Logf("%v", counts)
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}
}

package machine

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
)

// Keys of users and permissions. On disk: do not change.
const (
	authKey    = "s/auth/state" // enabled: 1 byte, revision: 8 bytes
	userPrefix = "s/auth/user/" // name -> authpb.User
	rolePrefix = "s/auth/role/" // name -> authpb.Role
)

// Auth is what is known of users and their permissions. Reads have to be
// checked by their caller, against the state before and, when the revision
// moved meanwhile, after the read; writes are checked when they are applied.
func (m *Machine) Auth() *auth.State { return m.state.Load().auth }

// TokenChange tells a keeper of simple tokens that Token is User's from now
// on, or, when Gone, that no token of User is good any more, nor anybody's
// when User is empty.
type TokenChange struct {
	User, Token string
	Gone        bool
}

// ObserveTokens has fn told of every token from now on, in order and on every
// member, in place of any other observer; nil ends it. The rules for fn are
// those of Observer. It is called without changes when a checkpoint was
// installed: changes may have been missed. Tokens are secrets and must not be
// logged.
func (m *Machine) ObserveTokens(fn func([]TokenChange)) {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.tokenObserver = fn
}

func loadAuth(r pebble.Reader) (*auth.State, error) {
	var enabled bool
	var revision uint64
	v, err := get(r, authKey)
	if err != nil {
		return nil, err
	}
	if v != nil {
		if len(v) != 9 {
			return nil, fmt.Errorf("read %s: %d bytes, want 9", authKey, len(v))
		}
		enabled, revision = v[0] == 1, binary.BigEndian.Uint64(v[1:])
	}
	var users []*authpb.User
	err = eachWithPrefix(r, userPrefix, func(value []byte) error {
		u := &authpb.User{}
		users = append(users, u)
		return proto.Unmarshal(value, u)
	})
	if err != nil {
		return nil, err
	}
	var roles []*authpb.Role
	err = eachWithPrefix(r, rolePrefix, func(value []byte) error {
		role := &authpb.Role{}
		roles = append(roles, role)
		return proto.Unmarshal(value, role)
	})
	if err != nil {
		return nil, err
	}
	return auth.Load(enabled, revision, users, roles), nil
}

// storeAuth writes what is different in next.
func storeAuth(batch *pebble.Batch, before, next *auth.State) error {
	if before == next {
		return nil
	}
	v := make([]byte, 1, 9)
	if next.Enabled() {
		v[0] = 1
	}
	if err := batch.Set([]byte(authKey), binary.BigEndian.AppendUint64(v, next.Revision()), nil); err != nil {
		return fmt.Errorf("write %s: %w", authKey, err)
	}
	if err := storeNamed(batch, userPrefix, before.Users(), next.Users()); err != nil {
		return err
	}
	return storeNamed(batch, rolePrefix, before.Roles(), next.Roles())
}

// storeNamed writes what is in one list and not in the other. Whatever is in
// both is the same object.
func storeNamed[T interface {
	proto.Message
	comparable
	GetName() []byte
}](batch *pebble.Batch, prefix string, before, next []T) error {
	kept := make(map[T]bool, len(next))
	for _, item := range next {
		kept[item] = true
	}
	stored := make(map[T]bool, len(before))
	for _, item := range before {
		stored[item] = true
		if kept[item] {
			continue
		}
		if err := batch.Delete(append([]byte(prefix), item.GetName()...), nil); err != nil {
			return fmt.Errorf("remove from %s: %w", prefix, err)
		}
	}
	for _, item := range next {
		if stored[item] {
			continue
		}
		value, err := proto.MarshalOptions{Deterministic: true}.Marshal(item)
		if err == nil {
			err = batch.Set(append([]byte(prefix), item.GetName()...), value, nil)
		}
		if err != nil {
			return fmt.Errorf("write to %s: %w", prefix, err)
		}
	}
	return nil
}

// authRequest carries out what is about users and permissions.
func (s *step) authRequest(r *pb.InternalRaftRequest, who auth.Identity) (proto.Message, error) {
	known := s.state.auth
	switch {
	case r.AuthStatus != nil:
		return &pb.AuthStatusResponse{Header: s.header(), Enabled: known.Enabled(), AuthRevision: known.Revision()}, nil
	case r.Authenticate != nil:
		return s.authenticate(r.Authenticate)
	case r.AuthUserGet != nil:
		if err := known.Of(who).SeeUser(r.AuthUserGet.Name); err != nil {
			return nil, err
		}
		resp, err := known.GetUser(r.AuthUserGet.Name)
		if err != nil {
			return nil, err
		}
		resp.Header = s.header()
		return resp, nil
	case r.AuthRoleGet != nil:
		if err := known.Of(who).SeeRole(r.AuthRoleGet.Role); err != nil {
			return nil, err
		}
		resp, err := known.GetRole(r.AuthRoleGet.Role)
		if err != nil {
			return nil, err
		}
		resp.Header = s.header()
		return resp, nil
	}
	// Everything else is for root.
	resp, next, err := s.administer(r, who)
	if err != nil {
		return nil, err
	}
	if err := storeAuth(s.w.Batch(), known, next); err != nil {
		return nil, err
	}
	s.state.auth = next
	s.invalidateTokens(r, known)
	return resp, nil
}

// authenticate gives out a token. It is the proposer who has compared the
// password, and who must withhold the token when the revision of the state
// moved between that and now.
func (s *step) authenticate(r *pb.InternalAuthenticateRequest) (proto.Message, error) {
	if err := s.state.auth.Authenticate(r.Name); err != nil {
		return nil, err
	}
	token := r.SimpleToken + "." + strconv.FormatUint(s.state.Index, 10)
	s.tokens = append(s.tokens, TokenChange{User: r.Name, Token: token})
	return &pb.AuthenticateResponse{Header: s.header(), Token: token}, nil
}

// administer returns the response to, and the state after, a request that only
// root may make.
func (s *step) administer(r *pb.InternalRaftRequest, who auth.Identity) (resp proto.Message, next *auth.State, err error) {
	known, header := s.state.auth, s.header()
	if err := known.Of(who).Administer(); err != nil {
		return nil, nil, err
	}
	switch {
	case r.AuthEnable != nil:
		resp = &pb.AuthEnableResponse{Header: header}
		next, err = known.Change().Enable()
	case r.AuthDisable != nil:
		resp = &pb.AuthDisableResponse{Header: header}
		next = known.Change().Disable()
	case r.AuthUserAdd != nil:
		resp = &pb.AuthUserAddResponse{Header: header}
		next, err = known.Change().AddUser(r.AuthUserAdd)
	case r.AuthUserDelete != nil:
		resp = &pb.AuthUserDeleteResponse{Header: header}
		next, err = known.Change().DeleteUser(r.AuthUserDelete.Name)
	case r.AuthUserChangePassword != nil:
		resp = &pb.AuthUserChangePasswordResponse{Header: header}
		next, err = known.Change().ChangePassword(r.AuthUserChangePassword)
	case r.AuthUserGrantRole != nil:
		resp = &pb.AuthUserGrantRoleResponse{Header: header}
		next, err = known.Change().GrantRole(r.AuthUserGrantRole.User, r.AuthUserGrantRole.Role)
	case r.AuthUserRevokeRole != nil:
		resp = &pb.AuthUserRevokeRoleResponse{Header: header}
		next, err = known.Change().RevokeRole(r.AuthUserRevokeRole.Name, r.AuthUserRevokeRole.Role)
	case r.AuthUserList != nil:
		resp, next = &pb.AuthUserListResponse{Header: header, Users: known.UserNames()}, known
	case r.AuthRoleList != nil:
		resp, next = &pb.AuthRoleListResponse{Header: header, Roles: known.RoleNames()}, known
	case r.AuthRoleAdd != nil:
		resp = &pb.AuthRoleAddResponse{Header: header}
		next, err = known.Change().AddRole(r.AuthRoleAdd.Name)
	case r.AuthRoleDelete != nil:
		resp = &pb.AuthRoleDeleteResponse{Header: header}
		next, err = known.Change().DeleteRole(r.AuthRoleDelete.Role)
	case r.AuthRoleGrantPermission != nil:
		resp = &pb.AuthRoleGrantPermissionResponse{Header: header}
		next, err = known.Change().GrantPermission(r.AuthRoleGrantPermission.Name, r.AuthRoleGrantPermission.Perm)
	case r.AuthRoleRevokePermission != nil:
		resp = &pb.AuthRoleRevokePermissionResponse{Header: header}
		next, err = known.Change().RevokePermission(r.AuthRoleRevokePermission.Role, r.AuthRoleRevokePermission.Key, r.AuthRoleRevokePermission.RangeEnd)
	default:
		err = ErrUnknownRequest
	}
	return resp, next, err
}

// invalidateTokens notes whose tokens a request that succeeded has made bad.
func (s *step) invalidateTokens(r *pb.InternalRaftRequest, before *auth.State) {
	switch {
	case r.AuthUserDelete != nil:
		s.tokens = append(s.tokens, TokenChange{User: r.AuthUserDelete.Name, Gone: true})
	case r.AuthUserChangePassword != nil:
		s.tokens = append(s.tokens, TokenChange{User: r.AuthUserChangePassword.Name, Gone: true})
	case r.AuthDisable != nil && before.Enabled():
		s.tokens = append(s.tokens, TokenChange{Gone: true})
	}
}

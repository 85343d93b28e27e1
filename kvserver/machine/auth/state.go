package auth

import (
	"cmp"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// The user and the role that may do everything have this name.
const root = "root"

// State is all that is known at one time. It does not change: what changes
// something returns another one. All methods may be called from any goroutine.
type State struct {
	enabled  bool
	revision uint64
	users    []*authpb.User // by name; neither the slice nor a user ever changes
	roles    []*authpb.Role // by name; likewise

	permissions sync.Map // user name -> *permissions, of those who were asked about
}

// Load makes the state from what is stored. A revision of 0, which is that of
// nothing, becomes 1. The caller must not change users and roles any more.
func Load(enabled bool, revision uint64, users []*authpb.User, roles []*authpb.Role) *State {
	s := &State{enabled: enabled, revision: max(revision, 1), users: users, roles: roles}
	slices.SortFunc(s.users, func(a, b *authpb.User) int { return cmp.Compare(string(a.Name), string(b.Name)) })
	slices.SortFunc(s.roles, func(a, b *authpb.Role) int { return cmp.Compare(string(a.Name), string(b.Name)) })
	return s
}

// Enabled tells whether permissions are asked for at all.
func (s *State) Enabled() bool { return s.enabled }

// Revision counts the changes; it has nothing to do with that of the keys.
func (s *State) Revision() uint64 { return s.revision }

// Users are all users, by name. The caller must not change them.
func (s *State) Users() []*authpb.User { return s.users }

// Roles are all roles, by name. The caller must not change them.
func (s *State) Roles() []*authpb.Role { return s.roles }

// User returns a user, nil when there is none of that name. The caller must
// not change it.
func (s *State) User(name string) *authpb.User {
	if i, found := s.findUser(name); found {
		return s.users[i]
	}
	return nil
}

// Role returns a role, nil when there is none of that name. The caller must
// not change it.
func (s *State) Role(name string) *authpb.Role {
	if i, found := s.findRole(name); found {
		return s.roles[i]
	}
	return nil
}

func (s *State) findUser(name string) (int, bool) {
	return slices.BinarySearchFunc(s.users, name, func(u *authpb.User, name string) int { return cmp.Compare(string(u.Name), name) })
}

func (s *State) findRole(name string) (int, bool) {
	return slices.BinarySearchFunc(s.roles, name, func(r *authpb.Role, name string) int { return cmp.Compare(string(r.Name), name) })
}

// GetUser answers AuthUserGet. The error is ErrUserNotFound.
func (s *State) GetUser(name string) (*pb.AuthUserGetResponse, error) {
	u := s.User(name)
	if u == nil {
		return nil, ErrUserNotFound
	}
	return &pb.AuthUserGetResponse{Roles: slices.Clone(u.Roles)}, nil
}

// GetRole answers AuthRoleGet. The error is ErrRoleNotFound.
func (s *State) GetRole(name string) (*pb.AuthRoleGetResponse, error) {
	r := s.Role(name)
	if r == nil {
		return nil, ErrRoleNotFound
	}
	if name == root {
		everything := &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte{}, RangeEnd: []byte{0}}
		return &pb.AuthRoleGetResponse{Perm: []*authpb.Permission{everything}}, nil
	}
	return &pb.AuthRoleGetResponse{Perm: slices.Clone(r.KeyPermission)}, nil
}

// UserNames are the names of all users, in order.
func (s *State) UserNames() []string {
	var names []string
	for _, u := range s.users {
		names = append(names, string(u.Name))
	}
	return names
}

// RoleNames are the names of all roles, in order.
func (s *State) RoleNames() []string {
	var names []string
	for _, r := range s.roles {
		names = append(names, string(r.Name))
	}
	return names
}

// Authenticate tells whether somebody who gave the right password may be given
// a token. Errors are ErrAuthNotEnabled and ErrAuthFailed.
func (s *State) Authenticate(name string) error {
	if !s.enabled {
		return ErrAuthNotEnabled
	}
	if u := s.User(name); u == nil || u.GetOptions().GetNoPassword() {
		return ErrAuthFailed
	}
	return nil
}

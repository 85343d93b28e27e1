package auth

import (
	"bytes"
	"encoding/base64"
	"slices"
	"sort"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/adt"
	"google.golang.org/protobuf/proto"
)

// Change makes states out of a state. Nobody is asked whether it is permitted.
type Change struct{ s *State }

// Change begins a change of s, which itself stays as it is.
func (s *State) Change() Change { return Change{s} }

// changed is the state after a change of users and roles.
func (s *State) changed(users []*authpb.User, roles []*authpb.Role) *State {
	return &State{enabled: s.enabled, revision: s.revision + 1, users: users, roles: roles}
}

func (s *State) withUser(u *authpb.User) *State {
	i, found := s.findUser(string(u.Name))
	users := slices.Clone(s.users)
	if found {
		users[i] = u
	} else {
		users = slices.Insert(users, i, u)
	}
	return s.changed(users, s.roles)
}

func (s *State) withRole(r *authpb.Role) *State {
	i, found := s.findRole(string(r.Name))
	roles := slices.Clone(s.roles)
	if found {
		roles[i] = r
	} else {
		roles = slices.Insert(roles, i, r)
	}
	return s.changed(s.users, roles)
}

// Enable has permissions asked for. It needs a user root with the role root.
// It is no change of the revision.
func (c Change) Enable() (*State, error) {
	if c.s.enabled {
		return c.s, nil
	}
	u := c.s.User(root)
	if u == nil {
		return nil, ErrRootUserNotExist
	}
	if !isRoot(u) {
		return nil, ErrRootRoleNotExist
	}
	return &State{enabled: true, revision: c.s.revision, users: c.s.users, roles: c.s.roles}, nil
}

// Disable lets everybody do everything.
func (c Change) Disable() *State {
	if !c.s.enabled {
		return c.s
	}
	next := c.s.changed(c.s.users, c.s.roles)
	next.enabled = false
	return next
}

// AddUser adds a user without roles. The password must be a bcrypt hash in
// base64; one in clear is refused with ErrNoPassword, so that none ever gets
// into the state.
func (c Change) AddUser(r *pb.AuthUserAddRequest) (*State, error) {
	if r.Name == "" {
		return nil, ErrUserEmpty
	}
	if c.s.User(r.Name) != nil {
		return nil, ErrUserAlreadyExist
	}
	u := &authpb.User{Name: []byte(r.Name), Options: r.Options}
	if u.Options == nil {
		u.Options = &authpb.UserAddOptions{}
	}
	if !u.Options.NoPassword {
		var err error
		if u.Password, err = hashOf(r.Password, r.HashedPassword); err != nil {
			return nil, err
		}
	}
	return c.s.withUser(u), nil
}

func hashOf(password, hashed string) ([]byte, error) {
	hash, err := base64.StdEncoding.DecodeString(hashed)
	if err != nil || password != "" && hashed == "" {
		return nil, ErrNoPassword
	}
	return hash, nil
}

// DeleteUser deletes a user, who must not be root while auth is enabled.
func (c Change) DeleteUser(name string) (*State, error) {
	if c.s.enabled && name == root {
		return nil, ErrInvalidAuthMgmt
	}
	i, found := c.s.findUser(name)
	if !found {
		return nil, ErrUserNotFound
	}
	return c.s.changed(slices.Delete(slices.Clone(c.s.users), i, i+1), c.s.roles), nil
}

// ChangePassword gives a user another password, in the form that AddUser
// wants. A user who has none by choice gets none.
func (c Change) ChangePassword(r *pb.AuthUserChangePasswordRequest) (*State, error) {
	u := c.s.User(r.Name)
	if u == nil {
		return nil, ErrUserNotFound
	}
	var hash []byte
	if !u.GetOptions().GetNoPassword() {
		var err error
		if hash, err = hashOf(r.Password, r.HashedPassword); err != nil {
			return nil, err
		}
	}
	next := proto.CloneOf(u)
	next.Password = hash
	return c.s.withUser(next), nil
}

// GrantRole gives a user a role, which must exist unless it is root.
func (c Change) GrantRole(user, role string) (*State, error) {
	u := c.s.User(user)
	if u == nil {
		return nil, ErrUserNotFound
	}
	if role != root && c.s.Role(role) == nil {
		return nil, ErrRoleNotFound
	}
	i, found := slices.BinarySearch(u.Roles, role)
	if found {
		return c.s, nil
	}
	next := proto.CloneOf(u)
	next.Roles = slices.Insert(next.Roles, i, role)
	return c.s.withUser(next), nil
}

// RevokeRole takes a role from a user. The user root keeps the role root while
// auth is enabled.
func (c Change) RevokeRole(user, role string) (*State, error) {
	if c.s.enabled && user == root && role == root {
		return nil, ErrInvalidAuthMgmt
	}
	u := c.s.User(user)
	if u == nil {
		return nil, ErrUserNotFound
	}
	next, had := withoutRole(u, role)
	if !had {
		return nil, ErrRoleNotGranted
	}
	return c.s.withUser(next), nil
}

// withoutRole tells whether the user had the role, too.
func withoutRole(u *authpb.User, role string) (*authpb.User, bool) {
	i, found := slices.BinarySearch(u.Roles, role)
	if !found {
		return u, false
	}
	next := proto.CloneOf(u)
	next.Roles = slices.Delete(next.Roles, i, i+1)
	return next, true
}

// AddRole adds a role without permissions.
func (c Change) AddRole(name string) (*State, error) {
	if name == "" {
		return nil, ErrRoleEmpty
	}
	if c.s.Role(name) != nil {
		return nil, ErrRoleAlreadyExist
	}
	return c.s.withRole(&authpb.Role{Name: []byte(name)}), nil
}

// DeleteRole deletes a role and takes it from all users. The role root stays
// while auth is enabled.
func (c Change) DeleteRole(name string) (*State, error) {
	if c.s.enabled && name == root {
		return nil, ErrInvalidAuthMgmt
	}
	i, found := c.s.findRole(name)
	if !found {
		return nil, ErrRoleNotFound
	}
	users := slices.Clone(c.s.users)
	for j, u := range users {
		users[j], _ = withoutRole(u, name)
	}
	return c.s.changed(users, slices.Delete(slices.Clone(c.s.roles), i, i+1)), nil
}

// GrantPermission gives a role a permission, or changes the kind of the one it
// has on the same range.
func (c Change) GrantPermission(role string, p *authpb.Permission) (*State, error) {
	if p == nil {
		return nil, ErrPermissionNotGiven
	}
	if !isRange(p.Key, p.RangeEnd) {
		return nil, ErrInvalidAuthMgmt
	}
	r := c.s.Role(role)
	if r == nil {
		return nil, ErrRoleNotFound
	}
	next := proto.CloneOf(r)
	// Like etcd's, this search finds only the first of several permissions
	// that begin with the same key.
	i, found := slices.BinarySearchFunc(next.KeyPermission, p.Key, func(p *authpb.Permission, key []byte) int { return bytes.Compare(p.Key, key) })
	if found && bytes.Equal(next.KeyPermission[i].RangeEnd, p.RangeEnd) {
		next.KeyPermission[i].PermType = p.PermType
	} else {
		next.KeyPermission = append(next.KeyPermission, proto.CloneOf(p))
		// sort.Sort is not stable; it is used because etcd uses it, so that
		// permissions that begin with the same key have the same order here.
		sort.Sort(byKey(next.KeyPermission))
	}
	return c.s.withRole(next), nil
}

type byKey []*authpb.Permission

func (s byKey) Len() int           { return len(s) }
func (s byKey) Less(i, j int) bool { return bytes.Compare(s[i].Key, s[j].Key) < 0 }
func (s byKey) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }

// RevokePermission takes the permissions on exactly this range from a role.
func (c Change) RevokePermission(role string, key, end []byte) (*State, error) {
	r := c.s.Role(role)
	if r == nil {
		return nil, ErrRoleNotFound
	}
	next := proto.CloneOf(r)
	next.KeyPermission = slices.DeleteFunc(next.KeyPermission, func(p *authpb.Permission) bool {
		return bytes.Equal(p.Key, key) && bytes.Equal(p.RangeEnd, end)
	})
	if len(next.KeyPermission) == len(r.KeyPermission) {
		return nil, ErrPermissionNotGranted
	}
	return c.s.withRole(next), nil
}

// isRange tells whether a permission on [key, end) is one on anything.
func isRange(key, end []byte) bool {
	if len(key) == 0 {
		return false
	}
	return len(end) == 0 || isOpen(end) || adt.BytesAffineComparable(key).Compare(adt.BytesAffineComparable(end)) < 0
}

package v2api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"reflect"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
	"golang.org/x/crypto/bcrypt"

	"muster/kvserver/v2tree"
	"muster/kvserver/v2tree/v2pb"
)

// users keeps version 2's users and roles in the tree, where etcd has them.
type users struct{ *core }

func authError(status int, format string, args ...any) error {
	return refuse(status, "auth: "+fmt.Sprintf(format, args...))
}

// codeOf is the code of an error of the tree, 0 for another error.
func codeOf(err error) int {
	var refused *v2error.Error
	if errors.As(err, &refused) {
		return refused.ErrorCode
	}
	return 0
}

// read reads what is kept under a name. fresh is whether it must be what was
// acknowledged last.
func (u *users) read(ctx context.Context, at string, fresh bool, into any) error {
	event, err := u.get(ctx, path.Join(v2tree.AuthPrefix, at), false, fresh)
	if err != nil {
		return err
	}
	if event.Node.Value == nil {
		return v2error.NewError(v2error.EcodeNotFile, event.Node.Key, event.EtcdIndex)
	}
	if err := json.Unmarshal([]byte(*event.Node.Value), into); err != nil {
		return fmt.Errorf("read %s: %w", event.Node.Key, err)
	}
	return nil
}

// names lists what is kept below a name.
func (u *users) names(ctx context.Context, at string) ([]string, error) {
	event, err := u.get(ctx, path.Join(v2tree.AuthPrefix, at), false, false)
	if codeOf(err) == v2error.EcodeKeyNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range event.Node.Nodes {
		names = append(names, path.Base(n.Key))
	}
	slices.Sort(names)
	return names, nil
}

// write keeps a value under a name, which exists or does not.
func (u *users) write(ctx context.Context, at string, value any, exists bool) error {
	if err := u.prepare(ctx); err != nil {
		return err
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = u.put(ctx, at, data, false, exists)
	return err
}

func (u *users) put(ctx context.Context, at string, value []byte, dir, exists bool) (*v2store.Event, error) {
	return u.propose(ctx, &v2pb.Request{
		Method: v2pb.Request_PUT, Path: []byte(path.Join(v2tree.AuthPrefix, at)), Value: value,
		Dir: dir, PrevExist: &exists, Time: time.Now().UnixNano(),
	})
}

func (u *users) delete(ctx context.Context, at string) error {
	if err := u.prepare(ctx); err != nil {
		return err
	}
	_, err := u.propose(ctx, &v2pb.Request{
		Method: v2pb.Request_DELETE, Path: []byte(path.Join(v2tree.AuthPrefix, at)), Time: time.Now().UnixNano(),
	})
	return err
}

// prepare makes the directories the first time that something is written.
func (u *users) prepare(ctx context.Context) error {
	var enabled bool
	if codeOf(u.read(ctx, "enabled", false, &enabled)) != v2error.EcodeKeyNotFound {
		return nil
	}
	for _, dir := range []string{"", "users", "roles"} {
		if _, err := u.put(ctx, dir, nil, true, false); err != nil && codeOf(err) != v2error.EcodeNodeExist {
			return err
		}
	}
	if _, err := u.put(ctx, "enabled", []byte("false"), false, false); err != nil && codeOf(err) != v2error.EcodeNodeExist {
		return err
	}
	return nil
}

// enabled tells whether permissions count. As in etcd they do not while that
// cannot be read.
func (u *users) enabled(ctx context.Context) bool {
	var enabled bool
	err := u.read(ctx, "enabled", false, &enabled)
	if err != nil && codeOf(err) != v2error.EcodeKeyNotFound {
		u.Logger.Warn("cannot tell whether authentication of version 2 is enabled", "error", err)
		return false
	}
	return enabled
}

func (u *users) user(ctx context.Context, name string, fresh bool) (user, error) {
	var found user
	err := u.read(ctx, "users/"+name, fresh, &found)
	if codeOf(err) == v2error.EcodeKeyNotFound {
		err = authError(http.StatusNotFound, "User %s does not exist.", name)
	}
	return withRoot(found), err
}

func (u *users) role(ctx context.Context, name string, fresh bool) (role, error) {
	if name == rootName {
		return everything(rootName), nil
	}
	var found role
	err := u.read(ctx, "roles/"+name, fresh, &found)
	if codeOf(err) == v2error.EcodeKeyNotFound {
		err = authError(http.StatusNotFound, "Role %s does not exist.", name)
	}
	return found, err
}

func (u *users) hash(password string) (string, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), u.BcryptCost)
	return string(hash), err
}

// createOrUpdate is what a request with a password, and perhaps nothing else,
// asks for.
func (u *users) createOrUpdate(ctx context.Context, wanted user) (out user, created bool, err error) {
	if _, err := u.user(ctx, wanted.User, true); err == nil {
		out, err = u.update(ctx, wanted)
		return out, false, err
	}
	out, err = u.create(ctx, wanted)
	return out, true, err
}

func (u *users) create(ctx context.Context, wanted user) (user, error) {
	wanted = withRoot(wanted)
	if wanted.Password == "" {
		return wanted, authError(http.StatusBadRequest, "Cannot create user %s with an empty password", wanted.User)
	}
	var err error
	if wanted.Password, err = u.hash(wanted.Password); err != nil {
		return wanted, err
	}
	err = u.write(ctx, "users/"+wanted.User, wanted, false)
	if codeOf(err) == v2error.EcodeNodeExist {
		err = authError(http.StatusConflict, "User %s already exists.", wanted.User)
	}
	return wanted, err
}

func (u *users) update(ctx context.Context, wanted user) (user, error) {
	old, err := u.user(ctx, wanted.User, true)
	if err != nil {
		return old, err
	}
	next := user{User: old.User, Password: old.Password}
	if wanted.Password != "" {
		if next.Password, err = u.hash(wanted.Password); err != nil {
			return old, err
		}
	}
	duplicate := fmt.Sprintf("Granting duplicate role %%s for user %s", wanted.User)
	if next.Roles, err = add(old.Roles, wanted.Grant, duplicate); err != nil {
		return old, err
	}
	for _, name := range wanted.Revoke {
		if !slices.Contains(next.Roles, name) {
			return old, authError(http.StatusConflict, "Revoking ungranted role %s for user %s", name, wanted.User)
		}
		next.Roles = without(next.Roles, []string{name})
	}
	if reflect.DeepEqual(old, next) {
		return old, authError(http.StatusBadRequest, "User not updated. Use grant/revoke/password to update the user.")
	}
	return next, u.write(ctx, "users/"+next.User, next, true)
}

func (u *users) deleteUser(ctx context.Context, name string) error {
	if name == rootName && u.enabled(ctx) {
		return authError(http.StatusForbidden, "Cannot delete root user while auth is enabled.")
	}
	err := u.delete(ctx, "users/"+name)
	if codeOf(err) == v2error.EcodeKeyNotFound {
		err = authError(http.StatusNotFound, "User %s does not exist", name)
	}
	return err
}

func (u *users) createRole(ctx context.Context, wanted role) error {
	if err := changeable(wanted.Role); err != nil {
		return err
	}
	err := u.write(ctx, "roles/"+wanted.Role, wanted, false)
	if codeOf(err) == v2error.EcodeNodeExist {
		err = authError(http.StatusConflict, "Role %s already exists.", wanted.Role)
	}
	return err
}

func (u *users) updateRole(ctx context.Context, wanted role) (role, error) {
	if err := changeable(wanted.Role); err != nil {
		return role{}, err
	}
	old, err := u.role(ctx, wanted.Role, true)
	if err != nil {
		return old, err
	}
	next, err := old.with(wanted)
	if err != nil {
		return old, err
	}
	if reflect.DeepEqual(old, next) {
		return old, authError(http.StatusBadRequest, "Role not updated. Use grant/revoke to update the role.")
	}
	return next, u.write(ctx, "roles/"+next.Role, next, true)
}

func (u *users) deleteRole(ctx context.Context, name string) error {
	if err := changeable(name); err != nil {
		return err
	}
	err := u.delete(ctx, "roles/"+name)
	if codeOf(err) == v2error.EcodeKeyNotFound {
		err = authError(http.StatusNotFound, "Role %s doesn't exist.", name)
	}
	return err
}

func changeable(name string) error {
	if name == rootName {
		return authError(http.StatusForbidden, "Cannot modify role %s: is root role.", name)
	}
	return nil
}

func (u *users) enable(ctx context.Context) error {
	if u.enabled(ctx) {
		return authError(http.StatusConflict, "already enabled")
	}
	if _, err := u.user(ctx, rootName, true); err != nil {
		return authError(http.StatusConflict, "No root user available, please create one")
	}
	if _, err := u.role(ctx, guestRole, true); err != nil {
		if err := u.createRole(ctx, everything(guestRole)); err != nil {
			return err
		}
	}
	return u.write(ctx, "enabled", true, true)
}

func (u *users) disable(ctx context.Context) error {
	if !u.enabled(ctx) {
		return authError(http.StatusConflict, "already disabled")
	}
	return u.write(ctx, "enabled", false, true)
}

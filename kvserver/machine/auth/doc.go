// Package auth knows who may do what: users, their roles, and the permissions
// of roles. It holds no passwords but their bcrypt hashes, checks none, and
// knows no tokens: who a request comes from is decided before it is proposed,
// whether that one may do what it asks when it is applied.
//
// The rules are those of etcd 3.7 (server/auth/store.go and
// server/etcdserver/apply/auth.go).
package auth

import "errors"

// The texts are etcd's (api/v3rpc/rpctypes/error.go) where it has one.
var (
	// ErrRootUserNotExist is returned when auth is enabled without a user root.
	ErrRootUserNotExist = errors.New("etcdserver: root user does not exist")
	// ErrRootRoleNotExist is returned when auth is enabled and the user root
	// has not the role root.
	ErrRootRoleNotExist = errors.New("etcdserver: root user does not have root role")
	// ErrUserAlreadyExist is returned when a user is added under a name that is taken.
	ErrUserAlreadyExist = errors.New("etcdserver: user name already exists")
	// ErrUserEmpty is returned when a user has no name, and for a request
	// that comes from nobody.
	ErrUserEmpty = errors.New("etcdserver: user name is empty")
	// ErrUserNotFound is returned for a user that does not exist.
	ErrUserNotFound = errors.New("etcdserver: user name not found")
	// ErrRoleAlreadyExist is returned when a role is added under a name that is taken.
	ErrRoleAlreadyExist = errors.New("etcdserver: role name already exists")
	// ErrRoleNotFound is returned for a role that does not exist.
	ErrRoleNotFound = errors.New("etcdserver: role name not found")
	// ErrRoleEmpty is returned when a role has no name.
	ErrRoleEmpty = errors.New("etcdserver: role name is empty")
	// ErrAuthFailed is returned when somebody cannot be authenticated.
	ErrAuthFailed = errors.New("etcdserver: authentication failed, invalid user ID or password")
	// ErrNoPassword is returned when a password is not given as a hash.
	ErrNoPassword = errors.New("auth: authentication failed, password was given for no password user")
	// ErrPermissionNotGiven is returned when a role is granted no permission.
	ErrPermissionNotGiven = errors.New("etcdserver: permission not given")
	// ErrPermissionDenied is returned for what the user may not do.
	ErrPermissionDenied = errors.New("etcdserver: permission denied")
	// ErrRoleNotGranted is returned when a role is taken that the user has not.
	ErrRoleNotGranted = errors.New("etcdserver: role is not granted to the user")
	// ErrPermissionNotGranted is returned when a permission is taken that the
	// role has not.
	ErrPermissionNotGranted = errors.New("etcdserver: permission is not granted to the role")
	// ErrAuthNotEnabled is returned when somebody authenticates and need not.
	ErrAuthNotEnabled = errors.New("etcdserver: authentication is not enabled")
	// ErrInvalidAuthMgmt is returned for a change that would lock everybody
	// out, and for a permission on no range.
	ErrInvalidAuthMgmt = errors.New("etcdserver: invalid auth management")
	// ErrAuthOldRevision is returned when users, roles or permissions changed
	// since it was decided who the request comes from. It may be tried again.
	ErrAuthOldRevision = errors.New("etcdserver: revision of auth store is old")
)

// Errors are all errors of this package. Each is the outcome of a request.
func Errors() []error {
	return []error{
		ErrRootUserNotExist, ErrRootRoleNotExist,
		ErrUserAlreadyExist, ErrUserEmpty, ErrUserNotFound,
		ErrRoleAlreadyExist, ErrRoleNotFound, ErrRoleEmpty,
		ErrAuthFailed, ErrNoPassword,
		ErrPermissionNotGiven, ErrPermissionDenied,
		ErrRoleNotGranted, ErrPermissionNotGranted,
		ErrAuthNotEnabled, ErrInvalidAuthMgmt, ErrAuthOldRevision,
	}
}

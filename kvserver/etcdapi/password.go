package etcdapi

import (
	"encoding/base64"
	"errors"
	"fmt"

	"golang.org/x/crypto/bcrypt"

	"muster/kvserver/machine/auth"
)

// checkPassword returns who has the password, and the revision at which that
// was so. Errors are auth.ErrAuthNotEnabled, auth.ErrAuthFailed and, for a user
// who cannot have a password, auth.ErrNoPassword.
func checkPassword(known *auth.State, name, password string) (auth.Identity, error) {
	if !known.Enabled() {
		return auth.Identity{}, auth.ErrAuthNotEnabled
	}
	user := known.User(name)
	if user == nil {
		return auth.Identity{}, auth.ErrAuthFailed
	}
	if user.GetOptions().GetNoPassword() {
		return auth.Identity{}, auth.ErrNoPassword
	}
	if bcrypt.CompareHashAndPassword(user.GetPassword(), []byte(password)) != nil {
		return auth.Identity{}, auth.ErrAuthFailed
	}
	return auth.Identity{User: name, Revision: known.Revision()}, nil
}

// hash is what is kept of a password: bcrypt's hash in base64.
func (a Access) hash(password string) (string, error) {
	hashed, err := bcrypt.GenerateFromPassword([]byte(password), a.BcryptCost)
	if errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return "", err // as it is: etcd's answer
	}
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	return base64.StdEncoding.EncodeToString(hashed), nil
}

package v2api

import (
	"context"
	"net/http"
	"slices"

	"golang.org/x/crypto/bcrypt"
)

// isRoot tells whether a request may change users, roles and members.
func (u *users) isRoot(ctx context.Context, r *http.Request) bool {
	if !u.enabled(ctx) {
		return true
	}
	who, ok := u.asking(ctx, r)
	return ok && slices.Contains(who.Roles, rootName)
}

// mayUse tells whether a request may use a key, or all below it.
func (u *users) mayUse(ctx context.Context, r *http.Request, key string, recursive bool) bool {
	if !u.enabled(ctx) {
		return true
	}
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	who, ok := u.asking(ctx, r)
	roles := who.Roles
	if !ok {
		if r.Header.Get("Authorization") != "" {
			return false
		}
		// As in etcd what a guest may do with a key it may do with all below it.
		roles, recursive = []string{guestRole}, false
	}
	allowed := slices.ContainsFunc(roles, func(name string) bool {
		role, err := u.role(ctx, name, false)
		return err == nil && role.allows(key, recursive, write)
	})
	if !allowed {
		u.Logger.Warn("refused a request of version 2", "user", who.User, "key", key, "from", r.RemoteAddr)
	}
	return allowed
}

// asking is the user that a request names, by a password or else, where that is
// configured, by a certificate.
func (u *users) asking(ctx context.Context, r *http.Request) (user, bool) {
	if r.Header.Get("Authorization") == "" {
		return u.certified(ctx, r)
	}
	name, password, ok := r.BasicAuth()
	if !ok {
		u.Logger.Warn("malformed basic authentication", "from", r.RemoteAddr)
		return user{}, false
	}
	who, err := u.user(ctx, name, false)
	if err != nil {
		return user{}, false
	}
	if bcrypt.CompareHashAndPassword([]byte(who.Password), []byte(password)) != nil {
		u.Logger.Warn("wrong password of version 2", "user", name, "from", r.RemoteAddr)
		return user{}, false
	}
	return who, true
}

// certified finds the user by the common names of a certificate and its issuers.
func (u *users) certified(ctx context.Context, r *http.Request) (user, bool) {
	if !u.ClientCertAuth || r.TLS == nil {
		return user{}, false
	}
	for _, chain := range r.TLS.VerifiedChains {
		for _, certificate := range chain {
			if who, err := u.user(ctx, certificate.Subject.CommonName, false); err == nil {
				return who, true
			}
		}
	}
	return user{}, false
}

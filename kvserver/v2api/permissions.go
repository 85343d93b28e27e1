package v2api

import (
	"net/http"
	"slices"
	"strings"
)

// The forms of users and roles, in requests, in answers and in the tree; those
// of etcd.

type user struct {
	User     string   `json:"user"`
	Password string   `json:"password,omitempty"` // its hash, in the tree
	Roles    []string `json:"roles"`
	Grant    []string `json:"grant,omitempty"`
	Revoke   []string `json:"revoke,omitempty"`
}

type role struct {
	Role        string       `json:"role"`
	Permissions permissions  `json:"permissions"`
	Grant       *permissions `json:"grant,omitempty"`
	Revoke      *permissions `json:"revoke,omitempty"`
}

type permissions struct {
	KV patterns `json:"kv"`
}

// patterns are paths, or beginnings of paths followed by *.
type patterns struct {
	Read  []string `json:"read"`
	Write []string `json:"write"`
}

const (
	rootName  = "root"
	guestRole = "guest"
)

// everything is what root may do, and whoever says no name unless the role guest
// says otherwise.
func everything(name string) role {
	return role{Role: name, Permissions: permissions{KV: patterns{Read: []string{"/*"}, Write: []string{"/*"}}}}
}

func (p *permissions) empty() bool {
	return p == nil || len(p.KV.Read) == 0 && len(p.KV.Write) == 0
}

// allows tells whether the role may use a key, or all below it.
func (r role) allows(key string, recursive, write bool) bool {
	if r.Role == rootName {
		return true
	}
	list := r.Permissions.KV.Read
	if write {
		list = r.Permissions.KV.Write
	}
	return slices.ContainsFunc(list, func(pattern string) bool {
		beginning, open := strings.CutSuffix(pattern, "*")
		if open {
			return strings.HasPrefix(key, beginning)
		}
		return !recursive && key == pattern
	})
}

// with returns the role with what an update grants and revokes.
func (r role) with(update role) (role, error) {
	out := role{Role: r.Role, Permissions: r.Permissions}
	var err error
	if update.Grant != nil {
		kv := &out.Permissions.KV
		if kv.Read, err = add(kv.Read, update.Grant.KV.Read, "Granting duplicate read permission %s"); err != nil {
			return r, err
		}
		if kv.Write, err = add(kv.Write, update.Grant.KV.Write, "Granting duplicate write permission %s"); err != nil {
			return r, err
		}
	}
	if update.Revoke != nil {
		kv := &out.Permissions.KV
		kv.Read, kv.Write = without(kv.Read, update.Revoke.KV.Read), without(kv.Write, update.Revoke.KV.Write)
	}
	return out, nil
}

// add returns the sorted union, or a refusal when they have one in common.
func add(to, more []string, duplicate string) ([]string, error) {
	out := sorted(to)
	for _, each := range more {
		if slices.Contains(out, each) {
			return nil, authError(http.StatusConflict, duplicate, each)
		}
		out = append(out, each)
	}
	return sorted(out), nil
}

// without returns the sorted difference.
func without(from, less []string) []string {
	return slices.DeleteFunc(sorted(from), func(each string) bool { return slices.Contains(less, each) })
}

// sorted returns a sorted copy without duplicates, which is not nil.
func sorted(list []string) []string {
	out := append([]string{}, list...)
	slices.Sort(out)
	return slices.Compact(out)
}

// withRoot returns the user root with the role of that name.
func withRoot(u user) user {
	if u.User == rootName && !slices.Contains(u.Roles, rootName) {
		u.Roles = append(slices.Clone(u.Roles), rootName)
	}
	return u
}

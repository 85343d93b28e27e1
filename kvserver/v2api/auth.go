package v2api

import (
	"context"
	"encoding/json"
	"net/http"
	"path"
	"strings"
)

// authHandler serves /v2/auth.
type authHandler struct {
	*core
	store *users
}

// userWithRoles is a user with what the roles are.
type userWithRoles struct {
	User  string `json:"user"`
	Roles []role `json:"roles,omitempty"`
}

// named splits the path of a request into the list, with an empty name, or the
// one in it that it is about.
func named(r *http.Request) (name string, err error) {
	pieces := strings.Split(path.Clean(r.URL.Path[len(authPath):]), "/")
	switch len(pieces) {
	case 2:
		return "", nil
	case 3:
		return pieces[2], nil
	default:
		return "", refuse(http.StatusBadRequest, "Invalid path")
	}
}

// admit answers what may not be done, and prepares what may.
func (h *authHandler) admit(w http.ResponseWriter, r *http.Request, open bool, methods ...string) (context.Context, context.CancelFunc, bool) {
	if !allowed(w, r.Method, methods...) {
		return nil, nil, false
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.Timeout)
	if !open && !h.store.isRoot(ctx, r) {
		cancel()
		h.writeError(w, r, errNoCredentials)
		return nil, nil, false
	}
	w.Header().Set("X-Etcd-Cluster-ID", h.cluster())
	w.Header().Set("Content-Type", "application/json")
	return ctx, cancel, true
}

// roles serves /v2/auth/roles.
func (h *authHandler) roles(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, h.listRoles, h.oneRole)
}

// users serves /v2/auth/users.
func (h *authHandler) users(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, h.listUsers, h.oneUser)
}

func (h *authHandler) serve(w http.ResponseWriter, r *http.Request,
	list func(context.Context, http.ResponseWriter) error,
	one func(context.Context, http.ResponseWriter, *http.Request, string) error,
) {
	name, err := named(r)
	if err != nil {
		h.writeError(w, r, err)
		return
	}
	methods := []string{"GET", "PUT", "DELETE"}
	if name == "" {
		methods = methods[:1]
	}
	ctx, cancel, ok := h.admit(w, r, false, methods...)
	if !ok {
		return
	}
	defer cancel()
	if name == "" {
		err = list(ctx, w)
	} else {
		err = one(ctx, w, r, name)
	}
	if err != nil {
		h.writeError(w, r, err)
	}
}

func (h *authHandler) listRoles(ctx context.Context, w http.ResponseWriter) error {
	names, err := h.store.names(ctx, "roles")
	if err != nil {
		return err
	}
	var list struct {
		Roles []role `json:"roles"`
	}
	for _, name := range sorted(append(names, rootName)) {
		found, err := h.store.role(ctx, name, false)
		if err != nil {
			return err
		}
		list.Roles = append(list.Roles, found)
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (h *authHandler) oneRole(ctx context.Context, w http.ResponseWriter, r *http.Request, name string) error {
	switch r.Method {
	case http.MethodGet:
		found, err := h.store.role(ctx, name, false)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, found)
		return nil
	case http.MethodDelete:
		return h.store.deleteRole(ctx, name)
	}
	var wanted role
	if err := decode(r, &wanted); err != nil {
		return err
	}
	if wanted.Role != name {
		return refuse(http.StatusBadRequest, "Role JSON name does not match the name in the URL")
	}
	if wanted.Grant.empty() && wanted.Revoke.empty() {
		if err := h.store.createRole(ctx, wanted); err != nil {
			return err
		}
		writeJSON(w, http.StatusCreated, wanted)
		return nil
	}
	if !wanted.Permissions.empty() {
		return refuse(http.StatusBadRequest, "Role JSON contains both permissions and grant/revoke")
	}
	updated, err := h.store.updateRole(ctx, wanted)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, updated)
	return nil
}

func (h *authHandler) listUsers(ctx context.Context, w http.ResponseWriter) error {
	names, err := h.store.names(ctx, "users")
	if err != nil {
		return err
	}
	var list struct {
		Users []userWithRoles `json:"users"`
	}
	for _, name := range names {
		found, err := h.store.user(ctx, name, false)
		if err != nil {
			return err
		}
		shown, err := h.expand(ctx, found, false)
		if err != nil {
			return err
		}
		list.Users = append(list.Users, shown)
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

// expand finds the roles of a user; all is whether one that is missing is an
// error.
func (h *authHandler) expand(ctx context.Context, u user, all bool) (userWithRoles, error) {
	shown := userWithRoles{User: u.User}
	for _, name := range u.Roles {
		found, err := h.store.role(ctx, name, false)
		switch {
		case err == nil:
			shown.Roles = append(shown.Roles, found)
		case all:
			return shown, err
		}
	}
	return shown, nil
}

func (h *authHandler) oneUser(ctx context.Context, w http.ResponseWriter, r *http.Request, name string) error {
	switch r.Method {
	case http.MethodGet:
		found, err := h.store.user(ctx, name, false)
		if err != nil {
			return err
		}
		shown, err := h.expand(ctx, found, true)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, shown)
		return nil
	case http.MethodDelete:
		return h.store.deleteUser(ctx, name)
	}
	var wanted user
	if err := decode(r, &wanted); err != nil {
		return err
	}
	if wanted.User != name {
		return refuse(http.StatusBadRequest, "User JSON name does not match the name in the URL")
	}
	status := http.StatusOK
	var out user
	var err error
	switch changes := len(wanted.Grant) > 0 || len(wanted.Revoke) > 0; {
	case changes && len(wanted.Roles) > 0:
		err = refuse(http.StatusBadRequest, "User JSON contains both roles and grant/revoke")
	case changes:
		out, err = h.store.update(ctx, wanted)
	case len(wanted.Roles) > 0:
		out, err = h.store.create(ctx, wanted)
	default:
		var created bool
		if out, created, err = h.store.createOrUpdate(ctx, wanted); created {
			status = http.StatusCreated
		}
	}
	if err != nil {
		return err
	}
	out.Password = ""
	writeJSON(w, status, out)
	return nil
}

func decode(r *http.Request, into any) error {
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody)).Decode(into); err != nil {
		return refuse(http.StatusBadRequest, "Invalid JSON in request body.")
	}
	return nil
}

// enable serves /v2/auth/enable.
func (h *authHandler) enable(w http.ResponseWriter, r *http.Request) {
	ctx, cancel, ok := h.admit(w, r, r.Method == http.MethodGet, "GET", "PUT", "DELETE")
	if !ok {
		return
	}
	defer cancel()
	var err error
	switch r.Method {
	case http.MethodGet:
		writeJSON(w, http.StatusOK, struct {
			Enabled bool `json:"enabled"`
		}{h.store.enabled(ctx)})
	case http.MethodPut:
		err = h.store.enable(ctx)
	case http.MethodDelete:
		err = h.store.disable(ctx)
	}
	if err != nil {
		h.writeError(w, r, err)
	}
}

package v2api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"muster/kvserver/machine"
	"muster/kvserver/replica"
)

// membersHandler serves /v2/members.
type membersHandler struct {
	*core
	users *users
}

// member is one as clients see it.
type member struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
}

func newMember(m machine.Member) member {
	return member{types.ID(m.ID).String(), m.Name, append([]string{}, m.PeerURLs...), append([]string{}, m.ClientURLs...)}
}

func (h *membersHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r.Method, "GET", "POST", "DELETE", "PUT") {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.Timeout)
	defer cancel()
	if r.Method != http.MethodGet && !h.users.isRoot(ctx, r) {
		h.writeError(w, r, errNoCredentials)
		return
	}
	w.Header().Set("X-Etcd-Cluster-ID", h.cluster())
	var err error
	switch r.Method {
	case http.MethodGet:
		err = h.get(w, r)
	case http.MethodPost:
		err = h.add(ctx, w, r)
	case http.MethodDelete:
		err = h.remove(ctx, w, r)
	case http.MethodPut:
		err = h.update(ctx, w, r)
	}
	switch {
	case errors.Is(err, errNoMember):
		http.Error(w, errNoMember.Message, errNoMember.status)
	case err != nil:
		h.writeError(w, r, err)
	}
}

// below is what follows /v2/members/ in the path of a request.
func below(r *http.Request) string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, membersPath), "/")
}

func (h *membersHandler) get(w http.ResponseWriter, r *http.Request) error {
	members := h.Store.Members()
	switch below(r) {
	case "":
		list := struct {
			Members []member `json:"members"`
		}{Members: []member{}}
		for _, m := range members {
			list.Members = append(list.Members, newMember(m))
		}
		writeJSON(w, http.StatusOK, list)
	case "leader":
		leader := h.Replica.Status().Leader
		i := slices.IndexFunc(members, func(m machine.Member) bool { return m.ID == leader })
		if i < 0 {
			return refuse(http.StatusServiceUnavailable, "During election")
		}
		writeJSON(w, http.StatusOK, newMember(members[i]))
	default:
		return refuse(http.StatusNotFound, "Not found")
	}
	return nil
}

func (h *membersHandler) add(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	urls, err := peerURLs(r)
	if err != nil {
		return err
	}
	changed, err := h.Replica.Reconfigure(ctx, replica.Change{Action: replica.AddMember, PeerURLs: urls})
	if err != nil {
		return reconfigureError(err, 0)
	}
	writeJSON(w, http.StatusCreated, newMember(machine.Member{ID: changed.Member, PeerURLs: urls}))
	return nil
}

func (h *membersHandler) remove(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	id, err := wantedMember(r)
	if err != nil {
		return err
	}
	if _, removed := slices.BinarySearch(h.Store.Membership().Removed(), uint64(id)); removed {
		return refuse(http.StatusGone, fmt.Sprintf("Member permanently removed: %s", id))
	}
	if _, err := h.Replica.Reconfigure(ctx, replica.Change{Action: replica.RemoveMember, Member: uint64(id)}); err != nil {
		return reconfigureError(err, id)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *membersHandler) update(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	id, err := wantedMember(r)
	if err != nil {
		return err
	}
	urls, err := peerURLs(r)
	if err != nil {
		return err
	}
	if _, err := h.Replica.Reconfigure(ctx, replica.Change{Action: replica.UpdateMember, Member: uint64(id), PeerURLs: urls}); err != nil {
		return reconfigureError(err, id)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func reconfigureError(err error, id types.ID) error {
	switch {
	case errors.Is(err, replica.ErrMemberExists):
		return refuse(http.StatusConflict, "membership: ID exists")
	case errors.Is(err, replica.ErrPeerURLExists):
		return refuse(http.StatusConflict, "membership: peerURL exists")
	case errors.Is(err, replica.ErrMemberNotFound):
		return refuse(http.StatusNotFound, fmt.Sprintf("No such member: %s", id))
	default:
		return fmt.Errorf("change the members: %w", err)
	}
}

// maxBody is what a request that is no form may have; what net/http allows forms.
const maxBody = 10 << 20

// errNoMember is answered in plain text when a path names nobody.
var errNoMember = refuse(http.StatusMethodNotAllowed, "Method Not Allowed")

// wantedMember is whom a path names.
func wantedMember(r *http.Request) (types.ID, error) {
	text := below(r)
	if text == "" {
		return 0, errNoMember
	}
	id, err := types.IDFromString(text)
	if err != nil {
		return 0, refuse(http.StatusNotFound, "No such member: "+text)
	}
	return id, nil
}

// peerURLs reads the body of a request.
func peerURLs(r *http.Request) ([]string, error) {
	kind, _, parameters := strings.Cut(r.Header.Get("Content-Type"), ";")
	if parameters {
		kind = strings.TrimSpace(strings.ToLower(kind))
	}
	if kind != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, fmt.Sprintf("Bad Content-Type %s, accept application/json", kind))
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, err.Error())
	}
	var wanted struct {
		PeerURLs []string `json:"peerURLs"`
	}
	if err := json.Unmarshal(body, &wanted); err != nil {
		return nil, refuse(http.StatusBadRequest, err.Error())
	}
	return checkPeerURLs(wanted.PeerURLs)
}

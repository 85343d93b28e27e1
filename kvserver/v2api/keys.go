package v2api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"

	"muster/kvserver/replica"
	"muster/kvserver/v2tree"
	"muster/kvserver/v2tree/v2pb"
)

// keysHandler serves /v2/keys.
type keysHandler struct {
	*core
	users *users
}

func (h *keysHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r.Method, "HEAD", "GET", "PUT", "POST", "DELETE") {
		return
	}
	w.Header().Set("X-Etcd-Cluster-ID", h.cluster())
	parsed, err := parse(r, time.Now())
	if err != nil {
		h.writeError(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.Timeout)
	defer cancel()
	if !h.users.mayUse(ctx, r, strings.TrimPrefix(r.URL.Path, keysPath), parsed.recursive) {
		h.writeError(w, r, v2error.NewError(v2error.EcodeUnauthorized, "Insufficient credentials", 0))
		return
	}
	method := r.Method
	if parsed.quorum && method == http.MethodGet {
		method = "QGET" // etcd's name of it
	}
	if parsed.wait && !parsed.quorum {
		err = h.watch(w, r, parsed)
	} else {
		if !parsed.wait {
			h.Counts.Received(method)
		}
		err = h.serve(ctx, w, r.Method, method, parsed)
	}
	if err != nil {
		h.Counts.Failed(method, strconv.Itoa(h.writeKeyError(w, r, err)))
	}
}

// serve answers what is no watch.
func (h *keysHandler) serve(ctx context.Context, w http.ResponseWriter, method, counted string, p parsedKey) error {
	began := time.Now()
	event, err := h.do(ctx, method, p)
	if err != nil {
		return err
	}
	h.writeEvent(w, event, p.noValueOnSuccess)
	h.Counts.Succeeded(counted, time.Since(began))
	return nil
}

func (h *keysHandler) do(ctx context.Context, method string, p parsedKey) (*v2store.Event, error) {
	switch method {
	case http.MethodGet, http.MethodHead:
		return h.get(ctx, p.path, p.recursive, p.quorum && method == http.MethodGet)
	default:
		return h.propose(ctx, p.request)
	}
}

// get reads; quorum is whether all must be seen that was acknowledged before.
func (c *core) get(ctx context.Context, at string, recursive, quorum bool) (*v2store.Event, error) {
	if err := c.awaitRead(ctx, quorum); err != nil {
		return nil, err
	}
	event, err := c.Store.V2().Get(at, recursive, time.Now())
	c.requests.read(err)
	return event, err
}

func (c *core) awaitRead(ctx context.Context, quorum bool) error {
	if quorum {
		return c.Replica.Linearize(ctx)
	}
	select {
	case <-c.Replica.Ready():
		return nil
	case <-ctx.Done():
		return replica.ErrTimeout
	}
}

func (c *core) propose(ctx context.Context, request *v2pb.Request) (*v2store.Event, error) {
	wrapped, err := v2tree.Wrap(request)
	if err != nil {
		return nil, err
	}
	outcome, err := c.Replica.Propose(ctx, wrapped)
	switch {
	case err != nil:
		return nil, err
	case outcome.Err != nil:
		return nil, outcome.Err
	case outcome.V2.Err != nil:
		return nil, outcome.V2.Err
	default:
		return outcome.V2.Event, nil
	}
}

func (h *keysHandler) writeEvent(w http.ResponseWriter, event *v2store.Event, noValue bool) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	h.placeHeaders(header, event.EtcdIndex)
	if event.IsCreated() {
		w.WriteHeader(http.StatusCreated)
	}
	event = trimmed(event)
	switch event.Action {
	case v2store.Set, v2store.CompareAndSwap, v2store.Create, v2store.Update:
		if noValue {
			event.Node, event.PrevNode = nil, nil
		}
	}
	_ = json.NewEncoder(w).Encode(event) // fails only when the client has gone
}

func (h *keysHandler) placeHeaders(header http.Header, index uint64) {
	status := h.Replica.Status()
	header.Set("X-Etcd-Index", strconv.FormatUint(index, 10))
	header.Set("X-Raft-Index", strconv.FormatUint(status.Committed, 10))
	header.Set("X-Raft-Term", strconv.FormatUint(status.Term, 10))
}

// trimmed is an event with the keys as clients know them. Events are shared.
func trimmed(event *v2store.Event) *v2store.Event {
	event = event.Clone()
	trim(event.Node)
	trim(event.PrevNode)
	return event
}

func trim(n *v2store.NodeExtern) {
	if n == nil {
		return
	}
	n.Key = strings.TrimPrefix(n.Key, v2tree.KeysPrefix)
	for _, child := range n.Nodes {
		trim(child)
	}
}

// writeKeyError returns the status code.
func (h *keysHandler) writeKeyError(w http.ResponseWriter, r *http.Request, err error) int {
	var refused *v2error.Error
	if !errors.As(err, &refused) {
		h.Logger.Warn("a request of version 2 failed", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
		refused = v2error.NewError(v2error.EcodeRaftInternal, serverError(err), 0)
	}
	shown := *refused
	shown.Cause = strings.TrimPrefix(shown.Cause, v2tree.KeysPrefix)
	_ = shown.WriteTo(w) // fails only when the client has gone
	return shown.StatusCode()
}

// watch answers with what happens. An error is for the client; once there is
// something to tell there is none.
func (h *keysHandler) watch(w http.ResponseWriter, r *http.Request, p parsedKey) error {
	ready, cancel := context.WithTimeout(r.Context(), h.Timeout)
	err := h.awaitRead(ready, false)
	cancel()
	var watcher *watcher
	if err == nil {
		watcher, err = h.hub.watch(p.path, p.recursive, p.stream, p.since)
	}
	if err != nil {
		return err
	}
	defer watcher.end()
	w.Header().Set("Content-Type", "application/json")
	h.placeHeaders(w.Header(), watcher.index)
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	if flush() != nil { // the client wants to know at once that it watches
		return nil
	}
	for {
		select {
		case event, ok := <-watcher.events:
			if !ok {
				return nil // it was too slow, or the member stops; it asks again
			}
			if json.NewEncoder(w).Encode(trimmed(event)) != nil || !p.stream || flush() != nil {
				return nil
			}
		case <-h.hub.done:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

// parsedKey is a request for keys.
type parsedKey struct {
	path                            string
	request                         *v2pb.Request // of what changes something
	recursive, quorum, wait, stream bool
	since                           uint64
	noValueOnSuccess                bool
}

// parse reads a request. Errors come in the order in which etcd looks for them.
func parse(r *http.Request, now time.Time) (parsedKey, error) {
	if err := r.ParseForm(); err != nil {
		return parsedKey{}, invalid(v2error.EcodeInvalidForm, err.Error())
	}
	f := &form{values: r.Form}
	request := &v2pb.Request{
		Method: v2pb.Request_Method(v2pb.Request_Method_value[r.Method]),
		Value:  []byte(r.FormValue("value")),
		Time:   now.UnixNano(),
	}
	p := parsedKey{path: path.Join(v2tree.KeysPrefix, path.Clean("/"+strings.TrimPrefix(r.URL.Path, keysPath))), request: request}
	request.Path = []byte(p.path)
	request.PrevIndex = f.number("prevIndex", v2error.EcodeIndexNaN)
	p.since = f.number("waitIndex", v2error.EcodeIndexNaN)
	request.Recursive = f.flag("recursive")
	f.flag("sorted") // what is listed is sorted, wanted or not
	p.wait = f.flag("wait")
	request.Dir = f.flag("dir")
	p.quorum = f.flag("quorum")
	p.stream = f.flag("stream")
	if p.wait && r.Method != http.MethodGet {
		f.fail(v2error.EcodeInvalidField, `"wait" can only be used with GET requests`)
	}
	request.PrevValue = []byte(r.FormValue("prevValue"))
	if f.given("prevValue") && len(request.GetPrevValue()) == 0 {
		f.fail(v2error.EcodePrevValueRequired, `"prevValue" cannot be empty`)
	}
	p.noValueOnSuccess = f.flag("noValueOnSuccess")
	expires := r.FormValue("ttl") != ""
	if expires {
		ttl := f.number("ttl", v2error.EcodeTTLNaN)
		request.Expires = now.Add(time.Duration(ttl) * time.Second).UnixNano() //nolint:gosec // wraps as in etcd
	}
	if f.given("prevExist") {
		exist := f.unquoted("prevExist")
		request.PrevExist = &exist
	}
	if f.given("refresh") {
		request.Refresh = f.unquoted("refresh")
		if request.GetRefresh() && r.FormValue("value") != "" {
			f.fail(v2error.EcodeRefreshValue, "A value was provided on a refresh")
		}
		if request.GetRefresh() && !expires {
			f.fail(v2error.EcodeRefreshTTLRequired, "No TTL value set")
		}
	}
	p.recursive = request.GetRecursive()
	if f.err != nil {
		return parsedKey{}, f.err
	}
	return p, nil
}

func invalid(code int, cause string) *v2error.Error { return v2error.NewError(code, cause, 0) }

// form reads fields and keeps the first error.
type form struct {
	values url.Values
	err    *v2error.Error
}

func (f *form) fail(code int, cause string) {
	if f.err == nil {
		f.err = invalid(code, cause)
	}
}

func (f *form) given(name string) bool { return len(f.values[name]) > 0 }

func (f *form) number(name string, code int) uint64 {
	if !f.given(name) {
		return 0
	}
	n, err := strconv.ParseUint(f.values[name][0], 10, 64)
	if err != nil {
		f.fail(code, fmt.Sprintf("invalid value for %q", name))
	}
	return n
}

func (f *form) flag(name string) bool { return f.boolean(name, strconv.Quote(name)) }

// unquoted is flag for the fields whose names etcd does not quote.
func (f *form) unquoted(name string) bool { return f.boolean(name, name) }

func (f *form) boolean(name, shown string) bool {
	if !f.given(name) {
		return false
	}
	value, err := strconv.ParseBool(f.values[name][0])
	if err != nil {
		f.fail(v2error.EcodeInvalidField, "invalid value for "+shown)
	}
	return value
}

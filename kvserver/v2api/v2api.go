// Package v2api serves etcd's HTTP API of version 2, as etcd 3.4 and 3.5 did
// behind --enable-v2: keys, members, statistics, users and roles. It translates:
// the tree is in the replicated state, whether or not anybody serves it.
// DESIGN.md of package v2tree says how.
package v2api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/metrics"
	"muster/kvserver/replica"
)

// Replica replicates requests and knows the cluster.
type Replica interface {
	Propose(ctx context.Context, request *pb.InternalRaftRequest) (replica.Outcome, error)
	Reconfigure(ctx context.Context, change replica.Change) (replica.Changed, error)
	Linearize(ctx context.Context) error
	Ready() <-chan struct{}
	Status() replica.Status
	Member() uint64
	Cluster() uint64
}

// Store is the state, read as this member has it.
type Store interface {
	V2() machine.V2
	Members() []machine.Member
	Membership() machine.Membership
}

// Config is what is served. All fields are required.
type Config struct {
	Replica Replica
	Store   Store
	// Name is this member's.
	Name string
	// Timeout bounds a request that is not a watch.
	Timeout time.Duration
	// ClientCertAuth is whether a client may say by its certificate who it is.
	ClientCertAuth bool
	// BcryptCost is the strength of the hashes of passwords, 4 to 31.
	BcryptCost int
	// Metrics is what the statistics tell of, Counts what is counted here.
	Metrics *metrics.Replica
	Counts  *metrics.V2
	Logger  *slog.Logger
}

// Path is what all paths of this API begin with.
const Path = "/v2/"

const (
	keysPath    = Path + "keys"
	membersPath = Path + "members"
	statsPath   = Path + "stats"
	authPath    = Path + "auth"
)

// API serves the requests below Path. It must end with Close.
type API struct {
	http.Handler
	hub     *hub
	stats   *statistics
	closing sync.Once
}

// New returns an API that is ready to serve.
func New(config Config) *API {
	c := &core{Config: config, hub: newHub(config.Store.V2()), requests: &requests{}}
	users := &users{core: c}
	stats := newStatistics(c)
	keys, members, auth := &keysHandler{c, users}, &membersHandler{c, users}, &authHandler{c, users}
	mux := http.NewServeMux()
	mux.Handle(keysPath, keys)
	mux.Handle(keysPath+"/", keys)
	mux.Handle(membersPath, members)
	mux.Handle(membersPath+"/", members)
	mux.HandleFunc(Path+"machines", c.machines)
	mux.HandleFunc(statsPath+"/store", getOnly(stats.writes))
	mux.HandleFunc(statsPath+"/self", getOnly(stats.self))
	mux.HandleFunc(statsPath+"/leader", getOnly(stats.leading))
	mux.HandleFunc(authPath+"/roles", auth.roles)
	mux.HandleFunc(authPath+"/roles/", auth.roles)
	mux.HandleFunc(authPath+"/users", auth.users)
	mux.HandleFunc(authPath+"/users/", auth.users)
	mux.HandleFunc(authPath+"/enable", auth.enable)
	return &API{Handler: clean(mux), hub: c.hub, stats: stats}
}

// clean redirects whoever asks for a path with dots or empty parts in it, as
// etcd 3.4 does. net/http does so no longer when they are escaped, and what
// follows /v2/keys would lead to what clients must not see.
func clean(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wanted := path.Clean("/" + r.URL.Path)
		if strings.HasSuffix(r.URL.Path, "/") && wanted != "/" {
			wanted += "/"
		}
		if wanted != r.URL.Path {
			to := url.URL{Path: wanted, RawQuery: r.URL.RawQuery}
			http.Redirect(w, r, to.String(), http.StatusMovedPermanently)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Close ends all watches.
func (a *API) Close() {
	a.closing.Do(func() {
		a.hub.close()
		a.stats.close()
	})
}

// core is what every handler needs.
type core struct {
	Config
	hub      *hub
	requests *requests
}

func (c *core) cluster() string { return types.ID(c.Replica.Cluster()).String() }

func allowed(w http.ResponseWriter, method string, methods ...string) bool {
	if slices.Contains(methods, method) {
		return true
	}
	w.Header().Set("Allow", strings.Join(methods, ","))
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

func getOnly(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if allowed(w, r.Method, http.MethodGet) {
			handle(w, r)
		}
	}
}

// httpError is the form of errors that are not about keys.
type httpError struct {
	status  int
	Message string `json:"message"`
}

func (e *httpError) Error() string { return e.Message }

func refuse(status int, message string) *httpError { return &httpError{status, message} }

var errNoCredentials = refuse(http.StatusUnauthorized, "Insufficient credentials")

// writeError answers what is not about keys. A reason that etcd has no answer
// for goes to the log only.
func (c *core) writeError(w http.ResponseWriter, r *http.Request, err error) {
	var refused *v2error.Error
	if errors.As(err, &refused) {
		_ = refused.WriteTo(w)
		return
	}
	var known *httpError
	if !errors.As(err, &known) {
		c.Logger.Warn("a request of version 2 failed", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
		known = refuse(http.StatusInternalServerError, "Internal Server Error")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(known.status)
	if body, err := json.Marshal(known); err == nil {
		_, _ = w.Write(body)
	}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only when the client has gone
}

// serverError gives an error the text that etcd has for it.
func serverError(err error) string {
	for _, known := range []struct {
		ours error
		text string
	}{
		{replica.ErrTimeout, "etcdserver: request timed out"},
		{context.DeadlineExceeded, "etcdserver: request timed out"},
		{replica.ErrLeaderLost, "etcdserver: request timed out, possibly due to previous leader failure"},
		{replica.ErrStopped, "etcdserver: server stopped"},
		{machine.ErrClosed, "etcdserver: server stopped"},
		{context.Canceled, "etcdserver: request cancelled"},
		{replica.ErrTooManyRequests, "etcdserver: too many requests"},
	} {
		if errors.Is(err, known.ours) {
			return known.text
		}
	}
	return err.Error()
}

func (c *core) machines(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r.Method, http.MethodGet, http.MethodHead) {
		return
	}
	var urls []string
	for _, member := range c.Store.Members() {
		urls = append(urls, member.ClientURLs...)
	}
	slices.Sort(urls)
	_, _ = w.Write([]byte(strings.Join(urls, ", ")))
}

// checkPeerURLs reads the peer URLs of a request.
func checkPeerURLs(urls []string) ([]string, error) {
	checked, err := membership.CheckPeerURLs(urls)
	if err != nil {
		// The client reads the reason in etcd's words.
		if _, theirs := types.NewURLs(urls); theirs != nil {
			err = theirs
		}
		return nil, refuse(http.StatusBadRequest, err.Error())
	}
	return checked, nil
}

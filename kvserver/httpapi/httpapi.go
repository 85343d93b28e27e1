// Package httpapi answers etcd's plain HTTP paths: health, version, metrics.
package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"

	"muster/kvserver/metrics"
	"muster/kvserver/replica"
)

// Replica tells whether this member takes part in the cluster.
type Replica interface {
	Linearize(ctx context.Context) error
	Ready() <-chan struct{}
	Status() replica.Status
	Member() uint64
}

// Store is the state, read as this member has it.
type Store interface {
	Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error)
	Alarms() []*pb.AlarmMember
}

// Config is what the handler reports on.
type Config struct {
	Replica Replica
	Store   Store
	// Learner reports whether this member is a learner now.
	Learner func() bool
	// Version is the cluster's.
	Version func() string
	// Timeout bounds one check.
	Timeout  time.Duration
	Gatherer prometheus.Gatherer
	Health   *metrics.Health
	// Gateway answers below /v3/; nil if nothing does.
	Gateway http.Handler
	// V2 answers below /v2/; nil if nothing does.
	V2 http.Handler
	// Profiles adds /debug/pprof/.
	Profiles  bool
	Admission Admission
	Logger    *slog.Logger
}

// NewClientHandler serves what etcd serves on its client port besides gRPC: the
// JSON gateway, /version, /debug/vars, and what NewMetricsHandler does.
func NewClientHandler(config Config) http.Handler {
	mux := newMux(config)
	mux.HandleFunc("/version", getOnly(func(w http.ResponseWriter, _ *http.Request) { serveVersion(w, config.Version()) }))
	handleVariables(mux)
	if config.Profiles {
		handleProfiles(mux)
	}
	if config.Gateway != nil {
		mux.Handle(gatewayPath, config.Gateway)
	}
	if config.V2 != nil {
		mux.Handle("/v2/", config.V2)
	}
	return config.Admission.Admit(mux)
}

// NewMetricsHandler serves /health, /livez, /readyz (with sub-paths) and
// /metrics to whoever asks.
func NewMetricsHandler(config Config) http.Handler { return newMux(config) }

func newMux(config Config) *http.ServeMux {
	h := &checks{config}
	mux := http.NewServeMux()
	mux.HandleFunc("/health", getOnly(h.health))
	live := []check{{"serializable_read", h.serializableRead}}
	ready := []check{
		{"data_corruption", h.dataCorruption},
		{"serializable_read", h.serializableRead},
		{"linearizable_read", h.linearizableRead},
		{"non_learner", h.nonLearner},
	}
	h.install(mux, "/livez", live)
	h.install(mux, "/readyz", ready)
	mux.Handle("/metrics", promhttp.HandlerFor(config.Gatherer, promhttp.HandlerOpts{}))
	return mux
}

func getOnly(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		handle(w, r)
	}
}

func serveVersion(w http.ResponseWriter, cluster string) {
	body, err := json.Marshal(version.Versions{Server: version.Version, Cluster: cluster, Storage: cluster})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

type checks struct{ Config }

type check struct {
	name string
	run  func(context.Context) error
}

// health answers etcd's original probe.
func (c *checks) health(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	reason := c.sick(r.Context(), query["exclude"], query.Get("serializable") == "true")
	if reason == "" {
		c.Health.Successes.Inc()
	} else {
		c.Health.Failures.Inc()
	}
	body, err := json.Marshal(struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{strconv.FormatBool(reason == ""), reason})
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case reason != "":
		c.Logger.Warn("/health is false", "reason", reason)
		http.Error(w, string(body), http.StatusServiceUnavailable)
	default:
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(body) // as plain text, which is etcd's content type
	}
}

// sick returns why the member is unhealthy, in etcd's words, or "".
func (c *checks) sick(ctx context.Context, excluded []string, serializable bool) string {
	for _, alarm := range c.Store.Alarms() {
		name := alarm.GetAlarm().String()
		if slices.Contains(excluded, name) {
			continue
		}
		if _, known := pb.AlarmType_name[int32(alarm.GetAlarm())]; !known {
			name = "UNKNOWN"
		}
		return "ALARM " + name
	}
	if !serializable && c.Replica.Status().Leader == 0 {
		return "RAFT NO LEADER"
	}
	read := c.linearizableRead
	if serializable {
		read = c.serializableRead
	}
	if err := read(ctx); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	return ""
}

// install serves all checks at root and each one below it.
func (c *checks) install(mux *http.ServeMux, root string, all []check) {
	kind := strings.TrimPrefix(root, "/")
	mux.HandleFunc(root, getOnly(func(w http.ResponseWriter, r *http.Request) {
		excluded := r.URL.Query()["exclude"]
		var chosen []check
		for _, each := range all {
			if !slices.Contains(excluded, each.name) {
				chosen = append(chosen, each)
			}
		}
		c.run(w, r, kind, chosen)
	}))
	for _, each := range all {
		mux.HandleFunc(root+"/"+each.name, getOnly(func(w http.ResponseWriter, r *http.Request) {
			c.run(w, r, kind, []check{each})
		}))
	}
}

func (c *checks) run(w http.ResponseWriter, r *http.Request, kind string, chosen []check) {
	var report strings.Builder
	failed := false
	for _, each := range chosen {
		err := each.run(r.Context())
		c.Health.Checked(kind, each.name, err)
		if err != nil {
			failed = true
			fmt.Fprintf(&report, "[-]%s failed: %v\n", each.name, err)
			continue
		}
		fmt.Fprintf(&report, "[+]%s ok\n", each.name)
	}
	if failed {
		c.Logger.Warn("health check failed", "path", r.URL.Path, "report", report.String())
		http.Error(w, report.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !r.URL.Query().Has("verbose") {
		report.Reset()
	}
	_, _ = fmt.Fprint(w, report.String(), "ok\n")
}

func (c *checks) linearizableRead(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.Replica.Linearize(ctx)
}

// serializableRead fails until the member has caught up once since it started:
// its store may be older than what it has shown before.
func (c *checks) serializableRead(ctx context.Context) error {
	select {
	case <-c.Replica.Ready():
	default:
		return fmt.Errorf("this member has not caught up with the cluster since it started")
	}
	_, err := c.Store.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 1, KeysOnly: true})
	return err
}

func (c *checks) dataCorruption(context.Context) error {
	for _, alarm := range c.Store.Alarms() {
		if alarm.GetAlarm() == pb.AlarmType_CORRUPT {
			return fmt.Errorf("alarm activated: %s", alarm.GetAlarm())
		}
	}
	return nil
}

func (c *checks) nonLearner(context.Context) error {
	if c.Learner() {
		return fmt.Errorf("not supported for learner")
	}
	return nil
}

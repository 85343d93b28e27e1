package metrics

import (
	"runtime"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.etcd.io/etcd/api/v3/version"
	etcdruntime "go.etcd.io/etcd/pkg/v3/runtime"
	"go.etcd.io/etcd/server/v3/features"

	"muster/kvserver/watch"
)

// State is what a member can tell at any moment. Every function is called at
// each scrape.
type State struct {
	Member  uint64
	Leader  func() uint64
	Learner func() bool
	// Members are the ids of all, this one's included.
	Members func() []uint64
	// Committed and Applied are indexes of the raft log, of which LogEntries are
	// kept.
	Committed, Applied, LogEntries func() uint64
	// Size and InUse are bytes of the store, of which Quota may be in use.
	Size, InUse         func() int64
	Quota               int64
	Revision, Compacted func() int64
	AuthRevision        func() uint64
	Watches             func() watch.Stats
	// Gates are the feature gates that are not at their default.
	Gates map[string]bool
}

// RegisterState registers what is read at each scrape: of the member, of the
// process and of Go.
func RegisterState(registry prometheus.Registerer, s State) {
	f := factory{promauto.With(registry)}
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		known{s, prometheus.NewDesc("etcd_network_known_peers", "1 for every member.", []string{"Local", "Remote"}, nil)},
	)
	self := ID(s.Member)
	f.label("etcd_server_id", "The member's id.", "server_id", self)
	f.label("etcd_server_version", "The version of etcd that is served.", "server_version", version.Version)
	f.label("etcd_server_go_version", "The version of Go.", "server_go_version", runtime.Version())
	f.label("etcd_cluster_version", "The version of etcd that the cluster serves.", "cluster_version", version.Cluster(version.Version))
	f.truth("etcd_server_has_leader", "1 while a leader is known.", func() bool { return s.Leader() != 0 })
	f.truth("etcd_server_is_leader", "1 while this member leads.", func() bool { return s.Leader() == s.Member })
	f.truth("etcd_server_is_learner", "1 while this member is a learner.", s.Learner)
	read(f, "etcd_server_proposals_committed_total", "Index of the newest entry of the raft log that is committed.", s.Committed)
	read(f, "etcd_server_proposals_applied_total", "Index of the newest entry of the raft log that is applied.", s.Applied)
	read(f, "muster_raft_log_entries", "Entries that the raft log keeps.", s.LogEntries)
	read(f, "etcd_server_quota_backend_bytes", "Bytes that may be in use before writes are refused.", func() int64 { return s.Quota })
	read(f, "etcd_mvcc_db_total_size_in_bytes", "Bytes that the store takes on the disk.", s.Size)
	read(f, "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes that are in use.", s.InUse)
	read(f, "etcd_debugging_mvcc_current_revision", "The revision of the keys.", s.Revision)
	read(f, "etcd_debugging_mvcc_compact_revision", "The revision up to which history was compacted.", s.Compacted)
	read(f, "etcd_debugging_auth_revision", "The revision of users and roles.", s.AuthRevision)
	read(f, "etcd_debugging_mvcc_watch_stream_total", "Open streams of watchers.", func() int64 { return s.Watches().Streams })
	read(f, "etcd_debugging_mvcc_watcher_total", "Watchers.", func() int64 { return s.Watches().Watchers })
	read(f, "etcd_debugging_mvcc_slow_watcher_total", "Watchers that catch up from the history.", func() int64 { return s.Watches().Slow })
	read(f, "etcd_debugging_mvcc_pending_events_total", "Events that wait for being handed to the watchers.", func() int64 { return s.Watches().Pending })
	f.count("etcd_debugging_mvcc_events_total", "Events that watchers took.", func() int64 { return s.Watches().Delivered })
	read(f, "os_fd_limit", "Files that the process may have open.", func() uint64 { return orZero(etcdruntime.FDLimit()) })
	read(f, "os_fd_used", "Files that the process has open.", func() uint64 { return orZero(etcdruntime.FDUsage()) })
	gates := f.gauges("etcd_server_feature_enabled", "1 for a feature gate that is enabled.", "name", "stage")
	for feature, spec := range features.DefaultEtcdServerFeatureGates {
		on, set := s.Gates[string(feature)]
		if !set {
			on = spec.Default
		}
		gates.WithLabelValues(string(feature), strings.ToUpper(string(spec.PreRelease))).Set(truth(on))
	}
}

func orZero(n uint64, err error) uint64 {
	if err != nil {
		return 0
	}
	return n
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (f factory) truth(name, help string, value func() bool) {
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return truth(value()) })
}

func (f factory) label(name, help, label, value string) {
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{label: value}}, func() float64 { return 1 })
}

func read[T int64 | uint64](f factory, name, help string, value func() T) {
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
}

// known is a gauge for every member there is.
type known struct {
	State
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (k known) Describe(descs chan<- *prometheus.Desc) { descs <- k.desc }

// Collect implements prometheus.Collector.
func (k known) Collect(metrics chan<- prometheus.Metric) {
	for _, member := range k.Members() {
		metrics <- prometheus.MustNewConstMetric(k.desc, prometheus.GaugeValue, 1, ID(k.Member), ID(member))
	}
}

// Health is what the health checks count.
type Health struct {
	Successes, Failures prometheus.Counter
	last                *prometheus.GaugeVec
	checks              *prometheus.CounterVec
}

// NewHealth makes the collectors and registers them; nil registers nowhere.
func NewHealth(registry prometheus.Registerer) *Health {
	f := factory{promauto.With(registry)}
	return &Health{
		Successes: f.counter("etcd_server_health_success", "Answers of /health that all is well."),
		Failures:  f.counter("etcd_server_health_failures", "Answers of /health that something is wrong."),
		last:      f.gauges("etcd_server_healthcheck", "1 if the check of this kind and name passed last.", "type", "name"),
		checks:    f.counters("etcd_server_healthchecks_total", "Checks of this kind and name, by what came out.", "type", "name", "status"),
	}
}

// Checked counts one check of /livez or /readyz, the kind.
func (h *Health) Checked(kind, name string, err error) {
	status := "success"
	if err != nil {
		status = "error"
	}
	h.last.WithLabelValues(kind, name).Set(truth(err == nil))
	h.checks.WithLabelValues(kind, name, status).Inc()
}

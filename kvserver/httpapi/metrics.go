package httpapi

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.etcd.io/etcd/api/v3/version"
)

// Sizes are the store's sizes in bytes.
type Sizes interface {
	Size() int64
	InUse() int64
}

// Revisions are those of the store.
type Revisions interface {
	Revision() int64
	CompactedRevision() int64
}

// NewRegistry returns a registry of the member's state under etcd's own metric
// names, read at each scrape, and of the process.
func NewRegistry(r Replica, revisions Revisions, sizes Sizes) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", func() float64 {
			return truth(r.Status().Leader != 0)
		}),
		gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", func() float64 {
			return truth(r.Status().Leader == r.Member())
		}),
		gauge("etcd_server_proposals_committed_total", "The index of the newest committed log entry.", func() float64 {
			return float64(r.Status().Committed)
		}),
		gauge("etcd_server_proposals_applied_total", "The index of the newest applied log entry.", func() float64 {
			return float64(r.Status().Applied)
		}),
		gauge("etcd_mvcc_db_total_size_in_bytes", "Total size of the store on disk in bytes.", func() float64 {
			return float64(sizes.Size())
		}),
		gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the store in use in bytes.", func() float64 {
			return float64(sizes.InUse())
		}),
		gauge("etcd_debugging_mvcc_current_revision", "The current revision of the store.", func() float64 {
			return float64(revisions.Revision())
		}),
		gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction.", func() float64 {
			return float64(revisions.CompactedRevision())
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "etcd_server_version", Help: "The etcd version whose API is served, as a label; the value is 1.",
			ConstLabels: prometheus.Labels{"server_version": version.Version},
		}, func() float64 { return 1 }),
	)
	return registry
}

func gauge(name, help string, value func() float64) prometheus.GaugeFunc {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

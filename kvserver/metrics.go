package kvserver

import (
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/features"

	"muster/kvserver/metrics"
)

// memberMetrics are the collectors of the parts of a member.
type memberMetrics struct {
	registry *prometheus.Registry
	replica  *metrics.Replica
	leases   *metrics.Leases
	rpc      *metrics.RPC
	health   *metrics.Health
}

func newMetrics(c Config) *memberMetrics {
	registry := prometheus.NewRegistry()
	return &memberMetrics{
		registry: registry,
		replica:  metrics.NewReplica(registry),
		leases:   metrics.NewLeases(registry),
		rpc:      metrics.NewRPC(registry, c.ExtensiveMetrics),
		health:   metrics.NewHealth(registry),
	}
}

// registerState adds what is read at each scrape.
func (s *Server) registerState() {
	store := s.replica.Machine()
	metrics.RegisterState(s.metrics.registry, metrics.State{
		Member:  s.replica.Member(),
		Leader:  func() uint64 { return s.replica.Status().Leader },
		Learner: s.learner,
		Members: func() (ids []uint64) {
			for _, member := range store.Members() {
				ids = append(ids, member.ID)
			}
			return ids
		},
		Committed:    func() uint64 { return s.replica.Status().Committed },
		Applied:      func() uint64 { return s.replica.Status().Applied },
		LogEntries:   s.replica.LogEntries,
		Size:         store.Space().Size,
		InUse:        store.Space().InUse,
		Quota:        s.config.quota(),
		Revision:     store.Revision,
		Compacted:    store.CompactedRevision,
		AuthRevision: func() uint64 { return store.Auth().Revision() },
		Watches:      s.watches.Stats,
		Gates: map[string]bool{
			string(features.InitialCorruptCheck): s.config.InitialCorruptCheck,
			string(features.CompactHashCheck):    s.config.CompactHashCheck,
		},
	})
}

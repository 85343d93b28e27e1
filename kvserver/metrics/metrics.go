// Package metrics names what a member counts. Where the meaning is etcd's, so
// are name, type, labels and buckets: dashboards and alerts that were made for
// etcd find what they ask for. The rest is under muster_.
//
// The parts of a member hold the collectors they feed; each costs a few atomic
// operations to feed.
package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"muster/kvserver/machine"
)

// Replica is what replication counts.
type Replica struct {
	// FsyncSeconds is how long the log took to take entries in, the flush to the
	// disk included; LogBytes is how much it took.
	FsyncSeconds prometheus.Histogram
	LogBytes     prometheus.Gauge
	// CommitSeconds is how long the state machine took for what it was given at
	// once, which ends in one write to the store.
	CommitSeconds prometheus.Histogram
	SlowApplies   prometheus.Counter

	LeaderChanges     prometheus.Counter
	ProposalsPending  prometheus.Gauge
	ProposalsFailed   prometheus.Counter
	BatchRequests     prometheus.Histogram
	Forwarded         prometheus.Counter
	ReadRounds        prometheus.Counter
	SlowReads         prometheus.Counter
	FailedReads       prometheus.Counter
	HeartbeatFailures prometheus.Counter

	// SnapshotInstalls are under way; SnapshotSeconds is how long it took to
	// receive one.
	SnapshotInstalls prometheus.Gauge
	SnapshotSeconds  prometheus.Histogram

	Operations *machine.Operations
	Appends    Appends
	Peers      Peers
}

// Appends are the messages in which leaders send the log, those without entries
// included.
type Appends struct{ Sent, Received atomic.Uint64 }

// SlowRead is what a read may wait for before it is counted as slow.
const SlowRead = time.Second

// Peers is what goes between this member and each other one, whose id, in
// hexadecimal, is the label.
type Peers struct {
	Sent, Received        *prometheus.CounterVec   // bytes
	SendFailures          *prometheus.CounterVec   // requests
	RoundTrip             *prometheus.HistogramVec // seconds
	Active                *prometheus.GaugeVec     // 1 while it answers
	Disconnected          *prometheus.CounterVec
	SnapshotsSent         *prometheus.CounterVec
	SnapshotsFailed       *prometheus.CounterVec
	SnapshotsBeingSent    *prometheus.GaugeVec
	SnapshotSendSeconds   *prometheus.HistogramVec
	SnapshotsReceived     *prometheus.CounterVec
	SnapshotReceiveFailed *prometheus.CounterVec

	observer atomic.Pointer[ProbeObserver]
}

// ProbeObserver is told of every probe: how long the answer of a member took, or
// that there was none.
type ProbeObserver func(to uint64, took time.Duration, err error)

// etcd's buckets of short and of long times, in seconds.
func short() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 14) }
func long() []float64  { return prometheus.ExponentialBuckets(0.1, 2, 10) }

type factory struct{ promauto.Factory }

func (f factory) counter(name, help string) prometheus.Counter {
	return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func (f factory) count(name, help string, value func() int64) {
	f.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
}

func (f factory) gauge(name, help string) prometheus.Gauge {
	return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func (f factory) histogram(name, help string, buckets []float64) prometheus.Histogram {
	return f.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

func (f factory) counters(name, help string, labels ...string) *prometheus.CounterVec {
	return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func (f factory) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

func (f factory) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return f.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}

// NewReplica makes the collectors and registers them; nil registers nowhere.
func NewReplica(registry prometheus.Registerer) *Replica {
	f := factory{promauto.With(registry)}
	operations := &machine.Operations{}
	f.count("etcd_mvcc_put_total", "Keys put.", operations.Puts.Load)
	f.count("etcd_mvcc_delete_total", "Keys deleted.", operations.Deletes.Load)
	f.count("etcd_mvcc_range_total", "Reads of one key or of a range that this member served.", operations.Ranges.Load)
	f.count("etcd_mvcc_txn_total", "Transactions, those that only read included.", operations.Txns.Load)
	return &Replica{
		Operations:        operations,
		FsyncSeconds:      f.histogram("etcd_disk_wal_fsync_duration_seconds", "How long the raft log took to take entries in, flushed to the disk.", short()),
		LogBytes:          f.gauge("etcd_disk_wal_write_bytes_total", "Bytes that were written to the raft log."),
		CommitSeconds:     f.histogram("etcd_disk_backend_commit_duration_seconds", "How long the store took to take a batch of requests in.", short()),
		SlowApplies:       f.counter("etcd_server_slow_apply_total", "Batches of requests that took long to apply."),
		LeaderChanges:     f.counter("etcd_server_leader_changes_seen_total", "Changes of the leader that this member saw."),
		ProposalsPending:  f.gauge("etcd_server_proposals_pending", "Requests of this member's clients on their way through the raft log."),
		ProposalsFailed:   f.counter("etcd_server_proposals_failed_total", "Requests of this member's clients that got no outcome from the raft log."),
		BatchRequests:     f.histogram("muster_raft_batch_requests", "Requests in one entry of the raft log, of those that this member wrote as the leader.", prometheus.ExponentialBuckets(1, 2, 12)),
		Forwarded:         f.counter("muster_raft_forwarded_requests_total", "Requests that this member took to the leader."),
		ReadRounds:        f.counter("muster_raft_read_rounds_total", "Rounds that served the linearizable reads waiting then."),
		SlowReads:         f.counter("etcd_server_slow_read_indexes_total", "Linearizable reads that waited long for the leader's confirmation."),
		FailedReads:       f.counter("etcd_server_read_indexes_failed_total", "Linearizable reads that got no confirmation of the leader."),
		HeartbeatFailures: f.counter("etcd_server_heartbeat_send_failures_total", "Signs of life that a leader did not give because its disk hung."),
		SnapshotInstalls:  f.gauge("etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot of the leader is being installed."),
		SnapshotSeconds:   f.histogram("etcd_snap_db_save_total_duration_seconds", "How long it took to receive a snapshot of the leader.", long()),
		Peers: Peers{
			Sent:                  f.counters("etcd_network_peer_sent_bytes_total", "Bytes sent to another member.", "To"),
			Received:              f.counters("etcd_network_peer_received_bytes_total", "Bytes received from another member.", "From"),
			SendFailures:          f.counters("etcd_network_peer_sent_failures_total", "Requests that did not get through to another member.", "To"),
			RoundTrip:             f.histograms("etcd_network_peer_round_trip_time_seconds", "How long another member took to answer a probe.", prometheus.ExponentialBuckets(0.0001, 2, 16), "To"),
			Active:                f.gauges("etcd_network_active_peers", "1 while another member answers probes.", "Local", "Remote"),
			Disconnected:          f.counters("etcd_network_disconnected_peers_total", "How often another member stopped answering probes.", "Local", "Remote"),
			SnapshotsSent:         f.counters("etcd_network_snapshot_send_success", "Snapshots sent to another member.", "To"),
			SnapshotsFailed:       f.counters("etcd_network_snapshot_send_failures", "Snapshots that could not be sent to another member.", "To"),
			SnapshotsBeingSent:    f.gauges("etcd_network_snapshot_send_inflights_total", "Snapshots on their way to another member.", "To"),
			SnapshotSendSeconds:   f.histograms("etcd_network_snapshot_send_total_duration_seconds", "How long it took to send a snapshot to another member.", long(), "To"),
			SnapshotsReceived:     f.counters("etcd_network_snapshot_receive_success", "Snapshots received from another member.", "From"),
			SnapshotReceiveFailed: f.counters("etcd_network_snapshot_receive_failures", "Snapshots of another member that could not be received.", "From"),
		},
	}
}

// Leases is what the keeping of leases counts.
type Leases struct {
	Granted, Revoked prometheus.Counter
	Renewed, Expired prometheus.Counter // by this member, as the leader
	TTL              prometheus.Histogram
}

// NewLeases makes the collectors and registers them; nil registers nowhere.
func NewLeases(registry prometheus.Registerer) *Leases {
	f := factory{promauto.With(registry)}
	return &Leases{
		Granted: f.counter("etcd_debugging_lease_granted_total", "Leases granted."),
		Revoked: f.counter("etcd_debugging_lease_revoked_total", "Leases revoked, those that expired included."),
		Renewed: f.counter("etcd_debugging_lease_renewed_total", "Leases renewed by this member as the leader."),
		Expired: f.counter("etcd_debugging_server_lease_expired_total", "Leases that expired while this member led."),
		TTL:     f.histogram("etcd_debugging_lease_ttl_total", "Time to live of granted leases in seconds.", prometheus.ExponentialBuckets(1, 2, 24)),
	}
}

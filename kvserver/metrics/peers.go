package metrics

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ID is a member's id as etcd writes it.
func ID(member uint64) string { return strconv.FormatUint(member, 16) }

// Traffic returns the counters of the bytes that go to and come from a member.
func (p *Peers) Traffic(member uint64) (sent, received interface{ Add(bytes float64) }) {
	return p.Sent.WithLabelValues(ID(member)), p.Received.WithLabelValues(ID(member))
}

// Failed counts a request that did not get through to a member.
func (p *Peers) Failed(member uint64) { p.SendFailures.WithLabelValues(ID(member)).Inc() }

// SendingSnapshot counts a snapshot on its way to a member; done is called with
// what became of it.
func (p *Peers) SendingSnapshot(member uint64) (done func(error)) {
	to, began := ID(member), time.Now()
	p.SnapshotsBeingSent.WithLabelValues(to).Inc()
	return func(err error) {
		p.SnapshotsBeingSent.WithLabelValues(to).Dec()
		if err != nil {
			p.SnapshotsFailed.WithLabelValues(to).Inc()
			return
		}
		p.SnapshotsSent.WithLabelValues(to).Inc()
		p.SnapshotSendSeconds.WithLabelValues(to).Observe(time.Since(began).Seconds())
	}
}

// ObserveProbes has fn told of every probe, in place of any other observer; nil
// ends it.
func (p *Peers) ObserveProbes(fn ProbeObserver) { p.observer.Store(&fn) }

// Probed records what a probe from a member to another one told: how long the
// answer took, or that there was none.
// Before is whether it answered the probe before.
func (p *Peers) Probed(from, to uint64, took time.Duration, err error, before bool) {
	if observe := p.observer.Load(); observe != nil && *observe != nil {
		(*observe)(to, took, err)
	}
	active := p.Active.WithLabelValues(ID(from), ID(to))
	p.SendFailures.WithLabelValues(ID(to)) // known from the beginning: alerts compare rates
	if err == nil {
		p.RoundTrip.WithLabelValues(ID(to)).Observe(took.Seconds())
		active.Set(1)
		return
	}
	p.Failed(to)
	if before {
		p.Disconnected.WithLabelValues(ID(from), ID(to)).Inc()
	}
	active.Set(0)
}

// Forget removes what was counted about a member that is one no more.
func (p *Peers) Forget(from, to uint64) {
	for _, each := range []*prometheus.MetricVec{p.Sent.MetricVec, p.SendFailures.MetricVec, p.RoundTrip.MetricVec, p.SnapshotsBeingSent.MetricVec} {
		each.DeleteLabelValues(ID(to))
	}
	p.Received.DeleteLabelValues(ID(to))
	p.Active.DeleteLabelValues(ID(from), ID(to))
}

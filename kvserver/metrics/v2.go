package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// V2 is what the serving of version 2's keys counts, by HTTP method; a read that
// waits for a quorum is QGET.
type V2 struct {
	received *prometheus.CounterVec
	failed   *prometheus.CounterVec // by the status code, too
	seconds  *prometheus.HistogramVec
}

// NewV2 makes the collectors and registers them; nil registers nowhere.
func NewV2(registry prometheus.Registerer) *V2 {
	f := factory{promauto.With(registry)}
	return &V2{
		received: f.counters("etcd_http_received_total", "Requests of version 2 for keys that were understood and permitted, without watches.", "method"),
		failed:   f.counters("etcd_http_failed_total", "Requests of version 2 for keys that failed.", "method", "code"),
		seconds:  f.histograms("etcd_http_successful_duration_seconds", "How long requests of version 2 for keys took that succeeded, without watches.", prometheus.ExponentialBuckets(0.0005, 2, 13), "method"),
	}
}

// Received counts a request.
func (v *V2) Received(method string) { v.received.WithLabelValues(method).Inc() }

// Succeeded counts how long a request took.
func (v *V2) Succeeded(method string, took time.Duration) {
	v.seconds.WithLabelValues(method).Observe(took.Seconds())
}

// Failed counts a request that was answered with a status code.
func (v *V2) Failed(method, code string) { v.failed.WithLabelValues(method, code).Inc() }

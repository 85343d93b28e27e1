//go:build lab

package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// writer writes one key after the other, each once, and remembers which were
// acknowledged. What fails is not repeated: its outcome is unknown.
type writer struct {
	t       *testing.T
	h       *hosts
	cancel  context.CancelFunc
	stopped chan struct{}

	mu    sync.Mutex
	acked []int // numbers of keys
	gap   time.Duration
	last  time.Time // of the last acknowledgement
	since int       // acknowledged when the step began
}

// writeTimeout is how long a write may take before the next one is tried.
const writeTimeout = time.Second

func startWriter(t *testing.T, h *hosts) *writer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{t: t, h: h, cancel: cancel, stopped: make(chan struct{}), last: time.Now()}
	t.Cleanup(w.stop)
	go w.run(ctx)
	return w
}

// client has the certificates as they are now: they change in a cluster's life.
func (w *writer) client() (*clientv3.Client, error) {
	pki := filepath.Join(w.h.state, "pki")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "healthcheck-client.crt"), filepath.Join(pki, "healthcheck-client.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	var endpoints []string
	for i := range w.h.names {
		endpoints = append(endpoints, w.h.endpoint(i))
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, Logger: zap.NewNop(),
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12},
	})
}

func (w *writer) run(ctx context.Context) {
	defer close(w.stopped)
	var client *clientv3.Client
	defer func() {
		if client != nil {
			_ = client.Close()
		}
	}()
	for n := 1; ctx.Err() == nil; n++ {
		var err error
		if client == nil {
			if client, err = w.client(); err != nil {
				client = nil
				<-time.After(10 * time.Millisecond) // the certificates are being replaced
				continue
			}
		}
		attempt, cancel := context.WithTimeout(ctx, writeTimeout)
		_, err = client.Put(attempt, key(n), "written")
		cancel()
		if err != nil {
			_ = client.Close()
			client = nil
			continue
		}
		w.mu.Lock()
		now := time.Now()
		w.gap = max(w.gap, now.Sub(w.last))
		w.last = now
		w.acked = append(w.acked, n)
		w.mu.Unlock()
	}
}

// begin begins a step.
func (w *writer) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gap, w.since, w.last = 0, len(w.acked), time.Now()
}

// end returns the longest time without an acknowledged write since the step
// began, and how many there were.
func (w *writer) end() (gap time.Duration, writes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.gap, time.Since(w.last)), len(w.acked) - w.since
}

func (w *writer) stop() {
	w.cancel()
	<-w.stopped
}

// acknowledged are the keys whose writes were.
func (w *writer) acknowledged() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked
}

// missing are those of the keys that the cluster does not have.
func (w *writer) missing(numbers []int) []string {
	w.t.Helper()
	client, err := w.client()
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := client.Get(ctx, "life/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		w.t.Fatal(err)
	}
	have := map[string]bool{}
	for _, kv := range answer.Kvs {
		have[string(kv.Key)] = true
	}
	var missing []string
	for _, n := range numbers {
		if !have[key(n)] {
			missing = append(missing, key(n))
		}
	}
	return missing
}

// check fails the test when an acknowledged write is lost.
func (w *writer) check(when string, numbers []int) {
	w.t.Helper()
	if len(numbers) == 0 {
		w.t.Errorf("%s: no write was acknowledged", when)
	}
	if missing := w.missing(numbers); len(missing) > 0 {
		w.t.Errorf("%s: %d of %d acknowledged writes are lost, the first is %s", when, len(missing), len(numbers), missing[0])
	} else {
		w.t.Logf("%s: all %d acknowledged writes are there", when, len(numbers))
	}
}

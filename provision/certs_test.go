package provision

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/step"
)

// writer writes all the time, over a connection that stays and over one made
// for each write, as an operator's clients would that read the PKI directory.
type writer struct {
	t       *testing.T
	cluster *inventory.Cluster
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu           sync.Mutex
	acknowledged []string
	untrusted    []error        // failures that have to do with certificates
	failed       map[string]int // the texts of all failures
	longest      time.Duration
}

func (l *lab) startWriter() *writer {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{t: l.t, cluster: l.cluster, cancel: cancel, failed: map[string]int{}}
	w.done.Go(func() { w.write(ctx, "steady", false) })
	w.done.Go(func() { w.write(ctx, "fresh", true) })
	l.t.Cleanup(func() { cancel(); w.done.Wait() })
	w.await(1)
	return w
}

// config trusts and shows what the directory holds at each handshake.
func (w *writer) config() *tls.Config {
	dir := w.cluster.PKI.Dir
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // done below, with the bundle of that moment
		VerifyConnection: func(state tls.ConnectionState) error {
			ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
			if err != nil {
				return err
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(ca)
			_, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1"})
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			for range 100 { // the two files may be from before and after a change
				pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "apiserver-etcd-client.crt"), filepath.Join(dir, "apiserver-etcd-client.key"))
				if err == nil {
					return &pair, nil
				}
				<-time.After(5 * time.Millisecond)
			}
			return nil, errors.New("the client's certificate and key never belonged together")
		},
	}
}

func (w *writer) connect() (*clientv3.Client, error) {
	var endpoints []string
	for _, h := range w.cluster.Hosts {
		endpoints = append(endpoints, h.ClientURL())
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: w.config(), Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
}

func (w *writer) write(ctx context.Context, name string, fresh bool) {
	var client *clientv3.Client
	last := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		var err error
		if client == nil {
			if client, err = w.connect(); err != nil {
				w.t.Errorf("make a client: %v", err)
				return
			}
		}
		key := fmt.Sprintf("writer/%s/%06d", name, i)
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err = client.Put(call, key, "x")
		cancel()
		w.mu.Lock()
		switch {
		case err == nil:
			w.acknowledged = append(w.acknowledged, key)
			w.longest = max(w.longest, time.Since(last))
			last = time.Now()
		case ctx.Err() == nil:
			w.failed[err.Error()]++
		}
		if err != nil && (strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: ")) {
			w.untrusted = append(w.untrusted, err)
		}
		w.mu.Unlock()
		if fresh || err != nil {
			_ = client.Close()
			client = nil
		}
	}
	if client != nil {
		_ = client.Close()
	}
}

// await waits until each of the two has written n more keys.
func (w *writer) await(n int) {
	w.t.Helper()
	count := func() map[string]int {
		w.mu.Lock()
		defer w.mu.Unlock()
		counts := map[string]int{}
		for _, key := range w.acknowledged {
			counts[strings.Split(key, "/")[1]]++
		}
		return counts
	}
	before, deadline := count(), time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		now := count()
		if now["steady"]-before["steady"] >= n && now["fresh"]-before["fresh"] >= n {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	w.t.Fatalf("the writers do not get on: %v, then %v", before, count())
}

// stop ends the writing and demands that nothing acknowledged is lost and that
// no handshake has failed.
func (w *writer) stop() {
	w.t.Helper()
	w.await(3)
	w.cancel()
	w.done.Wait()
	client, err := w.connect()
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // nothing is lost
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	response, err := client.Get(ctx, "writer/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		w.t.Fatal(err)
	}
	held := map[string]bool{}
	for _, kv := range response.Kvs {
		held[string(kv.Key)] = true
	}
	for _, key := range w.acknowledged {
		if !held[key] {
			w.t.Errorf("%s was acknowledged and is lost", key)
		}
	}
	if len(w.untrusted) > 0 {
		w.t.Errorf("%d writes failed over certificates, the first one: %v", len(w.untrusted), w.untrusted[0])
	}
	w.t.Logf("%d writes acknowledged, longest gap of one writer %v, failures %v", len(w.acknowledged), w.longest.Round(time.Millisecond), w.failed)
}

// processes are the members' processes, to see that none was restarted.
func (l *lab) processes() []string {
	l.t.Helper()
	var all []string
	for i := range l.hosts {
		all = append(all, l.sh(i, "systemctl show -p MainPID -p NRestarts musterd"))
	}
	return all
}

// served is the certificate that a port shows right now.
func (l *lab) served(url string) *x509.Certificate {
	l.t.Helper()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // only looked at
	conn, err := dialer.DialContext(l.context(), "tcp", strings.TrimPrefix(url, "https://"))
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
}

func (l *lab) rotate(until pki.Phase) *CertificateReport {
	l.t.Helper()
	l.events.reset()
	report, err := RotateCA(l.context(), l.cluster, l.opts, until)
	if err != nil {
		l.fatal(err)
	}
	return report
}

func (l *lab) mustChangeNothing() {
	l.t.Helper()
	if n := l.mustApply().Changes; n != 0 {
		l.t.Errorf("apply afterwards makes %d changes: %q", n, l.events.texts(step.Changed))
	}
}

// Certificates are renewed and the CA is replaced while clients write, and no
// member is restarted for it.
func TestCertificatesForLife(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	processes := l.processes()
	w := l.startWriter()
	l.renewed()
	l.rotated(w)
	w.stop()
	if now := l.processes(); !slices.Equal(now, processes) {
		t.Errorf("members were restarted: %q, then %q", processes, now)
	}
	l.mustChangeNothing()
}

// rotated replaces the CA in its phases, with a stop after each.
func (l *lab) rotated(w *writer) {
	t := l.t
	t.Helper()
	before, err := os.ReadFile(filepath.Join(l.cluster.PKI.Dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, phase := range []pki.Phase{pki.Trusting, pki.Issuing, pki.Dropping} {
		if report := l.rotate(phase); report.Phase != phase || !report.Status.Healthy {
			t.Errorf("after %s: %+v", phase, report)
		}
		w.await(3)
		l.mustChangeNothing()
	}
	if report := l.rotate(""); report.Phase != pki.Settled {
		t.Errorf("in the end: %+v", report)
	}
	after, err := os.ReadFile(filepath.Join(l.cluster.PKI.Dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range l.cluster.Hosts {
		for _, url := range []string{h.ClientURL(), h.PeerURL()} {
			if pool := poolOf(after); !signedBy(l.served(url), pool) {
				t.Errorf("%s serves a certificate of another CA", url)
			}
		}
		if got := l.sh(i, "cat /etc/muster/pki/ca.crt"); got != string(after) || strings.Contains(got, string(before)) {
			t.Errorf("%s trusts\n%s", h.Name, got)
		}
	}
}

func poolOf(bundle []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	return pool
}

func signedBy(cert *x509.Certificate, pool *x509.CertPool) bool {
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool})
	return err == nil
}

// renewed makes leaves anew: they are served at once.
func (l *lab) renewed() {
	t := l.t
	t.Helper()
	serials := func() []string {
		var all []string
		for _, h := range l.cluster.Hosts {
			all = append(all, l.served(h.ClientURL()).SerialNumber.String(), l.served(h.PeerURL()).SerialNumber.String())
		}
		return all
	}
	renew := func(which Renewal) int {
		t.Helper()
		l.events.reset()
		report, err := RenewCertificates(l.context(), l.cluster, l.opts, which)
		if err != nil {
			l.fatal(err)
		}
		return report.Changes
	}
	before := serials()
	if n := renew(Renewal{}); n != 0 || !slices.Equal(serials(), before) {
		t.Errorf("%d changes when nothing is due", n)
	}
	if n := renew(Renewal{Within: 300 * 24 * time.Hour}); n != 0 {
		t.Errorf("%d changes when nothing expires within 300 days", n)
	}
	renew(Renewal{All: true, Host: "controller-1"})
	one := serials()
	for i := range one {
		if (one[i] != before[i]) != (i/2 == 1) {
			t.Errorf("renewing controller-1: endpoint %d serves %s, before %s", i, one[i], before[i])
		}
	}
	renew(Renewal{Within: 400 * 24 * time.Hour})
	for i, serial := range serials() {
		if serial == one[i] {
			t.Errorf("endpoint %d still serves %s", i, serial)
		}
	}
	l.mustChangeNothing()
}

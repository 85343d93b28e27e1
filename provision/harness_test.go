package provision

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"muster/provision/inventory"
	"muster/provision/practice"
	"muster/provision/remote"
	"muster/provision/step"
)

// binaries is a directory with the programs to install, the same ones for all
// tests whatever happens to the source meanwhile.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "muster-programs-")
	if err != nil {
		return "", err
	}
	binariesMade.Store(dir)
	p := newPrograms(Options{Reporter: nobody{}})
	for _, name := range []string{"musterd", "musterctl"} {
		payload, err := p.Find(context.Background(), name, "", runtime.GOARCH)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), payload.Content(), 0o700); err != nil { //nolint:gosec // it is a program
			return "", err
		}
	}
	return dir, nil
})

// binariesMade is what TestMain has to remove.
var binariesMade atomic.Value

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, ok := binariesMade.Load().(string); ok {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// lab is an inventory, the practice hosts in it, and a workstation.
type lab struct {
	t       *testing.T
	dir     string
	hosts   []*practice.Host
	key     ssh.PublicKey
	cluster *inventory.Cluster
	events  *recorder
	opts    Options
}

// newLab starts n practice hosts. What adjust changes in a host's options
// holds for that host.
func newLab(t *testing.T, n int, adjust ...func(i int, o *practice.HostOptions)) *lab {
	t.Helper()
	programs, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: t.TempDir(), events: &recorder{t: t}}
	l.makeKey()
	for i := range n {
		o := practice.HostOptions{Name: fmt.Sprintf("controller-%d", i), Dir: filepath.Join(l.dir, fmt.Sprintf("host-%d", i)), AuthorizedKey: l.key}
		for _, f := range adjust {
			f(i, &o)
		}
		h, err := practice.StartHost(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() })
		l.hosts = append(l.hosts, h)
	}
	l.opts = Options{
		SSH:          remote.Options{SSHDir: filepath.Join(l.dir, ".ssh"), ConfigFiles: []string{}, AgentSocket: "none", RetryFor: 2 * time.Second},
		BinaryDir:    programs,
		ReadyTimeout: 30 * time.Second,
		Reporter:     l.events,
	}
	l.load("")
	return l
}

func (l *lab) makeKey() {
	l.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		l.t.Fatal(err)
	}
	l.key = signer.PublicKey()
	block, err := ssh.MarshalPrivateKey(private, "test")
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "id"), pem.EncodeToMemory(block), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// load makes the inventory of all hosts, with further YAML at the top level.
func (l *lab) load(extra string) {
	l.t.Helper()
	l.loadHosts(extra, l.hosts...)
}

func (l *lab) loadHosts(extra string, hosts ...*practice.Host) {
	l.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "cluster: test\n%sssh:\n  user: root\n  identityFile: %s\ncontrollers:\n", extra, filepath.Join(l.dir, "id"))
	for _, h := range hosts {
		p := h.Ports()
		fmt.Fprintf(&b, "  - name: %s\n    address: 127.0.0.1\n    ssh: {port: %d, hostKey: %q}\n    server: {clientPort: %d, peerPort: %d, metricsPort: %d}\n",
			h.Name(), p.SSH, h.Fingerprint(), p.Client, p.Peer, p.Metrics)
	}
	l.loadText(b.String())
}

func (l *lab) loadText(text string) {
	l.t.Helper()
	cluster, _, err := inventory.Load(filepath.Join(l.dir, "inventory.yaml"), strings.NewReader(text), inventory.AllowLoopback())
	if err != nil {
		l.t.Fatalf("%v\n%s", err, text)
	}
	l.cluster = cluster
}

func (l *lab) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	l.t.Cleanup(cancel)
	return ctx
}

func (l *lab) apply() (*Report, error) {
	l.t.Helper()
	l.events.reset()
	begun := time.Now()
	report, err := Apply(l.context(), l.cluster, l.opts)
	l.t.Logf("apply took %v: %v", time.Since(begun).Round(time.Millisecond), err)
	return report, err
}

// mustApply applies and demands a verified cluster.
func (l *lab) mustApply() *Report {
	l.t.Helper()
	report, err := l.apply()
	if err != nil {
		l.fatal(err)
	}
	if !report.Status.Healthy || len(report.Status.Members) != len(l.cluster.Hosts) {
		l.t.Fatalf("status after apply: %+v", report.Status)
	}
	return report
}

func (l *lab) fatal(err error) {
	l.t.Helper()
	if f, ok := err.(*Failure); ok { //nolint:errorlint // the outermost one
		l.t.Fatalf("%v\n%s", err, f.Details())
	}
	l.t.Fatal(err)
}

// recorder keeps the events of a run.
type recorder struct {
	t      *testing.T
	mu     sync.Mutex
	events []step.Event
}

func (r *recorder) Report(e step.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if testing.Verbose() {
		r.t.Logf("%s %-8s %-12s %-12s %s", e.Time.Format("05.000"), e.Kind, e.Step, e.Host, e.Text)
	}
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

func (r *recorder) all() []step.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// texts are the texts of one kind of event.
func (r *recorder) texts(kind step.Kind) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, e := range r.events {
		if e.Kind == kind {
			out = append(out, e.Host+": "+e.Text)
		}
	}
	return out
}

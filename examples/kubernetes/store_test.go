package kubernetes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// store is a cluster of three members on practice hosts, installed as its users
// do it: practice hosts, muster apply, muster certs export.
type store struct {
	t         *testing.T
	name      string // musterd or etcd
	dir       string
	inventory string
	endpoints []string
	client    *clientv3.Client
	// flags are those of kube-apiserver that say where the store is.
	flags []string
}

// startStore installs a cluster with the server of that name.
func startStore(t *testing.T, name string) *store {
	t.Helper()
	s := &store{t: t, name: name, dir: t.TempDir()}
	hosts := filepath.Join(s.dir, "hosts")
	s.inventory = filepath.Join(hosts, "inventory.yaml")
	start(t, exec.Command(filepath.Join(programs, "muster"), "practice", "--dir", hosts, "--hosts", "3"), filepath.Join(s.dir, "practice.log"), syscall.SIGINT)
	eventually(t, time.Minute, "the inventory of the practice hosts", func() error {
		_, err := os.Stat(s.inventory)
		return err
	})
	if name == "etcd" {
		text, err := os.ReadFile(s.inventory)
		if err != nil {
			t.Fatal(err)
		}
		server := fmt.Sprintf("\nserver:\n  binary: %s\n", filepath.Join(programs, "etcd"))
		if err := os.WriteFile(s.inventory, append(text, server...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.muster("apply", "--yes", "--binary-dir", programs)
	s.muster("certs", "export", "--for", "kube-apiserver", s.path("pki"))
	for _, line := range strings.Split(s.muster("kubeadm", "config"), "\n") {
		if _, url, ok := strings.Cut(line, "- "); ok {
			s.endpoints = append(s.endpoints, url)
		}
	}
	if len(s.endpoints) != 3 {
		t.Fatalf("muster kubeadm config names the endpoints %v, want 3", s.endpoints)
	}
	s.client = newClient(t, s.path("pki"), s.endpoints)
	s.flags = []string{
		"--etcd-servers=" + strings.Join(s.endpoints, ","),
		"--etcd-cafile=" + s.path("pki/ca.crt"),
		"--etcd-certfile=" + s.path("pki/apiserver-etcd-client.crt"),
		"--etcd-keyfile=" + s.path("pki/apiserver-etcd-client.key"),
	}
	return s
}

// newClient is a client of a cluster with a directory of certificates.
func newClient(t *testing.T, pki string, endpoints []string) *clientv3.Client {
	t.Helper()
	tls, err := transport.TLSInfo{
		CertFile: filepath.Join(pki, "apiserver-etcd-client.crt"), KeyFile: filepath.Join(pki, "apiserver-etcd-client.key"), TrustedCAFile: filepath.Join(pki, "ca.crt"),
	}.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: tls, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// muster runs the installer on the cluster and returns what it prints.
func (s *store) muster(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "muster"), append([]string{"-f", s.inventory}, args...)...)
	var diagnostics strings.Builder
	cmd.Stderr = &diagnostics
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("muster %s: %v\n%s%s", strings.Join(args, " "), err, out, diagnostics.String())
	}
	return string(out)
}

// systemctl starts, stops or restarts the member of a host.
func (s *store) systemctl(verb string, host int) error {
	name := fmt.Sprintf("controller-%d", host)
	out, err := exec.Command(filepath.Join(programs, "muster"), "-f", s.inventory, "exec", name, "--", "systemctl", verb, "musterd").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s the member of %s: %w: %s", verb, name, err, out)
	}
	return nil
}

// leader is the number of the host whose member leads. Every member is asked,
// but for that of one host, unless that is -1.
func (s *store) leader(ctx context.Context, but int) (int, error) {
	leader := -1
	for i, endpoint := range s.endpoints {
		if i == but {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		status, err := s.client.Status(call, endpoint)
		cancel()
		if err != nil {
			return 0, err
		}
		if status.Leader == status.Header.MemberId {
			leader = i
		}
	}
	if leader < 0 {
		return 0, errors.New("nobody leads")
	}
	return leader, nil
}

// keys returns every key, in order.
func (s *store) keys() []string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	got, err := s.client.Get(ctx, "/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		s.t.Fatal(err)
	}
	var keys []string
	for _, kv := range got.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// start starts a program that runs until the test ends, its output in a file.
func start(t *testing.T, cmd *exec.Cmd, log string, end os.Signal) *process {
	t.Helper()
	file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, log: log, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		file.Close()
		close(p.ended)
	}()
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(end)
		select {
		case <-p.ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-p.ended
		}
	})
	t.Cleanup(p.stop)
	return p
}

type process struct {
	cmd   *exec.Cmd
	log   string
	err   error
	ended chan struct{}
	stop  func()
}

// tail is the end of what the program has said.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

var (
	logError = regexp.MustCompile(`^E\d{4} [\d:.]+ +\d+ ([^\]]+)\] (.*)$`)
	volatile = regexp.MustCompile(`0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\d+`)
)

// span is a part of a log, from one size of the file to another.
type span struct{ from, to int64 }

// logErrors counts the errors in a log by what they say, numbers aside, outside
// of some parts.
func logErrors(t *testing.T, log string, without []span) map[string]int {
	t.Helper()
	file, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	found, at := map[string]int{}, int64(0)
	for r := bufio.NewReader(file); ; {
		line, err := r.ReadString('\n')
		m := logError.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m != nil && !slices.ContainsFunc(without, func(s span) bool { return s.from <= at && at < s.to }) {
			found[volatile.ReplaceAllString(m[1]+" "+m[2], "N")]++
		}
		if at += int64(len(line)); err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// eventually polls until check holds.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	poll(t, 50*time.Millisecond, limit, what, check)
}

func poll(t *testing.T, interval, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		<-tick.C
	}
}

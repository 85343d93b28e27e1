package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"muster/pki"
	"muster/provision/found"
	"muster/provision/member"
	"muster/provision/practice"
	"muster/provision/practice/oldetcd"
	"muster/provision/snapshot"
)

// practiceCluster is hosts for one test.
func practiceCluster(t *testing.T) *practice.Cluster {
	t.Helper()
	return practiceClusterOf(t, practice.ClusterOptions{})
}

func practiceClusterOf(t *testing.T, opts practice.ClusterOptions) *practice.Cluster {
	t.Helper()
	opts.Dir, opts.Hosts = t.TempDir(), 3
	c, err := practice.StartCluster(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// load writes numbered keys through any member of a cluster, until it is
// stopped.
type load struct {
	client       *clientv3.Client
	stop, ended  chan struct{}
	acknowledged atomic.Int64 // keys 0 to this, exclusive
}

func startLoad(t *testing.T, c *practice.Cluster, ca []byte, pair pki.Pair) *load {
	t.Helper()
	config, err := member.TLS(ca, pair)
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []string
	for _, h := range c.Hosts {
		endpoints = append(endpoints, fmt.Sprintf("https://%s:%d", h.Address(), h.Ports().Client))
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: config, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	l := &load{client: client, stop: make(chan struct{}), ended: make(chan struct{})}
	go l.run()
	for deadline := time.Now().Add(time.Minute); l.acknowledged.Load() < 10; {
		if time.Now().After(deadline) {
			t.Fatal("nothing was written")
		}
	}
	return l
}

func (l *load) run() {
	defer close(l.ended)
	for n := int64(0); ; {
		select {
		case <-l.stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := l.client.Put(ctx, fmt.Sprintf("load/%08d", n), fmt.Sprint(n))
		cancel()
		if err == nil { // else perhaps written, perhaps not: the same again
			n++
			l.acknowledged.Store(n)
		}
	}
}

// mustHaveAll ends the load and demands every acknowledged key.
func (l *load) mustHaveAll(t *testing.T) {
	t.Helper()
	close(l.stop)
	<-l.ended
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got, err := l.client.Get(ctx, "load/", clientv3.WithPrefix())
	for err != nil && ctx.Err() == nil { // its connection may be one of before
		got, err = l.client.Get(ctx, "load/", clientv3.WithPrefix())
	}
	if err != nil {
		t.Fatal(err)
	}
	want := l.acknowledged.Load()
	if got.Count < want {
		t.Fatalf("%d of %d acknowledged writes are there", got.Count, want)
	}
	for n, kv := range got.Kvs[:want] {
		if string(kv.Key) != fmt.Sprintf("load/%08d", n) || string(kv.Value) != fmt.Sprint(n) {
			t.Fatalf("write %d reads %s=%s", n, kv.Key, kv.Value)
		}
	}
	t.Logf("all of %d acknowledged writes are there", want)
}

// loadOf is load with the certificates of a cluster that muster runs.
func loadOf(t *testing.T, c *practice.Cluster) *load {
	t.Helper()
	dir := filepath.Join(filepath.Dir(c.Inventory), "practice-pki")
	var files [3][]byte
	for i, name := range []string{"ca.crt", "apiserver-etcd-client.crt", "apiserver-etcd-client.key"} {
		var err error
		if files[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return startLoad(t, c, files[0], pki.Pair{Cert: files[1], Key: files[2]})
}

// killSomewhere kills a run at a random moment among so many events, from the
// first on, and says how many to expect the next time.
func (w *workstation) killSomewhere(t *testing.T, random *rand.Rand, first, total int, args ...string) int {
	t.Helper()
	seen, last, killed := w.killRun(t, first+random.IntN(total-first), time.Duration(random.Int64N(int64(momentAfter))), args...)
	t.Logf("%s killed=%t after %.120s", args[0], killed, last)
	if killed {
		return total
	}
	return seen
}

// mustRest demands that apply has nothing left to do.
func (w *workstation) mustRest(t *testing.T, file string) {
	t.Helper()
	if result := w.mustApply(t, file); result.Changes != 0 || len(result.Status.Members) != 3 {
		t.Errorf("%d changes were left: %+v", result.Changes, result.Status)
	}
}

// killedReplacing kills replacements of a host whose data is gone.
func (w *workstation) killedReplacing(t *testing.T) {
	random := w.random(t)
	c := practiceCluster(t)
	w.mustApply(t, c.Inventory)
	l := loadOf(t, c)
	total := 120
	for i := range (*kills + 29) / 30 {
		h := c.Hosts[(i+1)%3]
		if out, status := h.Console(t.Context(), "systemctl stop musterd.service && rm -rf /var/lib/muster"); status != 0 {
			t.Fatal(out)
		}
		replace := []string{"replace", h.Name(), "--yes", "-f", c.Inventory, "--binary-dir", w.programs}
		total = w.killSomewhere(t, random, 0, total, replace...)
		// Where the new member had come up already, apply finishes the rest.
		if out, err := w.command(replace...).CombinedOutput(); err != nil && !strings.Contains(string(out), "answers") {
			t.Fatalf("%v\n%s", err, out)
		}
		w.mustApply(t, c.Inventory)
		w.mustRest(t, c.Inventory)
	}
	l.mustHaveAll(t)
}

// killedUpgrading kills applies that bring another server program.
func (w *workstation) killedUpgrading(t *testing.T) {
	random := w.random(t)
	c := practiceCluster(t)
	w.mustApply(t, c.Inventory)
	l := loadOf(t, c)
	total := 100
	for i := range (*kills + 29) / 30 {
		next := w.nextPrograms(t, i)
		total = next.killSomewhere(t, random, 0, total, "apply", "--yes", "-f", c.Inventory, "--binary-dir", next.programs)
		next.mustApply(t, c.Inventory)
		next.mustRest(t, c.Inventory)
	}
	l.mustHaveAll(t)
}

// nextPrograms is a workstation with another server program.
func (w *workstation) nextPrograms(t *testing.T, build int) *workstation {
	t.Helper()
	server, err := os.ReadFile(filepath.Join(w.programs, "musterd"))
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := filepath.Abs(filepath.Join(w.programs, "musterctl"))
	if err != nil {
		t.Fatal(err)
	}
	next := &workstation{home: w.home, muster: w.muster, programs: t.TempDir()}
	// What follows the last section of a program has no effect on it.
	if err := os.WriteFile(filepath.Join(next.programs, "musterd"), fmt.Appendf(server, "build %d", build), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	if err := os.Symlink(ctl, filepath.Join(next.programs, "musterctl")); err != nil {
		t.Fatal(err)
	}
	return next
}

// killedBackingUp kills backups. What is in the directory under a snapshot's
// name is a whole one.
func (w *workstation) killedBackingUp(t *testing.T) {
	random := w.random(t)
	c := practiceCluster(t)
	w.mustApply(t, c.Inventory)
	l := loadOf(t, c)
	dir := filepath.Join(t.TempDir(), "saved")
	backup := []string{"backup", dir, "--keep", "3", "-f", c.Inventory}
	total := 10
	for range (*kills + 9) / 10 {
		total = w.killSomewhere(t, random, 0, max(total, 1), backup...)
	}
	w.run(t, backup...)
	found, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(found) == 0 || len(found) > 3 {
		t.Errorf("%q, %v", found, err)
	}
	for _, path := range found {
		if _, err := snapshot.Check(t.Context(), path); err != nil {
			t.Error(err)
		}
	}
	w.mustRest(t, c.Inventory)
	l.mustHaveAll(t)
}

// killedAdopting kills adoptions of etcds that etcdadm has installed, which stay
// etcd or become musterd in turn.
func (w *workstation) killedAdopting(t *testing.T) {
	random := w.random(t)
	program := w.etcd(t)
	// The first half installs what nobody uses yet.
	totals := map[bool]int{true: 160, false: 240}
	turn := random.IntN(2)
	for i := range (*kills + 29) / 30 {
		inPlace := (i+turn)%2 == 1
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			c := practiceCluster(t)
			old := oldetcd.Cluster{Installer: found.Etcdadm, Hosts: c.Hosts, Program: program, PKI: filepath.Join(t.TempDir(), "pki")}
			bundle, err := old.Install(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l := startLoad(t, c, bundle.CA, bundle.APIServerEtcdClient)
			if inPlace {
				text, err := os.ReadFile(c.Inventory)
				if err == nil {
					err = os.WriteFile(c.Inventory, fmt.Appendf(text, "server: {binary: %s, dataDir: /var/lib/etcd}\n", program), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			adopt := []string{"adopt", "--yes", "-f", c.Inventory, "--binary-dir", w.programs}
			totals[inPlace] = w.killSomewhere(t, random, totals[inPlace]/2, totals[inPlace], adopt...)
			w.run(t, adopt...)
			w.mustRest(t, c.Inventory)
			l.mustHaveAll(t)
		})
	}
}

// killedStacked kills applies that found a stacked cluster, bring its members
// another server and change their manifests.
func (w *workstation) killedStacked(t *testing.T) {
	random := w.random(t)
	c := practiceClusterOf(t, practice.ClusterOptions{Stacked: true})
	total := 150
	apply := func(w *workstation) []string {
		return []string{"apply", "--yes", "-f", c.Inventory, "--binary-dir", w.programs}
	}
	total = w.killSomewhere(t, random, 0, total, apply(w)...)
	w.mustApply(t, c.Inventory)
	l := loadOf(t, c)
	inventory, err := os.ReadFile(c.Inventory)
	if err != nil {
		t.Fatal(err)
	}
	for i := range (*kills + 19) / 20 {
		next := w
		if i%2 == 0 {
			next = w.nextPrograms(t, i)
		} else if err := os.WriteFile(c.Inventory, fmt.Appendf(bytes.Clone(inventory), "server: {flags: {heartbeat-interval: %d}}\n", 100+i), 0o600); err != nil {
			t.Fatal(err)
		}
		total = next.killSomewhere(t, random, 0, total, apply(next)...)
		next.mustApply(t, c.Inventory)
		next.mustRest(t, c.Inventory)
	}
	l.mustHaveAll(t)
}

// killedAdoptingPods kills adoptions of kubeadm's etcds, and runs that give them
// back.
func (w *workstation) killedAdoptingPods(t *testing.T) {
	random := w.random(t)
	c := practiceClusterOf(t, practice.ClusterOptions{Stacked: true})
	old := oldetcd.Cluster{Installer: found.Kubeadm, Hosts: c.Hosts, Program: w.etcd(t), PKI: filepath.Join(t.TempDir(), "pki")}
	bundle, err := old.Install(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, c, bundle.CA, bundle.APIServerEtcdClient)
	adopt := []string{"adopt", "--yes", "-f", c.Inventory, "--binary-dir", w.programs}
	undo := append(adopt, "--undo")
	totals := map[bool]int{true: 100, false: 200}
	adopted := false
	for range (*kills + 19) / 20 {
		args := adopt
		if adopted {
			args = undo
		}
		totals[adopted] = w.killSomewhere(t, random, totals[adopted]/3, totals[adopted], args...)
		if !adopted && random.IntN(3) == 0 {
			w.run(t, undo...)
			continue
		}
		w.run(t, args...)
		if adopted = !adopted; adopted {
			w.mustRest(t, c.Inventory)
		}
	}
	l.mustHaveAll(t)
}

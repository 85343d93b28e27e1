package provision

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"muster/pki"
	"muster/provision/found"
	"muster/provision/member"
	"muster/provision/practice"
	"muster/provision/practice/oldetcd"
	"muster/provision/step"
)

var adopted = flag.Int("adopted", 1, "how many members the etcds have that are taken over; with 3, those of every installer in both ways, which takes two minutes")

// installers are those whose etcds are taken over in one way. What is tested
// elsewhere in any case is left out of a short run.
func installers(short found.Installer) []found.Installer {
	if *adopted < 3 {
		return []found.Installer{short}
	}
	return []found.Installer{found.Kubeadm, found.Etcdadm, found.Kubespray}
}

// etcdBinary is etcd's own server, made once.
var etcdBinary = sync.OnceValues(func() (string, error) {
	dir, err := binaries()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "etcd")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "go.etcd.io/etcd/server/v3")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build etcd: %w\n%s", err, out)
	}
	return path, nil
})

// adoption is a lab whose hosts have an etcd of somebody else's.
type adoption struct {
	*lab
	old     oldetcd.Cluster
	bundle  pki.Bundle
	clients []*clientv3.Client // with the old certificates
}

func newAdoption(t *testing.T, installer found.Installer, members int, adjust ...func(*oldetcd.Cluster)) *adoption {
	t.Helper()
	program := buildEtcd(t)
	l := newLab(t, members, func(_ int, o *practice.HostOptions) { o.Kubelet = installer == found.Kubeadm })
	a := &adoption{lab: l, old: oldetcd.Cluster{Installer: installer, Hosts: l.hosts, Program: program, PKI: filepath.Join(l.dir, "old-pki")}}
	for _, f := range adjust {
		f(&a.old)
	}
	var err error
	if a.bundle, err = a.old.Install(l.context()); err != nil {
		t.Fatal(err)
	}
	config, err := member.TLS(a.bundle.CA, a.bundle.APIServerEtcdClient)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.hosts {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{fmt.Sprintf("https://127.0.0.1:%d", h.Ports().Client)}, TLS: config, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		a.clients = append(a.clients, client)
	}
	a.await(a.clients...)
	return a
}

// await waits until every one of some members takes part in the cluster.
func (a *adoption) await(clients ...*clientv3.Client) {
	a.t.Helper()
	ctx := a.context()
	for _, c := range clients {
		for {
			_, err := c.Get(ctx, "any")
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				a.t.Fatalf("the old etcd does not serve: %v", err)
			}
		}
	}
}

// fill writes keys, a lease and a history that is compacted in part.
func (a *adoption) fill() {
	a.t.Helper()
	ctx, c := a.context(), a.clients[0]
	lease, err := c.Grant(ctx, 3600)
	if err == nil {
		_, err = c.Put(ctx, "/leased", "1", clientv3.WithLease(lease.ID))
	}
	for i := range 20 {
		if err == nil {
			_, err = c.Put(ctx, fmt.Sprintf("/registry/pods/%d", i%7), fmt.Sprint(i))
		}
	}
	if err == nil {
		_, err = c.Compact(ctx, 10)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// loaded starts a writer to the first member, with the certificates that it has.
func (a *adoption) loaded() *counter {
	w := &counter{l: a.lab, clients: a.clients[:1], stop: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	for ctx := a.context(); w.acknowledged.Load() < 10; {
		if ctx.Err() != nil {
			a.t.Fatal("nothing was written")
		}
	}
	return w
}

func (a *adoption) adopt(how AdoptOptions) (*AdoptReport, error) {
	a.t.Helper()
	a.events.reset()
	report, err := Adopt(a.context(), a.cluster, a.opts, how)
	if err == nil {
		a.t.Logf("%d changes in %v, a pause of %v", report.Changes, report.Elapsed, report.Pause)
	}
	return report, err
}

func (a *adoption) mustAdopt() *AdoptReport {
	a.t.Helper()
	report, err := a.adopt(AdoptOptions{})
	if err != nil {
		a.fatal(err)
	}
	if !report.Status.Healthy || len(report.Status.Members) != len(a.hosts) {
		a.t.Fatalf("status afterwards: %+v", report.Status)
	}
	return report
}

// mustRest demands that neither apply nor adopt has anything left to do.
func (a *adoption) mustRest() {
	a.t.Helper()
	a.mustBeDone()
	if again := a.mustAdopt(); again.Changes != 0 {
		a.t.Errorf("adopt again makes %d changes: %q", again.Changes, a.events.texts(step.Changed))
	}
}

// inPlace is the inventory's part that leaves the cluster as etcd.
func (a *adoption) inPlace() string {
	return "server: {binary: " + a.old.Program + ", dataDir: /var/lib/etcd}\n"
}

// mustKeepOld demands that what ran the old members is still there, and does
// not run.
func (a *adoption) mustKeepOld() {
	a.t.Helper()
	for _, h := range a.hosts {
		kept := found.UnitPath
		if a.old.Installer == found.Kubeadm {
			kept = "/etc/kubernetes/etcd.yaml.before-muster"
			if _, err := os.Stat(h.Path(found.ManifestPath)); !os.IsNotExist(err) {
				a.t.Errorf("%s still has its manifest: %v", h.Name(), err)
			}
		} else if s := h.UnitState(found.UnitName); s["ActiveState"] != "inactive" || s["UnitFileState"] != "disabled" {
			a.t.Errorf("%s: %s is %s and %s", h.Name(), found.UnitName, s["ActiveState"], s["UnitFileState"])
		}
		for _, path := range []string{kept, "/var/lib/etcd/member/snap/db"} {
			if _, err := os.Stat(h.Path(path)); err != nil {
				a.t.Error(err)
			}
		}
	}
}

// An etcd stays etcd, with its data, its ID and its CA: its members are taken
// over one at a time while a client writes with the certificate it has.
func TestAdoptInPlace(t *testing.T) {
	for _, installer := range installers(found.Kubeadm) {
		t.Run(string(installer), func(t *testing.T) {
			a := newAdoption(t, installer, *adopted)
			a.fill()
			before, err := a.clients[0].MemberList(a.context())
			if err != nil {
				t.Fatal(err)
			}
			w := a.loaded()
			a.load(a.inPlace())
			report := a.mustAdopt()
			if id := fmt.Sprintf("%x", before.Header.ClusterId); report.Status.ClusterID != id || report.Pause != 0 {
				t.Errorf("the cluster is %s, was %s; a pause of %v", report.Status.ClusterID, id, report.Pause)
			}
			w.mustHaveAll(0)
			a.mustKeepOld()
			ca, err := os.ReadFile(filepath.Join(a.cluster.PKI.Dir, "ca.crt"))
			if err != nil || string(ca) != string(a.bundle.CA) {
				t.Errorf("the CA is another one: %v", err)
			}
			a.mustRest()

			// A run that ended between the start and its record is gone on with.
			record, process := a.hosts[0].Path("/etc/muster/adopted.json"), a.hosts[0].UnitState("musterd.service")["MainPID"]
			text, err := os.ReadFile(record)
			if err == nil {
				err = os.WriteFile(record, []byte(strings.Replace(string(text), `,"done":true`, "", 1)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			a.mustAdopt()
			if now := a.hosts[0].UnitState("musterd.service")["MainPID"]; now != process {
				t.Errorf("the member was restarted: process %s, was %s", now, process)
			}
			a.mustRest()
		})
	}
}

// An etcd becomes a musterd. What was acknowledged before writes were refused is
// there, what was tried meanwhile is not half there, and the old data is kept.
func TestAdoptToMusterd(t *testing.T) {
	for _, installer := range installers(found.Etcdadm) {
		t.Run(string(installer), func(t *testing.T) {
			a := newAdoption(t, installer, *adopted)
			a.fill()
			w := a.loaded()
			report := a.mustAdopt()
			if report.Pause <= 0 {
				t.Errorf("a pause of %v", report.Pause)
			}
			w.mustHaveAll(0)
			a.mustKeepOld()
			leases, err := a.client(0).Leases(a.context())
			if err != nil || len(leases.Leases) != 1 {
				t.Errorf("leases %v, %v", leases, err)
			}
			for _, h := range a.hosts {
				if _, err := os.Stat(h.Path("/var/lib/muster/member.json")); err != nil {
					t.Errorf("%s does not run musterd: %v", h.Name(), err)
				}
			}
			a.mustRest()
		})
	}
}

// A new member that does not come up gives way to the old one.
func TestAdoptUndone(t *testing.T) {
	a := newAdoption(t, found.Kubespray, 1)
	a.fill()
	inventories := []string{"server: {flags: {no-such-flag: \"1\"}}\n"}
	if *adopted >= 3 {
		inventories = append(inventories, "server: {binary: "+a.old.Program+", dataDir: /var/lib/etcd, flags: {no-such-flag: \"1\"}}\n")
	}
	for i, inventory := range inventories {
		a.load(inventory)
		report, err := a.adopt(AdoptOptions{})
		var failure *Failure
		if !errors.As(err, &failure) || !strings.Contains(failure.Hint(), "run muster adopt again") {
			t.Fatalf("%+v, %v", report, err)
		}
		a.await(a.clients...)
		if _, err := a.clients[0].Put(a.context(), fmt.Sprintf("/after/%d", i), "x"); err != nil {
			t.Errorf("the old etcd does not take writes: %v", err)
		}
		h := a.hosts[0]
		if s := h.UnitState(found.UnitName); s["ActiveState"] != "active" || s["UnitFileState"] != "enabled" {
			t.Errorf("%s is %s and %s", found.UnitName, s["ActiveState"], s["UnitFileState"])
		}
		if s := h.UnitState("musterd.service"); s["ActiveState"] == "active" || s["UnitFileState"] == "enabled" {
			t.Errorf("musterd.service is %s and %s", s["ActiveState"], s["UnitFileState"])
		}
	}
	a.load("")
	a.mustAdopt()
	a.mustRest()
	if got, err := a.client(0).Get(a.context(), "/after/", clientv3.WithPrefix()); err != nil || got.Count != int64(len(inventories)) {
		t.Errorf("%v, %v", got, err)
	}
}

package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/kvserver/etcd34"
	"muster/provision/found"
	"muster/provision/inventory"
	"muster/provision/practice/oldetcd"
)

// mustFind demands that what is found gets a topology, whichever was asked for.
func (a *adoption) mustFind(topology, want inventory.Topology) {
	a.t.Helper()
	etcd, err := FindEtcd(a.context(), a.cluster, a.opts, "", topology)
	if err != nil {
		a.fatal(err)
	}
	if got := etcd.Inventory.Topology; got != want {
		a.t.Errorf("the topology is %q, want %q", got, want)
	}
}

func (a *adoption) undo() {
	a.t.Helper()
	if _, err := a.adopt(AdoptOptions{Undo: true}); err != nil {
		a.fatal(err)
	}
	a.await(a.clients...)
}

// count is how many keys the old clients find below a prefix.
func (a *adoption) count(prefix string) int64 {
	a.t.Helper()
	got, err := a.clients[0].Get(a.context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		a.t.Fatal(err)
	}
	return got.Count
}

// An etcd of kubeadm's becomes a musterd in the same static pod, and goes back
// with everything that was written meanwhile, twice.
func TestAdoptKubeadmsPod(t *testing.T) {
	a := newAdoption(t, found.Kubeadm, *adopted)
	a.fill()
	a.mustFind("", inventory.Stacked)
	a.mustFind(inventory.External, inventory.External)
	a.load(stacked)
	for round := range 2 {
		w := a.loaded()
		a.mustAdopt()
		w.mustHaveAll(0)
		for i := range a.hosts {
			manifest := a.sh(i, "cat /etc/kubernetes/manifests/etcd.yaml")
			if !strings.Contains(manifest, "image: muster.local/etcd:") {
				t.Errorf("controller-%d runs\n%s", i, manifest)
			}
			if kept := a.sh(i, "cat /etc/kubernetes/etcd.yaml.before-muster"); !strings.Contains(kept, "registry.k8s.io/etcd") {
				t.Errorf("controller-%d keeps\n%s", i, kept)
			}
		}
		a.mustRest()
		if _, err := a.clients[0].Put(a.context(), fmt.Sprintf("/meanwhile/%d", round), "x"); err != nil {
			t.Fatal(err)
		}
		before := a.count("/")
		if round == 0 {
			a.upgradedByKubeadm(before)
		}
		a.undo()
		if n := a.count("/meanwhile/"); n != int64(round+1) || a.count("/") != before {
			t.Errorf("%d keys of %d went back, %d of those written meanwhile", a.count("/"), before, n)
		}
		if _, err := a.clients[0].Put(a.context(), fmt.Sprintf("/after/%d", round), "x"); err != nil {
			t.Errorf("the old etcd does not take writes: %v", err)
		}
		for i := range a.hosts {
			if manifest := a.sh(i, "cat /etc/kubernetes/manifests/etcd.yaml"); !strings.Contains(manifest, "registry.k8s.io/etcd") {
				t.Errorf("controller-%d runs\n%s", i, manifest)
			}
			if left := a.sh(i, "ls -A /etc/muster"); strings.Contains(left, "adopted.json") || strings.Contains(left, "cluster.json") || strings.Contains(left, "etcd.yaml") {
				t.Errorf("controller-%d still remembers: %s", i, left)
			}
			if leases, err := a.clients[i].Leases(a.context()); err != nil || len(leases.Leases) != 1 {
				t.Errorf("leases %v, %v", leases, err)
			}
		}
	}
}

// upgradedByKubeadm has kubeadm bring back the manifest that it knows, with etcd's
// image and the data directory that is musterd's now: etcd must not found an empty
// cluster there, which a kube-apiserver would go on with.
func (a *adoption) upgradedByKubeadm(keys int64) {
	a.t.Helper()
	a.sh(0, "cat /etc/kubernetes/etcd.yaml.before-muster >/etc/kubernetes/etcd.yaml.upgrade && mv -fT /etc/kubernetes/etcd.yaml.upgrade /etc/kubernetes/manifests/etcd.yaml")
	ctx := a.context()
	for {
		out := a.sh(0, "cat /var/log/pods/kube-system_etcd-*/etcd/*.log")
		if strings.Contains(out, "member") && strings.Contains(out, "not a directory") {
			break
		}
		if ctx.Err() != nil {
			a.t.Fatalf("etcd does not say that it cannot have the directory:\n%s", out)
		}
	}
	a.mustApply()
	if now := a.count("/"); now != keys {
		a.t.Errorf("%d keys are left of %d", now, keys)
	}
	a.mustBeDone()
}

// thereAndBack takes an etcd over and gives it back with what was written
// meanwhile.
func (a *adoption) thereAndBack() {
	a.t.Helper()
	a.fill()
	a.mustAdopt()
	if _, err := a.clients[0].Put(a.context(), "/meanwhile/0", "x"); err != nil {
		a.t.Fatal(err)
	}
	before := a.count("/")
	a.undo()
	if a.count("/") != before || a.count("/meanwhile/") != 1 {
		a.t.Errorf("%d keys went back, of %d", a.count("/"), before)
	}
}

// What is given back may have been on systemd, in a directory of its own.
func TestAdoptedIsGivenBack(t *testing.T) {
	a := newAdoption(t, found.Etcdadm, *adopted)
	a.thereAndBack()
	a.mustAdopt()
	a.mustRest()
}

// The oldest etcd that is taken over reads what it is given back, which is in the
// oldest form that there is.
func TestOlderEtcdIsGivenBack(t *testing.T) {
	older := etcd34.Program(t, "etcd")
	a := newAdoption(t, found.Etcdadm, *adopted, func(c *oldetcd.Cluster) { c.Program = older })
	a.thereAndBack()
	if status, err := a.clients[0].Status(a.context(), a.clients[0].Endpoints()[0]); err != nil || !strings.HasPrefix(status.Version, "3.4.") {
		t.Errorf("it is not the old etcd that serves: %v, %v", status, err)
	}
}

// A pod that does not come up gives way to the old one, and its data to the old.
func TestAdoptOfAPodUndone(t *testing.T) {
	a := newAdoption(t, found.Kubeadm, 1)
	a.fill()
	before := a.count("/")
	a.load(stacked + "server: {flags: {no-such-flag: \"1\"}}\n")
	report, err := a.adopt(AdoptOptions{})
	var failure *Failure
	if !errors.As(err, &failure) || !strings.Contains(failure.Hint(), "run muster adopt again") {
		t.Fatalf("%+v, %v", report, err)
	}
	a.await(a.clients...)
	if now := a.count("/"); now != before {
		t.Errorf("%d keys, there were %d", now, before)
	}
	a.load(stacked)
	a.mustAdopt()
	a.mustRest()
	asides, err := filepath.Glob(a.hosts[0].Path("/var/lib") + "/etcd.before-restore-*")
	if err != nil || len(asides) == 0 {
		t.Errorf("nothing is kept: %v", err)
	}
	if _, err := os.Stat(a.hosts[0].Path("/etc/kubernetes/pki/etcd/ca.key")); err != nil {
		t.Errorf("kubeadm's key of the CA: %v", err)
	}
}

// An adoption that was cut off is undone, wherever that was: before the old pod is
// stopped its manifest is where the new one's will be.
func TestCutOffAdoptionOfAPodIsUndone(t *testing.T) {
	a := newAdoption(t, found.Kubeadm, 1)
	a.fill()
	a.load(stacked)
	before, manifest := a.count("/"), a.sh(0, "cat /etc/kubernetes/manifests/etcd.yaml")
	for _, last := range []string{"recorded how the old etcd is started", "moved /etc/kubernetes/manifests/etcd.yaml", "moved the data in /var/lib/etcd aside", "wrote /etc/muster/etcd.yaml", "started the static pod etcd"} {
		ctx, cancel := context.WithCancel(a.context())
		opts := a.opts
		opts.Reporter = &cutter{recorder: &recorder{t: t}, text: last, cancel: cancel}
		if _, err := Adopt(ctx, a.cluster, opts, AdoptOptions{}); err == nil {
			t.Fatalf("the run that was to end with %q succeeded", last)
		}
		cancel()
		a.undo()
		if now := a.count("/"); now != before {
			t.Errorf("cut off after %q: %d keys, there were %d", last, now, before)
		}
		if now := a.sh(0, "cat /etc/kubernetes/manifests/etcd.yaml"); now != manifest {
			t.Errorf("cut off after %q: the manifest is\n%s", last, now)
		}
		if _, err := a.clients[0].Put(a.context(), "/registry/pods/0", last); err != nil {
			t.Errorf("cut off after %q: %v", last, err)
		}
	}
}

// Giving back goes on where a run was cut off.
func TestGivingBackGoesOn(t *testing.T) {
	a := newAdoption(t, found.Kubeadm, 1)
	a.load(stacked)
	ends := []string{"the members refuse writes", "stopped and disabled", "gave the old member its data", "the old members take writes", "recorded the snapshot that the old", "unpacked the snapshot", "recorded that the old member", "moved /etc/kubernetes/etcd.yaml.before-muster back"}
	if *adopted < 3 {
		ends = ends[1:4]
	}
	a.fill()
	for i, last := range ends {
		a.mustAdopt()
		if _, err := a.clients[0].Put(a.context(), fmt.Sprintf("/registry/round/%d", i), last); err != nil {
			t.Fatal(err)
		}
		before := a.count("/registry/")
		ctx, cancel := context.WithCancel(a.context())
		opts := a.opts
		opts.Reporter = &cutter{recorder: &recorder{t: t}, text: last, cancel: cancel}
		if _, err := Adopt(ctx, a.cluster, opts, AdoptOptions{Undo: true}); err == nil {
			t.Fatalf("the run that was to end with %q succeeded", last)
		}
		cancel()
		if strings.Contains(a.sh(0, "cat /etc/muster/adopted.json"), "returning") {
			a.mustFail("run muster adopt --undo again")
			if _, err := a.adopt(AdoptOptions{}); err == nil || !strings.Contains(err.Error(), "run muster adopt --undo again") {
				t.Errorf("cut off after %q: adopt again: %v", last, err)
			}
		}
		a.undo()
		if now := a.count("/registry/"); now != before {
			t.Errorf("cut off after %q: %d keys, there were %d", last, now, before)
		}
	}
}

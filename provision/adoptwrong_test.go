package provision

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"muster/provision/found"
	"muster/provision/practice"
	"muster/provision/practice/oldetcd"
	"muster/provision/step"
)

// mustRefuse demands that nothing is taken over, that the reason says so, and
// that no host was changed.
func (a *adoption) mustRefuse(how AdoptOptions, want string) {
	a.t.Helper()
	_, err := a.adopt(how)
	if err == nil || !strings.Contains(err.Error(), want) {
		a.t.Errorf("want %q, got %v", want, err)
	}
	if changed := a.events.texts(step.Changed); len(changed) > 0 {
		a.t.Errorf("%q was changed although it is refused", changed)
	}
	for _, h := range a.hosts {
		if _, err := os.Stat(h.Path("/etc/muster/adopted.json")); !os.IsNotExist(err) {
			a.t.Errorf("%s remembers an adoption: %v", h.Name(), err)
		}
	}
}

func TestAdoptRefusesWhatIsNoEtcd(t *testing.T) {
	a := &adoption{lab: newLab(t, 1)}
	a.mustRefuse(AdoptOptions{}, "controller-0: no etcd of kubeadm, etcdadm or kubespray is here")
	if _, err := FindEtcd(a.context(), a.cluster, a.opts, "", ""); err == nil || !strings.Contains(err.Error(), "name only hosts that have one") {
		t.Errorf("find: %v", err)
	}
}

// What is wrong with members or inventory is found before any change.
func TestAdoptRefuses(t *testing.T) {
	a := newAdoption(t, found.Etcdadm, 2, func(c *oldetcd.Cluster) { c.NoCAKey = true })
	key, err := os.ReadFile(filepath.Join(a.old.PKI, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	given := AdoptOptions{CAKey: key}
	a.mustRefuse(AdoptOptions{}, "the key of the CA is on no host, and without it")
	a.load("server: {dataDir: /var/lib/etcd}\n")
	a.mustRefuse(given, "musterd cannot go on with the data of etcd in /var/lib/etcd")
	a.load("pki: {dir: " + filepath.Join(a.lab.dir, "foreign") + "}\n")
	foreign := oldetcd.Cluster{Installer: found.Etcdadm, PKI: a.cluster.PKI.Dir}
	if _, err := foreign.Install(a.context()); err != nil {
		t.Fatal(err)
	}
	a.mustRefuse(given, "its etcd trusts another CA than")
	a.loadHosts("", a.hosts[0])
	a.mustRefuse(given, "is a member of the cluster, at https://127.0.0.1:")
	a.load("")
	a.cluster.Hosts[1].Server.PeerPort++
	a.mustRefuse(given, "its etcd is at https://127.0.0.1:")

	if *adopted < 3 {
		return
	}
	// Half of the members are no majority.
	a.load("")
	if out, status := a.hosts[1].Console(a.context(), "systemctl stop etcd.service"); status != 0 {
		t.Fatal(out)
	}
	a.awaitLoss()
	a.mustRefuse(given, "of the members answer and have a leader, which is no majority")
	if out, status := a.hosts[1].Console(a.context(), "systemctl start --no-block etcd.service"); status != 0 {
		t.Fatal(out)
	}
	a.await(a.clients...)

	// Data of a member that was removed is not the cluster's.
	list, err := a.clients[0].MemberList(a.context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name != "controller-1" {
			continue
		}
		for ctx := a.context(); ; { // refused until the two have been connected for a while
			_, err := a.clients[0].MemberRemove(ctx, m.ID)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	a.await(a.clients[0])
	a.mustRefuse(given, "controller-1: the cluster has no member at")

	_ = a.hosts[1].Close()
	a.mustRefuse(given, "controller-1")

	a.loadHosts("", a.hosts[0])
	if _, err := a.adopt(given); err != nil {
		a.fatal(err)
	}
	a.mustBeDone()
}

// awaitLoss waits until the first member knows that it has no leader.
func (a *adoption) awaitLoss() {
	a.t.Helper()
	ctx := a.context()
	for {
		status, err := a.clients[0].Status(ctx, a.clients[0].Endpoints()[0])
		if err != nil {
			a.t.Fatal(err)
		}
		if status.Leader == 0 {
			return
		}
	}
}

// Two clusters are told apart by their CAs, and by their IDs when they share one.
func TestAdoptRefusesTwoClusters(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%t", shared), func(t *testing.T) {
			a := &adoption{lab: newLab(t, 2)}
			for i, h := range a.hosts {
				c := oldetcd.Cluster{Installer: found.Etcdadm, Hosts: []*practice.Host{h}, Program: buildEtcd(t), PKI: filepath.Join(a.lab.dir, "old-pki")}
				if !shared {
					c.PKI += fmt.Sprint(i)
				}
				if _, err := c.Install(a.context()); err != nil {
					t.Fatal(err)
				}
			}
			want := "its etcd trusts another CA than controller-0"
			if shared {
				want = "its etcd is a member of cluster"
				for _, h := range a.hosts { // else a cluster that has not answered yet is no cluster
					a.awaitUnit(h)
				}
			}
			a.mustRefuse(AdoptOptions{}, want)
		})
	}
}

func (a *adoption) awaitUnit(h *practice.Host) {
	a.t.Helper()
	for ctx := a.context(); h.UnitState(found.UnitName)["ActiveState"] != "active"; {
		if ctx.Err() != nil {
			a.t.Fatalf("%s does not run", found.UnitName)
		}
	}
}

// The inventory that is written of what was found is the one to adopt with.
func TestFindEtcd(t *testing.T) {
	a := newAdoption(t, found.Kubespray, 1, func(c *oldetcd.Cluster) {
		c.Flags = map[string]string{"heartbeat-interval": "250", "election-timeout": "2500"}
	})
	for _, keep := range []string{a.old.Program, ""} {
		etcd, err := FindEtcd(a.context(), a.cluster, a.opts, keep, "")
		if err != nil {
			t.Fatal(err)
		}
		text, err := yaml.Marshal(etcd.Inventory)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"heartbeat-interval: \"250\"", "snapshot-count: \"10000\"", "name: controller-0"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("the inventory does not say %s:\n%s", want, text)
			}
		}
		if said := strings.Contains(string(text), "dataDir: /var/lib/etcd"); said != (keep != "") {
			t.Errorf("dataDir is said: %t\n%s", said, text)
		}
		a.loadText(string(text))
		takeover, err := CheckAdoption(a.context(), a.cluster, a.opts)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if takeover.InPlace != (keep != "") || takeover.Bytes <= 0 || takeover.Hosts[0].Installer != "kubespray" || !takeover.Hosts[0].Leader || takeover.Hosts[0].Version == "" {
			t.Errorf("%+v", takeover)
		}
	}
}

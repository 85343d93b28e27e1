package desired

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What kubeadm 1.36 writes for a first control-plane node and what muster writes
// for a cluster of one are the same text, but for the image.
func TestStackedIsKubeadms(t *testing.T) {
	theirs, err := os.ReadFile("../../templates/testdata/kubeadm-1.36.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cluster := load(t, "cluster: kubernetes\ntopology: stacked\ncontrollers: [192.0.2.10]\n")
	const image = "registry.k8s.io/etcd:3.6.8-0"
	hosts, err := ForMembers(cluster, fakeBundle("controller-0"), Known{Images: map[string]string{"controller-0": image}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range hosts[0].Files {
		if f.Path != hosts[0].Units[0].Path {
			continue
		}
		ours, theirs := strings.TrimSuffix(string(f.Content), "status: {}\n"), strings.TrimSuffix(string(theirs), "status: {}\n")
		if strings.TrimSpace(ours) != strings.TrimSpace(theirs) {
			t.Errorf("kubeadm's:\n%s\nmuster's:\n%s", theirs, ours)
		}
	}
	checkConsistent(t, hosts[0])
}

// A member that joins is told so, flags of the inventory are in kubeadm's form,
// and a token of one's own is said.
func TestStackedFor(t *testing.T) {
	cluster := load(t, `
cluster: kubernetes
topology: stacked
token: very-own
controllers:
  - {name: one, address: 192.0.2.10}
  - {name: two, address: 192.0.2.11}
  - {name: three, address: 192.0.2.12}
server:
  flags: {snapshot-count: 5000, heartbeat-interval: 200}
backup: {schedule: daily}
`)
	hosts, err := ForMembers(cluster, fakeBundle("one", "two", "three"), Known{
		Bootstraps: map[string]Bootstrap{"two": {InitialCluster: "one=https://192.0.2.10:2380,two=https://192.0.2.11:2380", State: "existing"}},
		Images:     map[string]string{"two": "muster.local/etcd:x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	describe(&out, hosts[1])
	for _, f := range hosts[1].Backup.Files {
		out.Write(f.Content)
	}
	compare(t, filepath.Join("testdata", "stacked.golden"), out.Bytes())
	checkConsistent(t, hosts[1])
	if PKIDir(cluster) != "/etc/kubernetes/pki/etcd" {
		t.Errorf("the certificates are in %s", PKIDir(cluster))
	}
}

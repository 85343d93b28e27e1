package kubernetes

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRuntimes has muster install, upgrade, restore and remove a member on a
// machine with either container runtime, while its kubelet has no kube-apiserver.
func TestRuntimes(t *testing.T) {
	if *without["stacked"] {
		t.Skip("left out by -without-stacked")
	}
	t.Run("containerd", func(t *testing.T) { allItsLife(startMachines(t, withContainerd, 1)) })
	t.Run("CRI-O", func(t *testing.T) {
		buildCRIO(t)
		allItsLife(startMachines(t, withCRIO, 1))
	})
}

func allItsLife(m *machines) {
	m.t.Helper()
	node := m.names[0]
	page := readWalkthrough(m.t, "../kubernetes-stacked/README.md")
	config := strings.NewReplacer("NODE", node, "ADDRESS", m.address(0)).Replace(page.file(m.t, "yaml", "apiVersion: kubeadm.k8s.io/"))
	m.write("kubeadm.yaml", config, 0o600)
	inventory := fmt.Sprintf("cluster: kubernetes\ntopology: stacked\ncontrollers:\n  - name: %s\n    address: %s\n", node, m.address(0))
	m.write("muster.yaml", inventory, 0o600)
	m.types(2*time.Minute, fmt.Sprintf(`ssh %s 'cat >kubeadm.yaml' <kubeadm.yaml
ssh %[1]s '
  set -e
  for phase in "certs ca" "certs apiserver-kubelet-client" "kubeconfig all" "kubelet-start"; do
    kubeadm init phase $phase --config kubeadm.yaml
  done'`, node))
	m.apply()
	image := strings.TrimSpace(m.images(node))
	if version := m.mustOn(node, m.kind.run(image, "etcd --version")); !strings.HasPrefix(version, "etcd Version: ") {
		m.t.Errorf("the program in %s says it is %s", image, version)
	}

	m.mustOn(node, "pkill -9 -x etcd")
	m.healthy()

	m.write("muster.yaml", inventory+"server:\n  binary: "+m.nextServer()+"\n", 0o600)
	m.apply()
	if after := strings.TrimSpace(m.images(node)); after == image || strings.Contains(after, "\n") {
		m.t.Errorf("the images are %q, were %q", after, image)
	}

	const etcdctl = "etcdctl --endpoints https://127.0.0.1:2379 --cacert /etc/kubernetes/pki/etcd/ca.crt --cert /etc/kubernetes/pki/etcd/healthcheck-client.crt --key /etc/kubernetes/pki/etcd/healthcheck-client.key "
	m.mustOn(node, etcdctl+"put saved here")
	m.types(2*time.Minute, "muster backup saved.db")
	m.mustOn(node, "systemctl stop kubelet && pkill -9 -x etcd && rm -rf /var/lib/etcd && systemctl start kubelet")
	m.types(10*time.Minute, "muster restore saved.db --yes-lose-writes kubernetes")
	if value := m.mustOn(node, etcdctl+"get saved --print-value-only"); value != "here\n" {
		m.t.Errorf("after the restore the value is %q", value)
	}
	m.healthy()
	m.checkPlan()

	m.types(2*time.Minute, "muster reset --yes")
	if left := m.images(node) + m.mustOn(node, "pgrep -ax etcd || :"); left != "" {
		m.t.Errorf("%s still has %s", node, left)
	}
}

// apply installs the cluster, and explains the machines when it cannot.
func (m *machines) apply() {
	m.t.Helper()
	began := time.Now()
	out, err := m.administrator(10*time.Minute, "muster apply --yes")
	if err != nil {
		for _, name := range m.names {
			m.explain(name)
		}
		m.t.Fatal(err)
	}
	m.t.Logf("muster apply: %.1fs\n%s", time.Since(began).Seconds(), out)
	m.healthy()
	m.checkPlan()
}

// images are those of the server that a machine has.
func (m *machines) images(name string) string {
	m.t.Helper()
	return m.mustOn(name, m.kind.listImages()+" | grep ^muster.local/etcd || :")
}

// buildCRIO builds CRI-O and the helper that it starts, which is in C.
func buildCRIO(t *testing.T) {
	t.Helper()
	tags := "-tags=containers_image_openpgp,containers_image_ostree_stub,exclude_graphdriver_btrfs"
	if err := build("crio", "crio", "github.com/cri-o/cri-o/cmd/crio", tags); err != nil {
		t.Fatal(err)
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cri-o/cri-o")
	list.Dir = "crio"
	dir, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "pinns", "src", "*.c"))
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-O2", "-static", "-o", filepath.Join(programs, "pinns")}, sources...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("build pinns: %v\n%s", err, out)
	}
}

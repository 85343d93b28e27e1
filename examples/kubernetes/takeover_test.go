package kubernetes

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// etcdImage is the image that kubeadm's own manifest names.
const etcdImage = "registry.k8s.io/etcd:3.6.8-0"

// TestTakeOver has kubeadm make a control plane of one machine with real etcd,
// hands its etcd to muster, and hands it back, with what is written meanwhile.
func TestTakeOver(t *testing.T) {
	if *without["stacked"] {
		t.Skip("left out by -without-stacked")
	}
	page := readWalkthrough(t, "../kubernetes-stacked/README.md")
	m := startMachines(t, withContainerd, 1)
	m.loadEtcd()
	m.startKubelet(page)
	m.mustOn("controlplane", `set -e
		for phase in "certs all" "etcd local" "control-plane apiserver"; do
			kubeadm init phase $phase --config kubeadm.yaml
		done
		cp /etc/kubernetes/manifests/etcd.yaml kubeadms.yaml
		cp /etc/kubernetes/pki/etcd/server.crt kubeadms-server.crt
		timeout 180 sh -c 'until kubectl --kubeconfig /etc/kubernetes/super-admin.conf get node controlplane; do sleep 1; done'
		for phase in "upload-config all" bootstrap-token mark-control-plane; do
			kubeadm init phase $phase --config kubeadm.yaml
		done
		mkdir -p .kube
		cp /etc/kubernetes/admin.conf .kube/config`)
	m.podRuns(etcdImage)
	m.mustOn("controlplane", `set -e
		for i in $(seq 20); do
			kubectl create configmap before-$i --from-literal=number=$i
			kubectl create secret generic before-$i --from-literal=number=$i
		done >/dev/null
		kubectl delete configmap before-7`)
	before := m.objects("before-")
	if len(before) != 39 {
		t.Fatalf("%d objects, want 39: %v", len(before), before)
	}

	t.Log(m.types(time.Minute, "muster adopt root@"+m.address(0)+"; cat muster.yaml"))
	t.Log(m.types(5*time.Minute, "muster adopt --yes"))
	m.podRuns("muster.local/etcd:")
	m.onlyImageDiffers()
	m.sameObjects(before, "before-")
	m.checkPlan()
	m.mustOn("controlplane", "kubectl create configmap meanwhile --from-literal=a=b")

	// kubeadm goes on renewing what it made.
	m.mustOn("controlplane", "set -e; for which in etcd-server etcd-peer etcd-healthcheck-client apiserver-etcd-client; do kubeadm certs renew $which; done")
	if out := m.mustOn("controlplane", "cmp kubeadms-server.crt /etc/kubernetes/pki/etcd/server.crt || true"); out == "" {
		t.Error("kubeadm certs renew has not renewed the certificate")
	}
	m.checkPlan()
	if out := m.types(3*time.Minute, "muster apply --yes"); !strings.Contains(out, "0 changes") && !strings.Contains(out, "nothing to do") {
		t.Errorf("muster fights what kubeadm renewed:\n%s", out)
	}

	t.Log(m.types(5*time.Minute, "muster adopt --undo --yes"))
	m.podRuns(etcdImage)
	if out := m.mustOn("controlplane", "diff kubeadms.yaml /etc/kubernetes/manifests/etcd.yaml || true"); out != "" {
		t.Errorf("the manifest that kubeadm wrote is not there again:\n%s", out)
	}
	m.sameObjects(before, "before-")
	m.mustOn("controlplane", "kubectl get configmap meanwhile && kubectl create configmap after --from-literal=a=b")
}

// loadEtcd puts real etcd where kubeadm's manifest looks for it, in an image that
// has what muster's has.
func (m *machines) loadEtcd() {
	m.t.Helper()
	archive := filepath.Join(m.dir, "etcd.tar")
	const bin = "usr/local/bin/"
	err := writeImage(archive, etcdImage, map[string]string{
		bin + "etcd":    filepath.Join(programs, "etcd"),
		bin + "etcdctl": filepath.Join(programs, "musterctl"),
		bin + "etcdutl": bin + "etcdctl",
		"bin/sh":        bin + "etcdctl",
	}, "etcd")
	if err != nil {
		m.t.Fatal(err)
	}
	m.load("controlplane", archive)
}

// podRuns waits until Kubernetes shows a pod of etcd with that image, ready.
func (m *machines) podRuns(image string) {
	m.t.Helper()
	eventually(m.t, podsDelay, "the pod of etcd", func() error {
		out, err := m.on("controlplane", "kubectl get pod -n kube-system etcd-controlplane -o jsonpath='{.spec.containers[0].image} {.status.containerStatuses[0].image} {.status.containerStatuses[0].ready}'")
		if err != nil {
			return err
		}
		if fields := strings.Fields(out); len(fields) != 3 || !strings.HasPrefix(fields[0], image) || fields[1] != fields[0] || fields[2] != "true" {
			return fmt.Errorf("wanted, run, ready: %s", out)
		}
		return nil
	})
}

// onlyImageDiffers: of kubeadm's manifest muster has changed the image.
func (m *machines) onlyImageDiffers() {
	m.t.Helper()
	out := m.mustOn("controlplane", "diff -U0 kubeadms.yaml /etc/kubernetes/manifests/etcd.yaml || true")
	m.t.Logf("what has become of kubeadm's manifest:\n%s", out)
	if !imageChanged.MatchString(out) {
		m.t.Error("more than the image is different, or nothing is")
	}
}

// objects are the configmaps and secrets of that prefix, with their content and
// revision.
func (m *machines) objects(prefix string) map[string]string {
	m.t.Helper()
	var list struct {
		Items []struct {
			Kind     string
			Metadata struct{ Name, UID, ResourceVersion string }
			Data     map[string]string
		}
	}
	eventually(m.t, podsDelay, "the objects", func() error {
		out, err := m.on("controlplane", "kubectl get configmaps,secrets -n default -o json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &list)
	})
	found := map[string]string{}
	for _, item := range list.Items {
		if strings.HasPrefix(item.Metadata.Name, prefix) {
			found[item.Kind+"/"+item.Metadata.Name] = fmt.Sprint(item.Metadata.UID, item.Metadata.ResourceVersion, item.Data)
		}
	}
	return found
}

func (m *machines) sameObjects(want map[string]string, prefix string) {
	m.t.Helper()
	if diff := gocmp.Diff(want, m.objects(prefix)); diff != "" {
		m.t.Errorf("the objects are different (-before +now):\n%s", diff)
	}
}

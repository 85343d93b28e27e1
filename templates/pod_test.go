package templates

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

func kubeadmPod() EtcdPod {
	return EtcdPod{
		AdvertiseClientURLs: "https://192.0.2.10:2379", Image: "registry.k8s.io/etcd:3.6.8-0", MetricsPort: 2381,
		DataDir: "/var/lib/etcd", CertificatesDir: "/etc/kubernetes/pki/etcd",
		Args: []Argument{
			{Flag: "name", Value: "controller-0"},
			{Flag: "data-dir", Value: "/var/lib/etcd"},
			{Flag: "advertise-client-urls", Value: "https://192.0.2.10:2379"},
			{Flag: "initial-advertise-peer-urls", Value: "https://192.0.2.10:2380"},
			{Flag: "initial-cluster", Value: "controller-0=https://192.0.2.10:2380"},
			{Flag: "listen-client-urls", Value: "https://127.0.0.1:2379,https://192.0.2.10:2379"},
			{Flag: "listen-peer-urls", Value: "https://192.0.2.10:2380"},
			{Flag: "listen-metrics-urls", Value: "http://127.0.0.1:2381"},
			{Flag: "cert-file", Value: "/etc/kubernetes/pki/etcd/server.crt"},
			{Flag: "key-file", Value: "/etc/kubernetes/pki/etcd/server.key"},
			{Flag: "client-cert-auth"},
			{Flag: "trusted-ca-file", Value: "/etc/kubernetes/pki/etcd/ca.crt"},
			{Flag: "peer-cert-file", Value: "/etc/kubernetes/pki/etcd/peer.crt"},
			{Flag: "peer-key-file", Value: "/etc/kubernetes/pki/etcd/peer.key"},
			{Flag: "peer-client-cert-auth"},
			{Flag: "peer-trusted-ca-file", Value: "/etc/kubernetes/pki/etcd/ca.crt"},
			{Flag: "snapshot-count", Value: "10000"},
			{Flag: "feature-gates", Value: "InitialCorruptCheck=true", Joined: true},
			{Flag: "watch-progress-notify-interval", Value: "5s"},
		},
	}
}

// Field by field the manifest is the one that kubeadm 1.36 has written into
// testdata/kubeadm-1.36.yaml.
func TestPodIsKubeadms(t *testing.T) {
	text, err := kubeadmPod().Render()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile("testdata/kubeadm-1.36.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fields(t, theirs), fields(t, text)); diff != "" {
		t.Errorf("(-kubeadm +muster):\n%s", diff)
	}
}

// What would be another thing to YAML is written so that it is not.
func TestPodQuotes(t *testing.T) {
	values := []string{"true", "1e3", "a: b", "# none", `"quoted"`, "line\nline", "{}", "", "*x", strings.Repeat("long word ", 30), "trailing ", "-", "ä"}
	p := kubeadmPod()
	p.Args = nil
	for _, v := range values {
		p.Args = append(p.Args, Argument{Flag: "f", Value: v, Joined: true})
	}
	text, err := p.Render()
	if err != nil {
		t.Fatal(err)
	}
	container := fields(t, text)["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)
	want := []any{"etcd"}
	for _, v := range values {
		want = append(want, "--f="+v)
	}
	if diff := cmp.Diff(want, container["command"]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, v := range values {
		scalar, err := yamlScalar(v)
		if err != nil {
			t.Fatal(err)
		}
		var back string
		if err := yaml.Unmarshal([]byte("key: "+scalar), &struct{ Key *string }{&back}); err != nil || back != v {
			t.Errorf("%q is written as %s and read as %q: %v", v, scalar, back, err)
		}
	}
}

func fields(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if status, ok := tree["status"].(map[string]any); ok && len(status) == 0 {
		delete(tree, "status") // of a pod that has not run
	}
	return tree
}

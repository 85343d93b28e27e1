package kubernetes

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	pods  = flag.Int("pods", 200, "pods to create")
	nodes = flag.Int("nodes", 50, "nodes to create, whose heartbeats go on meanwhile")
	keep  = flag.Bool("keep", false, "keep the machines of a test that failed")
	built = flag.String("programs", "", "directory to keep the built programs in; a temporary one when left out")
)

// without are the parts of the test that somebody has no time for.
var without = map[string]*bool{
	"stacked": flag.Bool("without-stacked", false, "leave out what needs machines with kubelets"),
}

// kubernetesVersion is the release that go.mod requires. Kubernetes' own release
// process tells its programs which they are; kubeadm refuses to work as none.
const kubernetesVersion = "v1.36.3"

const ldflags = "-s -w -X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
	" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"

// programs is where what is under test has been built.
var programs string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	programs = *built
	if programs == "" {
		dir, err := os.MkdirTemp("", "muster-kubernetes-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		programs = dir
	}
	for _, b := range []struct{ dir, name, source string }{
		{"../..", "muster", "./cmd/muster"},
		{"../..", "musterd", "./cmd/musterd"},
		{"../..", "musterctl", "./cmd/musterctl"},
		{".", "pause", "./pause"},
		{".", "etcd", "go.etcd.io/etcd/server/v3"},
		{".", "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
		{".", "kubeadm", "k8s.io/kubernetes/cmd/kubeadm"},
		{".", "kubectl", "k8s.io/kubernetes/cmd/kubectl"},
		{".", "kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	} {
		if err := build(b.dir, b.name, b.source); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build builds a program of the module in dir.
func build(dir, name, source string, options ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags=" + ldflags, "-o", filepath.Join(programs, name)}, options...)
	cmd := exec.Command("go", append(args, source)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return nil
}

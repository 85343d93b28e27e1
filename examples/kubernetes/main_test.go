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
	built = flag.String("programs", "", "directory to keep the built programs in; a temporary one when left out")
)

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
		{".", "etcd", "go.etcd.io/etcd/server/v3"},
		{".", "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(programs, b.name), b.source)
		cmd.Dir = b.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n", b.name, err)
			return 1
		}
	}
	return m.Run()
}

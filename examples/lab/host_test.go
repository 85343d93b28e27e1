//go:build lab

package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The test's lab stands beside the one that a person may have up.
const (
	labName   = "muster-lab-test"
	labSubnet = "10.78.0"
)

// hosts is a running lab of the test's own, and what it takes to work on it.
type hosts struct {
	t         *testing.T
	state     string // directory: keys, ssh_config, the cluster's certificates
	inventory string
	programs  string // directory: what make build made
	names     []string
}

// up makes n hosts anew. They are removed when the test ends, or kept for a
// look when it failed and -keep is set.
func up(t *testing.T, n int) *hosts {
	t.Helper()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	h := &hosts{
		t:        t,
		state:    filepath.Join(here, ".state", labName),
		programs: filepath.Join(here, "..", "..", "bin"),
	}
	for i := range n {
		h.names = append(h.names, fmt.Sprintf("controller-%d", i))
	}
	h.inventory = filepath.Join(h.state, "inventory.yaml")
	for _, program := range []string{"muster", "musterd", "musterctl"} {
		if _, err := os.Stat(filepath.Join(h.programs, program)); err != nil {
			t.Fatalf("the lab test needs the programs: %v; run: make build", err)
		}
	}
	for _, tool := range []string{"docker", "etcdctl", "ssh"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("the lab test needs %s: %v; run: make setup", tool, err)
		}
	}
	t.Setenv("MUSTER_LAB_NAME", labName)
	t.Setenv("MUSTER_LAB_NET", labSubnet)
	h.must(time.Minute, "./down")
	t.Cleanup(func() {
		if t.Failed() && *keep {
			t.Logf("the hosts are kept; remove them with MUSTER_LAB_NAME=%s examples/lab/down", labName)
			return
		}
		h.must(time.Minute, "./down")
	})
	began := time.Now()
	h.make()
	t.Logf("hosts up after %s", since(began))
	return h
}

// make makes the hosts that are not there.
func (h *hosts) make() {
	h.t.Helper()
	h.must(10*time.Minute, "./up", strconv.Itoa(len(h.names)))
}

func (h *hosts) address(i int) string { return fmt.Sprintf("%s.%d", labSubnet, 10+i) }

func (h *hosts) endpoint(i int) string { return fmt.Sprintf("https://%s:2379", h.address(i)) }

// endpoints lists the client URLs of every host but those in without.
func (h *hosts) endpoints(without ...int) string {
	var urls []string
hosts:
	for i := range h.names {
		for _, w := range without {
			if i == w {
				continue hosts
			}
		}
		urls = append(urls, h.endpoint(i))
	}
	return strings.Join(urls, ",")
}

// try runs a command and returns what it wrote to standard output. The error
// carries everything it wrote.
func (h *hosts) try(timeout time.Duration, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(stdin)
	var out, diagnostics bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), diagnostics.String())
	}
	return out.String(), nil
}

// must is try for what has to work.
func (h *hosts) must(timeout time.Duration, name string, args ...string) string {
	h.t.Helper()
	out, err := h.try(timeout, "", name, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// on runs a command on a host as the user muster logs in as.
func (h *hosts) on(host, command string) string {
	h.t.Helper()
	return h.must(30*time.Second, "ssh", "-F", filepath.Join(h.state, "ssh_config"), host, command)
}

// container is the name of a host to Docker.
func (h *hosts) container(i int) string { return labName + "-" + h.names[i] }

// docker does to containers what hands do to machines.
func (h *hosts) docker(args ...string) string {
	h.t.Helper()
	command := append([]string{"docker"}, args...)
	if os.Geteuid() != 0 {
		command = append([]string{"sudo", "-n"}, command...)
	}
	return h.must(time.Minute, command[0], command[1:]...)
}

// muster runs the installer on the lab's inventory.
func (h *hosts) muster(timeout time.Duration, args ...string) (string, error) {
	return h.try(timeout, "", filepath.Join(h.programs, "muster"), append(args, "-f", h.inventory)...)
}

// etcdctl runs the distribution's own client against some endpoints.
func (h *hosts) etcdctl(stdin, endpoints string, args ...string) (string, error) {
	pki := filepath.Join(h.state, "pki")
	return h.try(20*time.Second, stdin, "etcdctl", append([]string{
		"--endpoints", endpoints, "--command-timeout", "10s",
		"--cacert", filepath.Join(pki, "ca.crt"),
		"--cert", filepath.Join(pki, "healthcheck-client.crt"),
		"--key", filepath.Join(pki, "healthcheck-client.key"),
	}, args...)...)
}

// endpointStatus is an element of what "endpoint status -w json" prints.
type endpointStatus struct {
	Endpoint string
	Status   struct {
		Header struct {
			ClusterID uint64 `json:"cluster_id"`
			MemberID  uint64 `json:"member_id"`
		}
		Version string
		Leader  uint64
		DBSize  int64
	}
}

// status asks every endpoint, in the order of the hosts.
func (h *hosts) status() []endpointStatus {
	h.t.Helper()
	out, err := h.etcdctl("", h.endpoints(), "endpoint", "status", "-w", "json")
	if err != nil {
		h.t.Fatal(err)
	}
	var status []endpointStatus
	unmarshal(h.t, out, &status)
	if len(status) != len(h.names) {
		h.t.Fatalf("endpoint status answers for %d of %d endpoints", len(status), len(h.names))
	}
	return status
}

// eventually polls until check holds, and reports how long that took.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		<-tick.C
	}
}

func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }

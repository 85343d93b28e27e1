// Package etcd34 runs Debian's etcd 3.4 for tests: the last that serves version
// 2 and that Debian has, and so the judge of it.
package etcd34

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"muster/kvserver/internal/loopback"
)

// Program returns where the program is. The test is skipped when there is none,
// or another version; it fails in CI, which installs it, when there is none.
func Program(t testing.TB, name string) string {
	t.Helper()
	at := filepath.Join("/usr/bin", name)
	asking := exec.Command(at, "--version")            //nolint:gosec // one of two names
	asking.Env = append(os.Environ(), "ETCDCTL_API=2") // the client understands it there only
	version, err := asking.Output()
	if err == nil && strings.Contains(string(version), "ersion: 3.4.") {
		return at
	}
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%s: %v; make setup installs it", at, err)
	}
	t.Skipf("%s is not there, or not version 3.4; make setup installs it on Debian 12", at)
	return ""
}

// startTimeout is far more than etcd takes on a busy machine.
const startTimeout = time.Minute

// Start runs members of a new cluster that serves version 2 until the test
// ends, and returns their client URLs. Its first change of a key will have the
// index after those that etcd takes for its members, for their names and for the
// version that they have agreed on.
func Start(t testing.TB, peers ...string) (endpoints []string) {
	t.Helper()
	for range 5 {
		c := &cluster{peers: peers}
		c.launch(t)
		if c.ready(t) {
			return c.endpoints
		}
		c.kill() // a member has said its name twice, which it does on a busy machine
	}
	t.Fatal("etcd takes more indexes than it needs, each time")
	return nil
}

type cluster struct {
	peers, endpoints []string
	running          []*exec.Cmd
}

func (c *cluster) launch(t testing.TB) {
	t.Helper()
	program := Program(t, "etcd")
	var founders []string
	for i, peer := range c.peers {
		founders = append(founders, fmt.Sprintf("m%d=%s", i, peer))
	}
	for i, peer := range c.peers {
		endpoint := "http://" + loopback.Address(t)
		c.endpoints = append(c.endpoints, endpoint)
		var log bytes.Buffer
		command := exec.Command(program, //nolint:gosec // see Program
			"--enable-v2", "--name", fmt.Sprint("m", i), "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--logger", "zap", "--log-level", "error",
			"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(founders, ","))
		command.Stdout, command.Stderr = &log, &log
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		c.running = append(c.running, command)
		t.Cleanup(func() {
			_ = command.Process.Kill()
			_ = command.Wait() // killed
			if t.Failed() {
				t.Logf("etcd said: %s", log.String())
			}
		})
	}
}

// ready waits until all members have taken the indexes that they need. It is
// false when one has taken more.
func (c *cluster) ready(t testing.TB) bool {
	t.Helper()
	want := uint64(2*len(c.peers) + 1)
	for deadline := time.Now().Add(startTimeout); ; <-time.After(20 * time.Millisecond) {
		agreed := 0
		for _, endpoint := range c.endpoints {
			switch got := index(endpoint); {
			case got > want:
				return false
			case got == want:
				agreed++
			}
		}
		if agreed == len(c.peers) {
			return true
		}
		if time.Now().After(deadline) {
			t.Fatalf("etcd is not ready: %d of %d members", agreed, len(c.peers))
		}
	}
}

func (c *cluster) kill() {
	for _, command := range c.running {
		_ = command.Process.Kill()
		_, _ = command.Process.Wait() // killed
	}
}

// index is the index of version 2 at a member, 0 while it does not answer.
func index(endpoint string) uint64 {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get(endpoint + "/v2/keys/")
	if err != nil {
		return 0
	}
	_ = resp.Body.Close() // nothing was read from it
	index, _ := strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64)
	return index
}

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
// ends, and returns their client URLs. It returns when the cluster has agreed on
// its version, which takes an index of version 2.
func Start(t testing.TB, peers ...string) (endpoints []string) {
	t.Helper()
	program := Program(t, "etcd")
	var founders []string
	for i, peer := range peers {
		founders = append(founders, fmt.Sprintf("m%d=%s", i, peer))
	}
	for i, peer := range peers {
		endpoint := "http://" + loopback.Address(t)
		endpoints = append(endpoints, endpoint)
		var log bytes.Buffer
		command := exec.Command(program, //nolint:gosec // see Program
			"--enable-v2", "--name", fmt.Sprint("m", i), "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--logger", "zap", "--log-level", "error",
			"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(founders, ","))
		command.Stdout, command.Stderr = &log, &log
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = command.Process.Kill()
			_ = command.Wait() // killed
			if t.Failed() {
				t.Logf("etcd said: %s", log.String())
			}
		})
	}
	// Each member takes an index for itself and one for its name.
	want := fmt.Sprint(2*len(peers) + 1)
	for deadline := time.Now().Add(startTimeout); ; <-time.After(20 * time.Millisecond) {
		agreed := 0
		for _, endpoint := range endpoints {
			if index(endpoint) == want {
				agreed++
			}
		}
		if agreed == len(peers) {
			return endpoints
		}
		if time.Now().After(deadline) {
			t.Fatalf("etcd is not ready: %d of %d members", agreed, len(peers))
		}
	}
}

// index is the index of version 2 at a member, empty while it does not answer.
func index(endpoint string) string {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get(endpoint + "/v2/keys/")
	if err != nil {
		return ""
	}
	_ = resp.Body.Close() // nothing was read from it
	return resp.Header.Get("X-Etcd-Index")
}

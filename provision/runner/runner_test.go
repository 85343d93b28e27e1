package runner

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"muster/provision/desired"
)

// The functions share a shell with the scripts that call them: whatever such a
// script may have named its variables, they go on.
func TestFunctionsKeepTheirNames(t *testing.T) {
	for name, host := range hosts(t.TempDir()) {
		text := Functions(host) + ImageFunctions
		for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)=|^([a-z_]+)\(\)`).FindAllStringSubmatch(text, -1) {
			if set := m[1] + m[2]; !strings.HasPrefix(set, "unit_") && !strings.HasPrefix(set, "image_") {
				t.Errorf("%s: %s is set outside a function", name, set)
			}
		}
	}
}

func hosts(dir string) map[string]desired.Host {
	in := func(name string) string { return filepath.Join(dir, name) }
	return map[string]desired.Host{
		"systemd": {Units: []desired.Unit{{Name: "musterd.service"}}},
		"kubelet": {
			Units:  []desired.Unit{{Name: "etcd", Path: in("etcd.yaml"), Manifest: in("kubernetes/manifests/etcd.yaml")}},
			Member: desired.Member{DataDir: in("data")},
		},
	}
}

// TestPodInAShell runs the kubelet's functions in the shell of this machine,
// without a kubelet.
func TestPodInAShell(t *testing.T) {
	dir := t.TempDir()
	host := hosts(dir)["kubelet"]
	run := func(script string) string {
		t.Helper()
		out, err := exec.Command("sh", "-c", Functions(host)+"set -eu\n"+script).CombinedOutput() //nolint:gosec // our own script
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	has := func(want ...string) {
		t.Helper()
		facts := run("unit_facts")
		for _, w := range want {
			if !strings.Contains(facts, w+"\n") {
				t.Errorf("no %s in\n%s", w, facts)
			}
		}
	}
	unit := host.Units[0]
	if err := os.MkdirAll(filepath.Dir(unit.Manifest), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	has("LoadState=not-found", "ActiveState=inactive")
	write(unit.Manifest, "somebody else's")
	has("LoadState=not-found", "ActiveState=inactive")
	run("unit_stop")
	if _, err := os.Stat(unit.Manifest); err != nil {
		t.Errorf("somebody else's manifest: %v", err)
	}
	write(unit.Path, "ours")
	has("LoadState=loaded", "ActiveState=activating", "NeedDaemonReload=yes", "MainPID=0")
	run("unit_start")
	has("ActiveState=activating", "NeedDaemonReload=no", "UnitFileState=enabled")
	if info, err := os.Stat(unit.Manifest); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the manifest is %v, %v", info, err)
	}

	// A process that is the member's, and one that is another's.
	program := filepath.Join(dir, "etcd")
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, content, 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	start := func(dataDir string) *exec.Cmd {
		t.Helper()
		c := exec.Command(program, "-c", "read forever", "etcd", "--data-dir="+dataDir) //nolint:gosec // our own
		if _, err := c.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	end := func(c *exec.Cmd) {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	other := start(host.Member.DataDir + "-of-another")
	defer end(other)
	has("ActiveState=activating", "MainPID=0")
	member := start(host.Member.DataDir)
	has("ActiveState=active", "SubState=running", fmt.Sprintf("MainPID=%d", member.Process.Pid))
	if err := os.Remove(unit.Manifest); err != nil {
		t.Fatal(err)
	}
	has("ActiveState=deactivating")
	stopped := make(chan string)
	go func() { stopped <- run("unit_stop") }()
	end(member)
	if out := <-stopped; out != "" {
		t.Errorf("unit_stop: %s", out)
	}
	has("LoadState=loaded", "ActiveState=inactive", "MainPID=0")
}

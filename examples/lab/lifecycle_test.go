//go:build lab

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// gapGoal is how long clients should at most have to wait for a write while the
// cluster changes. It is reported, not enforced: a busy machine is no defect.
const gapGoal = 3 * time.Second

// life is a cluster that changes while a client writes.
type life struct {
	*hosts
	full   map[string]any // the inventory of all hosts
	args   []string       // of every muster command from now on
	writer *writer
}

// TestLifecycle takes a cluster through what happens to one in its life, with a
// client that writes all the time: no acknowledged write is lost, and after
// every step nothing is left to do. Its steps build on each other.
func TestLifecycle(t *testing.T) {
	l := &life{hosts: up(t, 5)}
	raw, err := os.ReadFile(l.inventory)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &l.full); err != nil {
		t.Fatal(err)
	}
	l.inventory = filepath.Join(l.state, "life.yaml")
	l.inventoryOf(1, nil)
	l.do("apply", "--yes")
	l.writer = startWriter(t, l.hosts)
	flags := map[string]any{"snapshot-count": "20000"}
	snapshot := filepath.Join(l.state, "life.db")
	var saved []int // acknowledged before the backup
	for _, step := range []struct {
		name string
		run  func()
	}{
		{"from 1 to 3 members", func() { l.inventoryOf(3, nil); l.do("apply", "--yes") }},
		{"from 3 to 5 members", func() { l.inventoryOf(5, nil); l.do("apply", "--yes") }},
		{"from 5 to 3 members", func() { l.inventoryOf(3, nil); l.do("apply", "--yes") }},
		{"another flag", func() { l.inventoryOf(3, flags); l.do("apply", "--yes") }},
		{"another binary", func() { l.args = []string{"--binary-dir", l.anotherBinary()}; l.do("apply", "--yes") }},
		{"new certificates", func() { l.do("certs", "renew", "--all") }},
		{"a new CA", func() { l.do("certs", "rotate-ca", "--yes") }},
		{"another machine for controller-1", func() {
			l.docker("rm", "-f", l.container(1))
			l.make()
			l.do("replace", "controller-1", "--yes")
		}},
		{"a backup", func() { saved = l.writer.acknowledged(); l.do("backup", snapshot) }},
	} {
		l.writer.begin()
		began := time.Now()
		step.run()
		took := time.Since(began)
		gap, writes := l.writer.end()
		t.Logf("%-34s %8s, %5d writes, longest gap %s%s", step.name, took.Round(10*time.Millisecond), writes, gap.Round(time.Millisecond), beyond(gap))
		l.nothingLeft(step.name)
	}
	l.writer.stop()
	l.writer.check("before the restore", l.writer.acknowledged())
	if _, err := l.etcdctl("", l.endpoints(3, 4), "put", "after-the-backup", "x"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l.do("restore", snapshot, "--yes-lose-writes", "lab")
	t.Logf("%-34s %8s", "a restore", time.Since(began).Round(10*time.Millisecond))
	l.nothingLeft("a restore")
	out, err := l.etcdctl("", l.endpoints(3, 4), "get", "after-the-backup")
	if err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("the cluster has what was written after the backup: %q, %v", out, err)
	}
	l.writer.check("after the restore", saved)
}

func beyond(gap time.Duration) string {
	if gap > gapGoal {
		return ", OVER its goal of " + gapGoal.String()
	}
	return ""
}

// inventoryOf writes the inventory of the first n hosts.
func (l *life) inventoryOf(n int, flags map[string]any) {
	l.t.Helper()
	document := map[string]any{}
	for key, value := range l.full {
		document[key] = value
	}
	controllers, ok := l.full["controllers"].([]any)
	if !ok || len(controllers) < n {
		l.t.Fatalf("the lab's inventory has the controllers %v", l.full["controllers"])
	}
	document["controllers"] = controllers[:n]
	if flags != nil {
		document["server"] = map[string]any{"flags": flags}
	}
	raw, err := yaml.Marshal(document)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(l.inventory, raw, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// do runs muster, which has to succeed.
func (l *life) do(args ...string) {
	l.t.Helper()
	if installs := args[0] == "apply" || args[0] == "replace" || args[0] == "restore" || args[0] == "plan"; installs {
		args = append(args, l.args...)
	}
	if _, err := l.muster(5*time.Minute, args...); err != nil {
		l.t.Fatal(err)
	}
}

// nothingLeft makes sure that the step has left nothing to do.
func (l *life) nothingLeft(after string) {
	l.t.Helper()
	out, err := l.muster(time.Minute, append([]string{"apply", "--yes"}, l.args...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	if !regexp.MustCompile(`\b0 changes`).MatchString(out) {
		l.t.Errorf("after %s an apply does not report 0 changes:\n%s", after, out)
	}
}

// anotherBinary makes a musterd that differs from the one that make build made,
// and returns the directory of it and musterctl.
func (l *life) anotherBinary() string {
	l.t.Helper()
	dir := l.t.TempDir()
	l.must(5*time.Minute, "go", "build", "-o", filepath.Join(dir, "musterd"), "muster/cmd/musterd")
	if err := os.Symlink(filepath.Join(l.programs, "musterctl"), filepath.Join(dir, "musterctl")); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

func key(n int) string { return fmt.Sprintf("life/%08d", n) }

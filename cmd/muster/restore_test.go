package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a command to its end and returns what it prints.
func (w *workstation) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := w.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("muster %s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return out.String()
}

// A restore that is killed at any moment is finished by the next one, and then
// there is one cluster, with what the snapshot held, and another one than before.
func (w *workstation) killedRestoring(t *testing.T) {
	random := w.random(t)
	file := w.hosts(t)
	first := w.mustApply(t, file)
	saved := filepath.Join(t.TempDir(), "saved.db")
	w.run(t, "backup", "-f", file, saved)
	restore := []string{"restore", saved, "--yes-lose-writes", "practice", "-f", file, "--binary-dir", w.programs, "-o", "json"}
	total, _, _ := w.killRun(t, -1, 0, restore...)
	id := ""
	for i := range (*kills + 29) / 30 {
		_, at, killed := w.killRun(t, random.IntN(total), time.Duration(random.Int64N(int64(momentAfter))), restore...)
		t.Logf("%2d killed=%t after %s", i, killed, at)
		out := strings.Split(strings.TrimSpace(w.run(t, restore...)), "\n")
		var result applyResult
		if err := json.Unmarshal([]byte(out[len(out)-1]), &result); err != nil || result.Kind != "result" || !result.Status.Healthy {
			t.Fatalf("the restore after a killed one ended with %s: %v", out[len(out)-1], err)
		}
		if result.Status.ClusterID == first.Status.ClusterID || id == result.Status.ClusterID {
			t.Errorf("the cluster is still %s", result.Status.ClusterID)
		}
		id = result.Status.ClusterID
	}
	if second := w.mustApply(t, file); second.Changes != 0 || second.Status.ClusterID != id {
		t.Errorf("%d changes were left", second.Changes)
	}
	for _, host := range []string{"controller-0", "controller-1", "controller-2"} {
		found, err := filepath.Glob(filepath.Join(filepath.Dir(file), host, "root/var/lib/muster.before-restore-*/member.json"))
		if err != nil || len(found) == 0 {
			t.Errorf("%s has not kept its old data: %v", host, err)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(file), host, "root/etc/muster/restore.json")); !os.IsNotExist(err) {
			t.Errorf("%s is still being restored: %v", host, err)
		}
	}
}

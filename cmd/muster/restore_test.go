package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/provision/snapshot"
	"muster/provision/step"
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

// What will be lost is told as far as it is known, and no further.
func TestLossText(t *testing.T) {
	const begins = "the snapshot ends at revision 40 and has 2 keys"
	const ends = "every client is cut off until the new cluster is up; the old data is moved aside:\n  m0: /var/lib/muster\n"
	ours := snapshot.Origin{Cluster: "prod", ClusterID: "a1"}
	for name, test := range map[string]struct {
		origin  snapshot.Origin
		current *step.Current
		begins  int64
		want    string
	}{
		"nobody answers": {ours, nil, 140, begins + " (from cluster prod, a1)\ncluster prod does not answer: what was written since the snapshot cannot be told, and WILL BE LOST\n" + ends},
		"written since": {ours, &step.Current{ClusterID: "a1", Revision: 43, Keys: 3}, 140,
			begins + " (from cluster prod, a1)\ncluster prod (a1) is at revision 43 and has 3 keys: 3 revisions since the snapshot WILL BE LOST\n" + ends},
		"nothing since": {ours, &step.Current{ClusterID: "a1", Revision: 40, Keys: 2}, 140,
			begins + " (from cluster prod, a1)\ncluster prod (a1) is at revision 40 and has 2 keys\n" + ends},
		"another cluster": {ours, &step.Current{ClusterID: "b2", Revision: 41, Keys: 1}, 140,
			begins + " (from cluster prod, a1)\ncluster prod (b2) is at revision 41 and has 1 key: THIS SNAPSHOT IS ANOTHER CLUSTER'S, and all of that WILL BE LOST\n" + ends},
		// It may have been restored from this one, at a revision far above.
		"of unknown origin": {snapshot.Origin{}, &step.Current{ClusterID: "b2", Revision: 1000000041, Keys: 1}, 40,
			begins + "\ncluster prod (b2) is at revision 1000000041 and has 1 key: whatever of that the snapshot does not have WILL BE LOST\n" + ends},
		"a revision that was seen": {ours, &step.Current{ClusterID: "b2", Revision: 143, Keys: 1}, 140,
			begins + " (from cluster prod, a1)\ncluster prod (b2) is at revision 143 and has 1 key: THIS SNAPSHOT IS ANOTHER CLUSTER'S, and all of that WILL BE LOST\n" +
				"the new cluster would begin at revision 140, which clients have seen already: say --bump-revision 1000000103, or restart every client\n" + ends},
	} {
		got := lossText(step.Loss{
			Begins: test.begins, Cluster: "prod", Snapshot: snapshot.Contents{Revision: 40, Keys: 2}, Origin: test.origin, Current: test.current,
			Aside: []step.Aside{{Host: "m0", Dir: "/var/lib/muster"}},
		})
		if got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, test.want)
		}
	}
}

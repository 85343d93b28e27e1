package provision

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/provision/inventory"
	"muster/provision/snapshot"
	"muster/provision/step"
)

// freePorts are so many on which nothing listens, all different.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // it was only for its port
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// TestTwoClustersOnTheSameMachines: the second one, for events, has units, files,
// an account and data of its own, and nothing that is done to one is felt by the
// other.
func TestTwoClustersOnTheSameMachines(t *testing.T) {
	l := newLab(t, 3)
	l.load("")
	main := l.cluster
	ports := freePorts(t, 9)
	events := func(extra string) *inventory.Cluster {
		t.Helper()
		var b strings.Builder
		fmt.Fprintf(&b, "cluster: events\ninstance: events\n%sssh:\n  user: root\n  identityFile: %s\ncontrollers:\n", extra, filepath.Join(l.dir, "id"))
		for i, h := range l.hosts {
			fmt.Fprintf(&b, "  - name: events-%d\n    address: 127.0.0.1\n    ssh: {port: %d, hostKey: %q}\n    server: {clientPort: %d, peerPort: %d, metricsPort: %d}\n",
				i, h.Ports().SSH, h.Fingerprint(), ports[3*i], ports[3*i+1], ports[3*i+2])
		}
		l.loadText(b.String())
		return l.cluster
	}
	second := events("")
	if err := inventory.Together([]*inventory.Cluster{main, second}); err != nil {
		t.Fatal(err)
	}
	use := func(c *inventory.Cluster) *lab {
		l.cluster = c
		return l
	}
	first := use(main).mustApply().Status.ClusterID
	if other := use(second).mustApply().Status.ClusterID; other == first {
		t.Fatalf("they are one cluster, %s", first)
	}
	use(main).mustBeDone()
	use(second).mustBeDone()
	got := l.sh(0, `ls /etc/systemd/system /usr/local/bin; stat -c '%U %n' /var/lib/muster /var/lib/muster-events; ls /etc/muster-events`)
	for _, want := range []string{"musterd.service", "musterd-events.service", "muster /var/lib/muster\n", "muster-events /var/lib/muster-events\n", "cluster.json"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, got)
		}
	}

	processes := l.processes()
	second = events("backup: {schedule: daily, directory: /var/backups/events}\nserver:\n  flags: {heartbeat-interval: \"150\"}\n")
	l.mustApply()
	restarted := slices.DeleteFunc(l.events.texts(step.Changed), func(text string) bool { return !strings.HasSuffix(text, ": restarted musterd-events.service") })
	if len(restarted) != 3 {
		t.Errorf("restarted %q", restarted)
	}
	l.mustBeDone()
	if now := l.processes(); !slices.Equal(now, processes) {
		t.Errorf("members of the other cluster were restarted: %q, then %q", processes, now)
	}
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "events.db"})
	l.put(0, "k1", "new")
	l.mustRestore(saved.Path, agree)
	if keys := l.keys(1); keys["k1"] != "old" {
		t.Errorf("the restored cluster has %v", keys)
	}
	use(main).mustBeDone()

	use(second).mustReset(ResetOptions{Data: true})
	// What the restore has put aside stays.
	if left := l.sh(1, "ls -A /etc /etc/systemd/system /usr/local/bin /var/lib | grep -v before-restore; getent passwd muster-events || :"); strings.Contains(left, "events") {
		t.Errorf("of the second cluster is left\n%s", left)
	}
	if now := use(main).status(); now.ClusterID != first || !now.Healthy {
		t.Errorf("the other cluster is %+v", now)
	}
	l.mustBeDone()
	if now := l.processes(); !slices.Equal(now, processes) {
		t.Errorf("members of the other cluster were restarted: %q, then %q", processes, now)
	}
}

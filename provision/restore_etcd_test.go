package provision

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/provision/snapshot"
	"muster/provision/step"
)

// A cluster of etcd's own server is restored by etcd's own tool; with another
// server in the inventory, restoring changes a cluster from etcd to musterd,
// and back.
func TestRestoreOfEtcd(t *testing.T) {
	l := newLab(t, *etcdMembers)
	etcd := "server: {binary: " + buildEtcd(t) + "}\n"
	l.load(etcd)
	before := l.mustApply().Status.ClusterID
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	l.put(0, "k1", "new")
	ids := map[string]bool{before: true}
	servers := []string{etcd, ""}
	if *etcdMembers > 1 {
		servers = append(servers, etcd)
	}
	for i, server := range servers {
		if i > 0 { // with what is there, rather than with what was saved first
			l.put(0, "k1", "old")
			saved = l.mustBackup(snapshot.Place{Dir: l.dir, File: strings.Repeat("s", i+1) + ".db"})
		}
		l.load(server)
		report := l.mustRestore(saved.Path, agree)
		if ids[report.Status.ClusterID] {
			t.Errorf("the cluster is %s again", report.Status.ClusterID)
		}
		ids[report.Status.ClusterID] = true
		for host := range l.hosts {
			if keys := l.keys(host); len(keys) != 1 || keys["k1"] != "old" {
				t.Errorf("after %d restores controller-%d has %v", i+1, host, keys)
			}
			root := l.hosts[host].Path("/var/lib")
			if _, err := os.Stat(filepath.Join(root, "muster/member.json")); (err == nil) != (server == "") {
				t.Errorf("another server than the inventory's has made the data: %v", err)
			}
			if _, err := os.Stat(filepath.Join(root, "muster.restoring")); !os.IsNotExist(err) {
				t.Errorf("the unpacked snapshot is left: %v", err)
			}
			if found := l.asides(host); len(found) != i+1 {
				t.Errorf("controller-%d keeps %q", host, found)
			}
		}
		if again := l.mustApply(); again.Changes != 0 || again.Status.ClusterID != report.Status.ClusterID {
			t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
		}
	}
}

func TestRestoreOfEtcdInterrupted(t *testing.T) {
	if *etcdMembers < 3 {
		t.Skip("takes a minute; say -etcd-members 3")
	}
	l := newLab(t, 3)
	l.load("server: {binary: " + buildEtcd(t) + "}\n")
	l.interruptRestores()
}

package provision

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/pki"
	"muster/provision/member"
	"muster/provision/practice"
	"muster/provision/snapshot"
	"muster/provision/step"
)

// client talks to the member on a host, as a program on this machine.
func (l *lab) client(host int) *clientv3.Client {
	l.t.Helper()
	ca, pair, err := pki.OpenClient(l.cluster.PKI.Dir)
	if err != nil {
		l.t.Fatal(err)
	}
	config, err := member.TLS(ca, pair)
	if err != nil {
		l.t.Fatal(err)
	}
	client, err := member.Connect(l.cluster.Hosts[host].ClientURL(), config, new(net.Dialer).DialContext)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = client.Close() })
	return client
}

func (l *lab) put(host int, key, value string) int64 {
	l.t.Helper()
	response, err := l.client(host).Put(l.context(), key, value)
	if err != nil {
		l.t.Fatal(err)
	}
	return response.Header.Revision
}

// awaitNoLeader waits until the member on a host has noticed that it is alone.
func (l *lab) awaitNoLeader(host int) {
	l.t.Helper()
	client := l.client(host)
	for ctx := l.context(); ; {
		status, err := client.Status(ctx, client.Endpoints()[0])
		if err != nil {
			l.t.Fatal(err)
		}
		if status.Leader == 0 {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			l.t.Fatal("the member goes on with its leader")
		}
	}
}

func (l *lab) backup(place snapshot.Place) (*snapshot.Saved, error) {
	l.t.Helper()
	l.events.reset()
	return Backup(l.context(), l.cluster, l.opts, place)
}

func (l *lab) mustBackup(place snapshot.Place) *snapshot.Saved {
	l.t.Helper()
	saved, err := l.backup(place)
	if err != nil {
		l.fatal(err)
	}
	return saved
}

func TestBackup(t *testing.T) {
	l := newLab(t, 3)
	l.opts.SSH.RetryFor = 100 * time.Millisecond
	place := snapshot.Place{Dir: filepath.Join(l.dir, "backups"), Keep: 1}
	if _, err := l.backup(place); err == nil || !strings.Contains(err.Error(), l.cluster.PKI.Dir) {
		t.Errorf("before there is a cluster: %v", err)
	}
	applied := l.mustApply().Status
	revision := l.put(0, "k", "v")
	first := l.mustBackup(place)
	if first.Revision != revision || first.Keys != 1 || first.ClusterID != applied.ClusterID || first.Cluster != "test" {
		t.Errorf("saved %+v; revision %d, cluster %s", first.Manifest, revision, applied.ClusterID)
	}
	for _, m := range applied.Members {
		if m.Name == first.Member && (m.Leader || m.ID != first.MemberID) {
			t.Errorf("saved through %s %s, and the followers were there", first.Member, first.MemberID)
		}
	}
	if changed := l.events.texts(step.Changed); len(changed) > 0 {
		t.Errorf("changes: %q", changed)
	}

	// One host is out of reach, a member is what is left: the write before is
	// in it all the same.
	l.hosts[0].Inject(practice.Faults{RefuseConnections: true})
	revision = l.put(1, "k2", "v")
	second := l.mustBackup(place)
	if second.Revision != revision || len(second.Removed) != 1 || second.Removed[0] != first.Path {
		t.Errorf("saved %+v, removed %q", second.Manifest, second.Removed)
	}
	if warnings := l.events.texts(step.Warning); len(warnings) != 1 || !strings.HasPrefix(warnings[0], "controller-0: ") {
		t.Errorf("warnings: %q", warnings)
	}

	// Without a leader there is nothing to be sure of.
	l.hosts[0].Inject(practice.Faults{})
	l.sh(1, "systemctl stop musterd")
	l.sh(2, "systemctl stop musterd")
	l.awaitNoLeader(0)
	if _, err := l.backup(place); err == nil || !strings.Contains(err.Error(), "no member answers") {
		t.Errorf("without members: %v", err)
	}
	// No host at all.
	for _, h := range l.hosts {
		h.Inject(practice.Faults{RefuseConnections: true})
	}
	if _, err := l.backup(place); err == nil || !strings.Contains(err.Error(), "3 hosts failed") {
		t.Errorf("without hosts: %v", err)
	}
	if left, err := os.ReadDir(place.Dir); err != nil || len(left) != 2 {
		t.Errorf("the directory holds %v, %v", left, err)
	}
}

// What keeps a snapshot from being written is told once, not once a member.
func TestBackupToAPlaceThatIsTaken(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	place := snapshot.Place{Dir: l.dir, File: "s.db"}
	l.mustBackup(place)
	_, err := l.backup(place)
	if err == nil || !strings.Contains(err.Error(), "s.db exists; name another file") {
		t.Errorf("error %v", err)
	}
	if f, ok := err.(*Failure); ok && len(f.Diagnoses) > 0 { //nolint:errorlint // the outermost one
		t.Errorf("the hosts were asked about it: %+v", f.Diagnoses)
	}
}

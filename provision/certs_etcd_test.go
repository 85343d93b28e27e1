package provision

import (
	"flag"
	"testing"

	"muster/pki"
)

var etcdMembers = flag.Int("etcd-members", 1, "how many members of etcd's own server have their CA replaced; 3 take a minute")

// buildEtcd makes etcd's own server from the module that the tests compare
// with.
func buildEtcd(t *testing.T) string {
	t.Helper()
	path, err := etcdBinary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// etcd reads its CA bundle once, when it starts: its members are restarted
// where a proof fails, one at a time, and its leaves need no restart.
func TestRotateCAOfEtcd(t *testing.T) {
	l := newLab(t, *etcdMembers)
	l.load("server: {binary: " + buildEtcd(t) + "}\n")
	l.mustApply()
	w := l.startWriter()
	before := l.processes()
	l.events.reset()
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{All: true}); err != nil {
		l.fatal(err)
	}
	renewed := l.processes()
	for i := range before {
		if renewed[i] != before[i] {
			t.Errorf("the renewal restarted a member: %q, then %q", before[i], renewed[i])
		}
	}
	if report := l.rotate(pki.Trusting); report.Phase != pki.Trusting {
		t.Errorf("%+v", report)
	}
	trusting := l.processes()
	for i := range renewed {
		if trusting[i] == renewed[i] {
			t.Errorf("a member that does not read its CA again was not restarted: %q", renewed[i])
		}
	}
	if report := l.rotate(""); report.Phase != pki.Settled || !report.Status.Healthy {
		t.Errorf("%+v", report)
	}
	w.stop()
	if c := l.checkCertificates(); !c.OK {
		t.Errorf("in the end: %q", c.problems())
	}
	l.mustChangeNothing()
	if *etcdMembers == 1 {
		return
	}
	// It opens no port for clients before it has found the other members.
	l.expire(false)
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{}); err != nil {
		l.fatal(err)
	}
	l.expire(true)
	if report := l.rotate(""); report.Phase != pki.Settled || !report.Status.Healthy {
		t.Errorf("%+v", report)
	}
	l.mustChangeNothing()
}

package provision

import (
	"os"
	"slices"
	"strings"
	"testing"

	"muster/pki"
)

func (l *lab) checkCertificates() *CertificateCheck {
	l.t.Helper()
	c, err := CheckCertificates(l.context(), l.cluster, l.opts)
	if err != nil {
		l.fatal(err)
	}
	return c
}

// problems are all that a check complains about, one line each.
func (c *CertificateCheck) problems() []string {
	all := slices.Clone(c.Problems)
	for _, f := range c.Certificates {
		for _, p := range f.Problems {
			all = append(all, strings.TrimSpace(f.Place+" "+f.On+" "+f.Path+": "+p))
		}
	}
	return all
}

// A check finds what is wrong with certificates in every place, and touches
// none of them.
func TestCheckCertificates(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	c := l.checkCertificates()
	if !c.OK || c.CAKey != "in clear" || c.Phase != pki.Settled {
		t.Errorf("a good cluster: %q, %+v", c.problems(), c)
	}
	// A CA and 8 leaves here; a CA, 3 leaves and 2 endpoints or more per host.
	if n := len(c.Certificates); n < 9+3*6 {
		t.Errorf("%d certificates were looked at", n)
	}
	for _, f := range c.Certificates {
		if f.Role == pki.Server && (len(f.SANs) == 0 || f.DaysLeft < 360 || f.DaysLeft > 365 || f.Issuer == "") {
			t.Errorf("%+v", f)
		}
	}
	l.sh(0, "chmod 0644 /etc/muster/pki/peer.key")
	l.sh(1, "cat /etc/muster/pki/peer.crt > /tmp/peer.crt; cat /etc/muster/pki/healthcheck-client.crt > /etc/muster/pki/server.crt; rm /etc/muster/pki/peer.key; echo > /etc/muster/pki/ca.crt")
	l.sh(2, "systemctl stop musterd")
	if err := os.Remove(l.cluster.PKI.Dir + "/apiserver-etcd-client.key"); err != nil {
		t.Fatal(err)
	}
	before := l.snapshot()
	c = l.checkCertificates()
	found := strings.Join(c.problems(), "\n")
	for _, want := range []string{
		"host controller-0 /etc/muster/pki/peer.crt: its key has the mode 0644 and the owner root:muster, not 0640 and root:muster",
		`host controller-1 /etc/muster/pki/server.crt: made for "kube-etcd-healthcheck-client"`,
		"host controller-1 /etc/muster/pki/peer.crt: its key is missing",
		"host controller-1 /etc/muster/pki/ca.crt: holds no certificate",
		"served controller-1 hosts/controller-1/server.crt: it is not the one that is installed",
		"controller-2: handshake with " + l.cluster.Hosts[2].PeerURL(),
		"workstation  apiserver-etcd-client.crt: its key is missing",
	} {
		if !strings.Contains(found, want) {
			t.Errorf("not found: %s", want)
		}
	}
	if c.OK || t.Failed() {
		t.Errorf("found:\n%s", found)
	}
	for i, h := range l.hosts {
		if after := files(t, h); !slices.Equal(before[i], after) {
			t.Errorf("%s was changed:\nbefore %q\nafter  %q", h.Name(), before[i], after)
		}
	}
}

// A lost directory comes back from the hosts, but for the CA's key; a new CA
// then makes the cluster whole again, without a pause.
func TestLostDirectoryIsRecovered(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	before := l.checkCertificates()
	if err := os.RemoveAll(l.cluster.PKI.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateCA(l.context(), l.cluster, l.opts, ""); err == nil || !strings.Contains(err.Error(), "bring that directory back") {
		t.Errorf("without a directory: %v", err)
	}
	recovery, err := RecoverCertificates(l.context(), l.cluster, l.opts)
	if err != nil {
		l.fatal(err)
	}
	if want := []string{"apiserver-etcd-client.crt (missing)", "ca.key"}; !slices.Equal(recovery.Missing, want) || len(recovery.Changes) != 8 {
		t.Errorf("%+v", recovery)
	}
	after := l.checkCertificates()
	for i, f := range after.Certificates {
		if f.Path != "apiserver-etcd-client.crt" && f.Serial != before.Certificates[i].Serial {
			t.Errorf("%s on %s is %s and was %s", f.Path, f.On, f.Serial, before.Certificates[i].Serial)
		}
	}
	if _, err := l.apply(); err == nil || !strings.Contains(err.Error(), "ca.key is missing") {
		t.Errorf("apply without the CA's key: %v", err)
	}
	processes := l.processes()
	if report := l.rotate(""); report.Phase != pki.Settled || !report.Status.Healthy {
		t.Errorf("%+v", report)
	}
	if now := l.processes(); !slices.Equal(now, processes) {
		t.Errorf("members were restarted: %q, then %q", processes, now)
	}
	if c := l.checkCertificates(); !c.OK {
		t.Errorf("in the end: %q", c.problems())
	}
	l.mustChangeNothing()
}

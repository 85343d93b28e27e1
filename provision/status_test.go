package provision

import (
	"strings"
	"testing"
	"time"

	"muster/provision/practice"
)

func (l *lab) status() *Status {
	l.t.Helper()
	s, err := GetStatus(l.context(), l.cluster, l.opts)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func TestStatus(t *testing.T) {
	l := newLab(t, 3)
	if _, err := GetStatus(l.context(), l.cluster, l.opts); err == nil || !strings.Contains(err.Error(), l.cluster.PKI.Dir) {
		t.Fatalf("without certificates: error %v", err)
	}
	applied := l.mustApply().Status
	s := l.status()
	if !s.Healthy || s.ClusterID != applied.ClusterID || s.Leader == "" || len(s.Members) != 3 {
		t.Fatalf("%+v", s)
	}
	var leaders int
	for i, m := range s.Members {
		if m.Leader {
			leaders++
		}
		if !m.Healthy || m.Problem != "" || m.ID != applied.Members[i].ID || m.Version == "" || m.RaftIndex == 0 || m.RaftTerm == 0 || m.DBSize == 0 {
			t.Errorf("%+v", m)
		}
		if !m.CertificateExpires.Equal(applied.Members[i].CertificateExpires) || time.Until(m.CertificateExpires) < 300*24*time.Hour {
			t.Errorf("%s serves with a certificate until %v, and until %v was made", m.Name, m.CertificateExpires, applied.Members[i].CertificateExpires)
		}
	}
	if leaders != 1 {
		t.Errorf("%d leaders", leaders)
	}

	// One host is down: the others are still reported, and why it is not.
	l.hosts[1].Inject(practice.Faults{RefuseConnections: true})
	s = l.status()
	if s.Healthy || s.ClusterID != applied.ClusterID {
		t.Errorf("with a host down: %+v", s)
	}
	for i, m := range s.Members {
		if want := i != 1; m.Healthy != want {
			t.Errorf("%s healthy: %v, want %v (%s)", m.Name, m.Healthy, want, m.Problem)
		}
	}
	if p := s.Members[1].Problem; !strings.HasPrefix(p, "host not reached: controller-1") {
		t.Errorf("problem %q", p)
	}
	l.hosts[1].Inject(practice.Faults{})

	// One member is stopped on a host that is up.
	l.sh(2, "systemctl stop musterd")
	s = l.status()
	if p := s.Members[2].Problem; s.Healthy || !strings.Contains(p, "musterd.service: ActiveState=inactive") {
		t.Errorf("with a member stopped: %+v", s)
	}
	l.sh(2, "systemctl start musterd")
	if report := l.mustApply(); report.Changes != 0 {
		t.Errorf("%d changes after everything is up again", report.Changes)
	}
	if s := l.status(); !s.Healthy {
		t.Errorf("%+v", s)
	}
}

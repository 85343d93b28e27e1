package provision

import (
	"context"
	"strings"
	"testing"
	"time"

	"muster/provision/practice"
)

// newStackedLab is a lab whose hosts have a kubelet.
func newStackedLab(t *testing.T, n int) *lab {
	t.Helper()
	l := newLab(t, n, func(_ int, o *practice.HostOptions) { o.Kubelet = true })
	l.load("topology: stacked\n")
	return l
}

func TestStackedFromNothing(t *testing.T) {
	t.Parallel()
	l := newStackedLab(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	report := l.mustApply()
	if report.Changes == 0 {
		t.Fatal("the first apply changed nothing")
	}
	for _, h := range l.hosts {
		out, status := h.Console(ctx, `stat -c '%a %U %n' /etc/kubernetes/manifests/etcd.yaml /var/lib/etcd /etc/kubernetes/pki/etcd/server.key /etc/kubernetes/pki/apiserver-etcd-client.key; ls /etc/systemd/system`)
		if want := "600 root /etc/kubernetes/manifests/etcd.yaml\n700 root /var/lib/etcd\n600 root /etc/kubernetes/pki/etcd/server.key\n600 root /etc/kubernetes/pki/apiserver-etcd-client.key\n"; status != 0 || !strings.HasPrefix(out, want) || strings.Contains(out, "muster") {
			t.Errorf("%s: %s", h.Name(), out)
		}
	}
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("the second apply made %d changes", again.Changes)
	}
}

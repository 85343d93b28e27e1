package kubernetes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nextServer makes a server that is another one, and works as before.
func (m *machines) nextServer() string {
	m.t.Helper()
	path := filepath.Join(m.dir, "musterd-next")
	// What follows the last section of a program has no effect on it.
	server := append(m.read(filepath.Join(programs, "musterd")), "next"...)
	if err := os.WriteFile(path, server, 0o700); err != nil { //nolint:gosec // it is a program
		m.t.Fatal(err)
	}
	return path
}

// dayTwo takes the members through what happens to them later, each on the
// kubelets' own terms: another server, new certificates, a backup, a member whose
// data is gone, a restore. Kubernetes has what it wrote all the while, and after
// the restore what was saved, without anything of it being restarted by hand.
func (m *machines) dayTwo(t *testing.T) {
	m = m.in(t)
	last := m.names[len(m.names)-1]
	const kubectl = "kubectl --kubeconfig /etc/kubernetes/admin.conf -n default "
	m.mustOn(m.names[0], kubectl+"create configmap day-two --from-literal=a=b")
	inventory := string(m.read(filepath.Join(m.dir, "muster.yaml")))
	step := func(what, script string) {
		t.Helper()
		began := time.Now()
		out := m.types(15*time.Minute, script)
		t.Logf("%s: %.1fs\n%s", what, time.Since(began).Seconds(), out)
		m.healthy()
		m.checkPlan()
		for _, name := range m.names {
			eventually(t, podsDelay, "what was written is read on "+name, func() error {
				_, err := m.on(name, kubectl+"get configmap day-two")
				return err
			})
		}
	}

	before := m.images(last)
	m.write("muster.yaml", strings.Replace(inventory, "server:\n", "server:\n  binary: "+m.nextServer()+"\n", 1), 0o600)
	step("another server", "muster apply --yes")
	if after := m.images(last); after == before || strings.Count(after, "\n") != 1 {
		t.Errorf("the images are %q, were %q", after, before)
	}

	const readCertificate = "cat /etc/kubernetes/pki/etcd/server.crt"
	old := m.mustOn(last, readCertificate)
	step("new certificates", "muster certs renew --all")
	if m.mustOn(last, readCertificate) == old {
		t.Error("the certificate is the old one")
	}
	step("a backup", "muster backup saved.db")

	m.mustOn(last, "rm /etc/kubernetes/manifests/etcd.yaml && while pgrep -x etcd >/dev/null; do sleep 0.2; done && rm -rf /var/lib/etcd")
	if out, err := m.administrator(time.Minute, "muster apply --yes"); err == nil || !strings.Contains(err.Error(), "muster replace "+last) {
		t.Errorf("apply over lost data: %v\n%s", err, out)
	}
	step("a member whose data was lost", "muster replace "+last+" --yes")

	m.mustOn(m.names[0], kubectl+"create configmap written-since --from-literal=a=b")
	step("a restore", "muster restore saved.db --yes-lose-writes kubernetes")
	for _, name := range m.names {
		eventually(t, podsDelay, "the kube-apiserver of "+name+" knows what was lost", func() error {
			// From what it keeps in memory, as for whoever watches.
			list, err := m.on(name, kubectl+"get --raw '/api/v1/namespaces/default/configmaps?resourceVersion=0'")
			if err == nil && (strings.Contains(list, "written-since") || !strings.Contains(list, "day-two")) {
				err = errors.New(list)
			}
			return err
		})
	}
}

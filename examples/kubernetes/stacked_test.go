package kubernetes

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestStacked is the walk-through of examples/kubernetes-stacked as it is
// written: three machines, kubelets, etcd's pods by muster, kube-apiservers beside
// them. Then a member's process and a machine die.
func TestStacked(t *testing.T) {
	if *without["stacked"] {
		t.Skip("left out by -without-stacked")
	}
	page := readWalkthrough(t, "../kubernetes-stacked/README.md")
	m := startMachines(t, withContainerd, 3)
	m.write("muster.yaml", page.file(t, "yaml", "cluster:"), 0o600)
	m.write("kubeadm.yaml", page.file(t, "yaml", "apiVersion: kubeadm.k8s.io/"), 0o600)
	said := map[string]string{}
	for _, b := range page.blocks {
		if b.language != "sh" {
			continue
		}
		began := time.Now()
		out, err := m.administrator(10*time.Minute, b.text)
		if err != nil {
			for _, name := range m.names {
				m.explain(name)
			}
			t.Fatalf("%s: %v", b.section, err)
		}
		t.Logf("%s (%.1fs)\n%s\n%s", b.section, time.Since(began).Seconds(), b.text, out)
		said[b.section] += out
	}
	m.checkPicture(said["What is in it"])
	m.checkHint(said["etcd"])
	m.checkPlan()
	m.checkFiles()
	t.Run("a process ends", func(t *testing.T) { m.processEnds(t) })
	t.Run("a machine is away", func(t *testing.T) { m.machineAway(t) })
	t.Run("day two", func(t *testing.T) { m.dayTwo(t) })
}

var (
	podLine = regexp.MustCompile(`(?m)^(etcd|kube-apiserver)-(\S+)\s+1/1\s+Running\s`)
	keyLine = regexp.MustCompile(`(?m)^/registry/\S+$`)
)

// checkPicture reads what the commands of an administrator printed: pods, every
// key, ten keys, members.
func (m *machines) checkPicture(out string) {
	m.t.Helper()
	var pods []string
	for _, found := range podLine.FindAllStringSubmatch(out, -1) {
		pods = append(pods, found[1]+"-"+found[2])
	}
	var want []string
	for _, name := range m.names {
		want = append(want, "etcd-"+name)
	}
	for _, name := range m.names {
		want = append(want, "kube-apiserver-"+name)
	}
	if !slices.Equal(pods, want) {
		m.t.Errorf("the pods that run are %v, want %v", pods, want)
	}
	keys := keyLine.FindAllString(out, -1)
	for _, part := range []string{"minions", "pods", "configmaps", "clusterroles", "clusterrolebindings", "secrets", "namespaces"} {
		if !slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, "/registry/"+part+"/") }) {
			m.t.Errorf("no key below /registry/%s", part)
		}
	}
	// The second command printed the first ten of what the first one had.
	if n := len(keys); n < 110 || !slices.Equal(keys[n-10:], keys[:10]) || !slices.IsSorted(keys[:n-10]) {
		m.t.Errorf("%d keys, want all of them in order and the first ten again", n)
	}
	if started := strings.Count(out, "started"); started != len(m.names) {
		m.t.Errorf("%d members have started, want %d", started, len(m.names))
	}
}

var hint = regexp.MustCompile(`or on a controller, as root:\n *(etcdctl .*)\n`)

// checkHint types on a machine what muster says can be typed there.
func (m *machines) checkHint(out string) {
	m.t.Helper()
	found := hint.FindStringSubmatch(out)
	if found == nil {
		m.t.Errorf("muster apply does not say how to talk to the cluster:\n%s", out)
		return
	}
	if members := m.mustOn(m.names[0], found[1]); strings.Count(members, "started") != len(m.names) {
		m.t.Errorf("%s: %s", found[1], members)
	}
}

// checkPlan: a kubelet, kubeadm and a kube-apiserver at work leave nothing for
// muster to do.
func (m *machines) checkPlan() {
	m.t.Helper()
	if out, err := m.administrator(time.Minute, "muster plan"); err != nil {
		m.t.Errorf("muster would change something: %v", err)
	} else {
		m.t.Logf("muster plan: %s", out)
	}
}

// checkFiles: modes and owners are kubeadm's, and no unit was installed.
func (m *machines) checkFiles() {
	m.t.Helper()
	for _, name := range m.names {
		out := m.mustOn(name, `stat -c '%a %U:%G %n' /etc/kubernetes/manifests/*.yaml /etc/kubernetes/pki/etcd/*.key /etc/kubernetes/pki/*.key /var/lib/etcd; ls /etc/systemd/system`)
		for line := range strings.Lines(out) {
			mode, file, isFile := strings.Cut(strings.TrimSpace(line), " root:root ")
			switch {
			case !isFile && (strings.Contains(line, "etcd") || strings.Contains(line, "muster")):
				m.t.Errorf("%s: a unit was installed: %s", name, line)
			case isFile && file == "/var/lib/etcd" && mode != "700", isFile && file != "/var/lib/etcd" && mode != "600":
				m.t.Errorf("%s: %s", name, line)
			}
		}
	}
}

// processEnds kills the process of the first member. The kubelet starts it again.
func (m *machines) processEnds(t *testing.T) {
	m = m.in(t)
	restarts := func() (string, error) {
		return m.on(m.names[0], "kubectl get pod -n kube-system etcd-"+m.names[0]+" -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}'")
	}
	if out := m.mustOn(m.names[0], "pkill -9 -x etcd"); out != "" {
		t.Log(out)
	}
	eventually(t, podsDelay, "the pod runs again", func() error {
		out, err := restarts()
		if err == nil && out != "1 true" {
			err = fmt.Errorf("restarts and readiness: %q", out)
		}
		return err
	})
	m.healthy()
	m.checkPlan()
}

var leaderLine = regexp.MustCompile(`(?m)^(\S+) .* leader `)

// machineAway freezes the machine whose member leads. The others go on, and it
// comes back.
func (m *machines) machineAway(t *testing.T) {
	m = m.in(t)
	found := leaderLine.FindStringSubmatch(m.types(time.Minute, "muster status"))
	if found == nil {
		t.Fatal("muster status shows no leader")
	}
	away := found[1]
	other := m.names[(slices.Index(m.names, away)+1)%len(m.names)]
	const kubectl = "kubectl --kubeconfig /etc/kubernetes/admin.conf -n default "
	m.docker("pause", m.container(away))
	thaw := sync.OnceFunc(func() { m.docker("unpause", m.container(away)) })
	defer thaw()
	eventually(t, podsDelay, "the others take writes", func() error {
		_, err := m.on(other, kubectl+"create configmap written-meanwhile --from-literal=a=b || "+kubectl+"get configmap written-meanwhile")
		return err
	})
	thaw()
	eventually(t, podsDelay, "the machine has what was written", func() error {
		_, err := m.on(away, kubectl+"get configmap written-meanwhile")
		return err
	})
	m.healthy()
}

// in is the machines for a part of the test.
func (m *machines) in(t *testing.T) *machines {
	part := *m
	part.t = t
	return &part
}

// healthy waits until muster says of every member that it is well.
func (m *machines) healthy() {
	m.t.Helper()
	eventually(m.t, podsDelay, "muster status", func() error {
		out, err := m.administrator(time.Minute, "muster status")
		if err == nil && strings.Count(out, " ok ") != len(m.names) {
			err = fmt.Errorf("not every member is well:\n%s", out)
		}
		return err
	})
}

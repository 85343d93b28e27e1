package provision

import (
	"bytes"
	"context"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/journal"
	"muster/provision/plan"
	"muster/provision/practice"
	"muster/provision/snapshot"
	"muster/provision/step"
)

// newStackedLab is a lab whose hosts have a kubelet.
func newStackedLab(t *testing.T, n int) *lab {
	t.Helper()
	l := newLab(t, n, func(_ int, o *practice.HostOptions) { o.Kubelet = true })
	l.load("topology: stacked\n")
	return l
}

const stacked = "topology: stacked\n"

func TestStackedFromNothing(t *testing.T) {
	l := newStackedLab(t, 3)
	l.mustApply()
	for i, h := range l.hosts {
		got := l.sh(i, `stat -c '%a %U %n' /etc/kubernetes/manifests/etcd.yaml /var/lib/etcd /etc/kubernetes/pki/etcd/server.key /etc/kubernetes/pki/apiserver-etcd-client.key; ls /etc/systemd/system`)
		want := "600 root /etc/kubernetes/manifests/etcd.yaml\n700 root /var/lib/etcd\n600 root /etc/kubernetes/pki/etcd/server.key\n600 root /etc/kubernetes/pki/apiserver-etcd-client.key\n"
		if !strings.HasPrefix(got, want) || strings.Contains(got, "muster") {
			t.Errorf("%s: %s", h.Name(), got)
		}
	}
	l.mustBeDone()
	l.stackedLogs()
	l.load(stacked)
	l.mustBeDone()
}

// stackedLogs reads what the pods print, from the files of the kubelet.
func (l *lab) stackedLogs() {
	l.t.Helper()
	all, err := l.logs(LogOptions{Lines: -1})
	if err != nil || !slices.ContainsFunc(all, func(e journal.Entry) bool {
		return e.Host == "controller-2" && e.Program == "etcd" && strings.Contains(e.Message, "ready to serve client requests")
	}) {
		l.t.Errorf("%d entries, %v", len(all), err)
	}
	if last, err := l.logs(LogOptions{Lines: 2}); err != nil || len(last) < 3 || len(last) > 6 {
		l.t.Errorf("%d entries, %v", len(last), err)
	}
	ctx, cancel := context.WithTimeout(l.context(), 30*time.Second)
	defer cancel()
	stopped := false
	begun := make(chan struct{})
	var once sync.Once
	go func() {
		<-begun
		if out, status := l.hosts[1].Console(ctx, "mv -fT /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/etcd.yaml"); status != 0 {
			l.t.Error(out)
		}
	}()
	err = Logs(ctx, l.cluster, l.opts, LogOptions{Lines: 1, Follow: true}, func(e journal.Entry) error {
		once.Do(func() { close(begun) })
		if e.Host == "controller-1" && strings.Contains(e.Message, `"stopping"`) {
			stopped = true
			cancel()
		}
		return nil
	})
	if err != nil || !stopped {
		l.t.Errorf("what happened was not told: %v", err)
	}
	// The manifest is gone, and comes back.
	l.mustApply()
	if changed := l.events.texts(step.Changed); len(changed) != 1 || changed[0] != "controller-1: started the static pod etcd" {
		l.t.Errorf("changes: %q", changed)
	}
}

// TestStackedForLife takes a stacked cluster through everything that happens to
// an external one, under load.
func TestStackedForLife(t *testing.T) {
	l := newStackedLab(t, 4)
	all := l.hosts
	l.loadHosts(stacked, all[0])
	id := l.mustApply().Status.ClusterID
	w := l.startCounter(0)
	grow := func(n int) {
		t.Helper()
		l.hosts = all[:n]
		l.loadHosts(stacked, l.hosts...)
		p := l.mustPlan()
		if report := l.mustApply(); report.Status.ClusterID != id || report.Changes != p.Len() {
			t.Errorf("cluster %s became %s; %d changes were planned and %d made: %q", id, report.Status.ClusterID, p.Len(), report.Changes, l.events.texts(step.Changed))
		}
		l.mustBeDone()
	}
	grow(3)
	if manifest := l.sh(2, "cat /etc/kubernetes/manifests/etcd.yaml"); !strings.Contains(manifest, "--initial-cluster-state=existing\n") || !strings.Contains(manifest, "--initial-cluster=controller-0=") {
		t.Errorf("who joined has\n%s", manifest)
	}

	rolled := func(what string, want int) {
		t.Helper()
		var hosts []string
		for _, text := range l.events.texts(step.Changed) {
			if host, ok := strings.CutSuffix(text, ": restarted the static pod etcd"); ok {
				hosts = append(hosts, host)
			}
		}
		if len(hosts) != want {
			t.Errorf("%s: restarted %q, want %d: %q", what, hosts, want, l.events.texts(step.Changed))
		}
		l.mustBeDone()
	}
	l.load(stacked + "server:\n  flags: {heartbeat-interval: \"150\"}\n")
	l.mustApply()
	rolled("another flag", 3)

	other := l.anotherServer()
	l.load(stacked + "server:\n  binary: " + other + "\n")
	if p := l.mustPlan(); !slices.ContainsFunc(p.Changes, func(c plan.Change) bool { return c.Kind == plan.Image && c.Action == plan.Create }) {
		t.Errorf("the plan has no image: %+v", p.Changes)
	}
	l.mustApply()
	rolled("another server", 3)
	if images := l.sh(1, "ctr -n k8s.io images ls -q"); strings.Count(images, "muster.local/etcd:") != 1 {
		t.Errorf("images: %s", images)
	}

	// Somebody, kubeadm upgrade perhaps, writes another manifest.
	l.sh(1, "grep -v snapshot-count /etc/muster/etcd.yaml >/etc/kubernetes/etcd.yaml.new && mv -fT /etc/kubernetes/etcd.yaml.new /etc/kubernetes/manifests/etcd.yaml")
	l.awaitPod(1)
	l.mustApply()
	rolled("another manifest", 1)

	processes := l.pods()
	l.renewed()
	l.sh(1, "touch /etc/kubernetes/pki/etcd/ca.key") // as kubeadm leaves it
	for _, phase := range []pki.Phase{pki.Trusting, pki.Issuing, pki.Dropping, ""} {
		if report := l.rotate(phase); !report.Status.Healthy {
			t.Errorf("after %s: %+v", phase, report)
		}
		warnings := l.events.texts(step.Warning)
		if told := len(warnings) == 1 && strings.HasPrefix(warnings[0], "controller-1: /etc/kubernetes/pki/etcd/ca.key is the key of the old CA; remove it"); told != (phase == pki.Dropping || phase == "") {
			t.Errorf("%s: %q", phase, warnings)
		}
		l.mustChangeNothing()
	}
	if now := l.pods(); !slices.Equal(now, processes) {
		t.Errorf("members were restarted for certificates: %q, then %q", processes, now)
	}
	w.mustHaveAll(1)

	if err := l.hosts[2].Close(); err != nil {
		t.Fatal(err)
	}
	fresh, err := practice.StartHost(practice.HostOptions{Name: "controller-2", Dir: filepath.Join(l.dir, "another machine"), AuthorizedKey: l.key, Kubelet: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fresh.Close() })
	all[2] = fresh
	l.loadHosts(stacked, all[:3]...)
	l.mustFail("controller-2", "run muster replace controller-2")
	l.mustReplace("controller-2")
	grow(4)
	grow(3)
	if out := l.sh(2, "ps -C etcd -o pid=,args="); !strings.Contains(out, "--data-dir=/var/lib/etcd") {
		t.Errorf("controller-2 runs %q", out)
	}
}

// awaitPod waits until the kubelet of a host has its member run by the manifest
// that is there, and the member serves.
func (l *lab) awaitPod(host int) {
	l.t.Helper()
	for ctx := l.context(); ; {
		out, status := l.hosts[host].Console(ctx, "ps -C etcd -o pid=,args=")
		if status == 0 && !strings.Contains(out, "--snapshot-count") {
			if _, err := l.client(host).Get(ctx, "k"); err == nil {
				return
			}
		}
		if ctx.Err() != nil {
			l.t.Fatalf("the kubelet does not run the manifest: %s", out)
		}
	}
}

// pods are the processes of the members.
func (l *lab) pods() []string {
	var all []string
	for i := range l.cluster.Hosts {
		all = append(all, l.sh(i, "ps -C etcd -o pid=,args="))
	}
	return all
}

// anotherServer is a musterd that is another file.
func (l *lab) anotherServer() string {
	l.t.Helper()
	content, err := os.ReadFile(filepath.Join(l.opts.BinaryDir, "musterd"))
	if err != nil {
		l.t.Fatal(err)
	}
	name := filepath.Join(l.dir, "musterd-next")
	if err := os.WriteFile(name, append(content, "next"...), 0o700); err != nil { //nolint:gosec // it is a program
		l.t.Fatal(err)
	}
	return name
}

// A member without data may found another cluster before a restore has stopped it.
func TestRestoreLooksForDataAgain(t *testing.T) {
	l := newStackedLab(t, 3)
	l.mustApply()
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	l.sh(0, "rm /etc/kubernetes/manifests/etcd.yaml && while ps -C etcd -o pid=,args= >/dev/null; do sleep 0.1; done && rm -rf /var/lib/etcd")
	l.mustRestore(saved.Path, func(step.Loss) (bool, error) {
		l.sh(0, "mkdir -p /var/lib/etcd/log && touch /var/lib/etcd/log/of-another-cluster")
		return true, nil
	})
	if aside := l.sh(0, "ls /var/lib/etcd.before-restore-*/log"); aside != "of-another-cluster\n" {
		t.Errorf("put aside: %s", aside)
	}
	for i := range l.hosts {
		if got := l.keys(i); !maps.Equal(got, map[string]string{"k1": "old"}) {
			t.Errorf("keys of controller-%d: %v", i, got)
		}
	}
}

func TestStackedRestore(t *testing.T) {
	l := newStackedLab(t, 3)
	before := l.mustApply().Status.ClusterID
	l.put(0, "k1", "old")
	saved := l.mustBackup(snapshot.Place{Dir: l.dir, File: "s.db"})
	l.put(1, "k2", "new")
	report := l.mustRestore(saved.Path, agree)
	if report.Status.ClusterID == before {
		t.Errorf("it is still cluster %s", before)
	}
	for i := range l.hosts {
		if keys := l.keys(i); len(keys) != 1 || keys["k1"] != "old" {
			t.Errorf("controller-%d has %v", i, keys)
		}
		for _, path := range []string{"/etc/muster/restore.json", "/var/lib/etcd.restore.db", "/var/lib/etcd/restore"} {
			if exists(t, l.hosts[i].Path(path)) {
				t.Errorf("controller-%d still has %s", i, path)
			}
		}
	}
	l.mustBeDone()

	var shown map[string][]string
	l.mustReset(ResetOptions{Data: true, Confirm: func(removal map[string][]string) (bool, error) {
		shown = removal
		return true, nil
	}})
	if !slices.Contains(shown["controller-1"], "stop and disable the static pod etcd") || !slices.ContainsFunc(shown["controller-1"], func(line string) bool { return strings.HasPrefix(line, "the image muster.local/etcd:") }) {
		t.Errorf("shown before: %q", shown["controller-1"])
	}
	for i, h := range l.hosts {
		for path, want := range map[string]bool{
			"/etc/kubernetes/manifests": true, "/etc/kubernetes/manifests/etcd.yaml": false, "/etc/muster": false, "/var/lib/etcd": false,
			"/var/lib/muster": false, "/etc/kubernetes/pki/etcd/server.crt": false, "/usr/local/bin/musterctl": false,
		} {
			if exists(t, h.Path(path)) != want {
				t.Errorf("%s: %s is there: %t", h.Name(), path, !want)
			}
		}
		if left := l.sh(i, "ctr -n k8s.io images ls -q; ps -C etcd -o pid=,args= || :"); left != "" {
			t.Errorf("%s still has %s", h.Name(), left)
		}
	}
	l.mustApply()
}

// A kubelet that has not reached an API server stops no pod: before kubeadm has
// been there, and where the machines have come up without a quorum. It has to be
// started again for that.
func TestStackedWithoutAPIServer(t *testing.T) {
	l := newStackedLab(t, 3)
	for i, h := range l.hosts {
		h.Inject(practice.Faults{NoAPIServer: true})
		l.sh(i, "systemctl restart kubelet")
	}
	l.mustApply()
	l.load(stacked + "server:\n  flags:\n    snapshot-count: \"20000\"\n")
	l.mustApply()
	l.mustBeDone()
	for i, h := range l.hosts {
		if args := l.sh(i, "ps -C etcd -o pid=,args="); !strings.Contains(args, "--snapshot-count=20000") {
			t.Errorf("%s runs %s", h.Name(), args)
		}
		if state := l.sh(i, "systemctl is-active kubelet"); state != "active\n" {
			t.Errorf("the kubelet of %s is %s", h.Name(), state)
		}
	}
}

func TestStackedRefuses(t *testing.T) {
	l := newLab(t, 1)
	l.load(stacked)
	l.mustFail("controller-0: the kubelet does not run", "staticPodPath: /etc/kubernetes/manifests", "commands are missing: ctr", "containerd")

	// kubeadm was there first, with a CA or with an etcd.
	l = newStackedLab(t, 1)
	other, _, err := pki.Ensure(l.context(), filepath.Join(l.dir, "other"), desired.Certificates(l.cluster))
	if err != nil {
		t.Fatal(err)
	}
	dir := l.hosts[0].Path("/etc/kubernetes/pki/etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), other.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	l.mustFail("/etc/kubernetes/pki/etcd/ca.crt is of another CA than the one in", "remove /etc/kubernetes/pki/etcd if nobody uses it")
	l.sh(0, "mkdir -p /etc/kubernetes/manifests && echo 'kind: Pod' >/etc/kubernetes/manifests/etcd.yaml")
	l.mustFail("the kubelet runs an etcd that muster has not installed, by /etc/kubernetes/manifests/etcd.yaml; muster adopt takes it over")
	l.sh(0, "rm /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/pki/etcd/ca.crt")
	l.mustApply()
}

// TestStackedRenewedByKubeadm has somebody else renew certificates with the same
// CA, as kubeadm certs renew does where it made the cluster: muster goes on with
// them. Others it replaces.
func TestStackedRenewedByKubeadm(t *testing.T) {
	l := newStackedLab(t, 1)
	l.mustApply()
	spec := desired.Certificates(l.cluster)
	other := pki.Open(filepath.Join(l.dir, "kubeadm"), pki.Keys{})
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(l.cluster.PKI.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if _, err := other.Import(l.context(), read("ca.crt"), read("ca.key")); err != nil {
		t.Fatal(err)
	}
	install := func(lifetime time.Duration, sans ...string) pki.Pair {
		t.Helper()
		spec.LeafLifetime, spec.Algorithm = lifetime, pki.RSA2048
		spec.Hosts[0].SANs = append(spec.Hosts[0].SANs, sans...)
		bundle, _, err := other.Renew(l.context(), spec, func(string, time.Time) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		pair := bundle.Hosts["controller-0"].Server
		for ext, text := range map[string][]byte{".crt": pair.Cert, ".key": pair.Key} {
			name := l.hosts[0].Path("/etc/kubernetes/pki/etcd/server" + ext)
			if err := os.WriteFile(name, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l.sh(0, "chmod 0644 /etc/kubernetes/pki/etcd/server.crt")
		return pair
	}
	pair := install(400*24*time.Hour, "more.example")
	l.mustBeDone()
	if served := l.served(l.cluster.Hosts[0].ClientURL()); !bytes.Equal(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: served.Raw}), pair.Cert) {
		t.Error("the member does not serve what kubeadm has renewed")
	}
	check, err := CheckCertificates(l.context(), l.cluster, l.opts)
	if err != nil || !check.OK {
		t.Errorf("%+v, %v", check, err)
	}
	// One that ends before ours gives us nothing.
	install(100 * 24 * time.Hour)
	if n := l.mustApply().Changes; n == 0 {
		t.Error("a certificate with less time than ours was left in place")
	}
	l.mustBeDone()
	// And renewing is renewing.
	pair = install(400 * 24 * time.Hour)
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{All: true}); err != nil {
		l.fatal(err)
	}
	if now := l.sh(0, "cat /etc/kubernetes/pki/etcd/server.crt"); now == string(pair.Cert) {
		t.Error("certs renew left kubeadm's certificate in place")
	}
}

package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/plan"
	"muster/provision/practice"
	"muster/provision/step"
)

// newKubernetesLab starts a controller and one more host, which both have a
// kube-apiserver.
func newKubernetesLab(t *testing.T) (l *lab, apiserver *practice.Host) {
	t.Helper()
	l = newLab(t, 1)
	apiserver, err := practice.StartHost(practice.HostOptions{Name: "master", Dir: filepath.Join(l.dir, "master"), AuthorizedKey: l.key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = apiserver.Close() })
	l.load(fmt.Sprintf("kubernetes:\n  apiservers:\n    - {name: master, address: 127.0.0.1, ssh: {port: %d, hostKey: %q}}\n    - {address: 127.0.0.1, ssh: {port: %d}}\n",
		apiserver.Ports().SSH, apiserver.Fingerprint(), l.hosts[0].Ports().SSH))
	return l, apiserver
}

// delivered checks that hosts have what a kube-apiserver needs, equal to what
// the workstation has.
func (l *lab) delivered(hosts ...*practice.Host) {
	l.t.Helper()
	for _, h := range hosts {
		for path, name := range map[string]string{
			desired.KubernetesCA: "ca.crt", desired.KubernetesCert: "apiserver-etcd-client.crt", desired.KubernetesKey: "apiserver-etcd-client.key",
		} {
			want, err := os.ReadFile(filepath.Join(l.cluster.PKI.Dir, name))
			if err != nil {
				l.t.Fatal(err)
			}
			have, err := os.ReadFile(h.Path(path))
			if err != nil || string(have) != string(want) {
				l.t.Errorf("%s: %s differs from the workstation's, error %v", h.Name(), path, err)
			}
			listed, _ := h.Console(l.context(), "stat -c '%a %U:%G' -- "+path)
			mode := "644"
			if strings.HasSuffix(path, ".key") {
				mode = "600"
			}
			if want := mode + " root:root\n"; listed != want {
				l.t.Errorf("%s: %s is %q, want %q", h.Name(), path, listed, want)
			}
		}
	}
}

func (l *lab) plan() *plan.Plan {
	l.t.Helper()
	p, err := Plan(l.context(), l.cluster, l.opts)
	if err != nil {
		l.fatal(err)
	}
	return p
}

func sentences(p *plan.Plan, host string) []string {
	var all []string
	for _, c := range p.Of(host) {
		all = append(all, fmt.Sprintf("%s %s %s", c.Action, c.Kind, c.Name))
	}
	return all
}

func TestAPIServersGetTheirCertificates(t *testing.T) {
	l, master := newKubernetesLab(t)
	all := []string{
		"create directory /etc/kubernetes", "create directory /etc/kubernetes/pki", "create directory /etc/kubernetes/pki/etcd",
		"create certificate " + desired.KubernetesCA, "create certificate " + desired.KubernetesCert, "create file " + desired.KubernetesKey,
	}
	if got := sentences(l.plan(), "master"); !slices.Equal(got, all) {
		t.Errorf("planned %q, want %q", got, all)
	}
	l.mustApply()
	l.delivered(master, l.hosts[0])
	if p := l.plan(); !p.Empty() {
		t.Errorf("after apply the plan is %+v", p.Changes)
	}
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("%d changes, %q", again.Changes, l.events.texts(step.Changed))
	}

	// kubeadm reset removes them, and what else changes is put right.
	if out, status := master.Console(l.context(), "rm -rf /etc/kubernetes/pki"); status != 0 {
		t.Fatal(out)
	}
	if out, status := l.hosts[0].Console(l.context(), "chmod 644 "+desired.KubernetesKey); status != 0 {
		t.Fatal(out)
	}
	if got, want := sentences(l.plan(), "controller-0"), []string{"update file " + desired.KubernetesKey}; !slices.Equal(got, want) {
		t.Errorf("planned %q, want %q", got, want)
	}
	l.mustApply()
	l.delivered(master, l.hosts[0])

	l.judged(master)
	l.renewedWith(master)
	l.rotatedWith(master)
	l.foreign(master)
	l.outOfReach(master)
	l.lostWith(master)
	l.resetWith(master)
}

// renewedWith makes the client's certificate anew.
func (l *lab) renewedWith(master *practice.Host) {
	l.t.Helper()
	before, err := os.ReadFile(master.Path(desired.KubernetesCert))
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := RenewCertificates(l.context(), l.cluster, l.opts, Renewal{All: true}); err != nil {
		l.fatal(err)
	}
	l.delivered(master, l.hosts[0])
	if after, _ := os.ReadFile(master.Path(desired.KubernetesCert)); string(after) == string(before) {
		l.t.Error("the client's certificate was not renewed")
	}
}

// rotatedWith replaces the CA: at each stop the machines have what the members
// admit and serve then.
func (l *lab) rotatedWith(master *practice.Host) {
	l.t.Helper()
	for _, phase := range []pki.Phase{pki.Trusting, pki.Issuing} {
		l.rotate(phase)
		l.delivered(master, l.hosts[0])
		if cas, err := os.ReadFile(master.Path(desired.KubernetesCA)); err != nil || strings.Count(string(cas), "BEGIN") != 2 {
			l.t.Errorf("%s: want both CAs, error %v\n%s", phase, err, cas)
		}
	}
	// A phase that is over is not gone beyond.
	if report := l.rotate(pki.Trusting); report.Phase != pki.Issuing {
		l.t.Errorf("until %s, from %s on, leads to %s", pki.Trusting, pki.Issuing, report.Phase)
	}
	l.rotate("")
	l.delivered(master, l.hosts[0])
	if cas, err := os.ReadFile(master.Path(desired.KubernetesCA)); err != nil || strings.Count(string(cas), "BEGIN") != 1 {
		l.t.Errorf("want the new CA alone, error %v\n%s", err, cas)
	}
}

// foreign puts the CA of another cluster where ours belongs.
func (l *lab) foreign(master *practice.Host) {
	l.t.Helper()
	ours, err := os.ReadFile(master.Path(desired.KubernetesCA))
	if err != nil {
		l.t.Fatal(err)
	}
	other, _, err := pki.Ensure(l.context(), filepath.Join(l.dir, "other-pki"), desired.Certificates(l.cluster))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(master.Path(desired.KubernetesCA), other.CA, 0o600); err != nil {
		l.t.Fatal(err)
	}
	for operation, run := range map[string]func(context.Context) error{
		"apply": func(ctx context.Context) error { _, err := Apply(ctx, l.cluster, l.opts); return err },
		"plan":  func(ctx context.Context) error { _, err := Plan(ctx, l.cluster, l.opts); return err },
		"renew": func(ctx context.Context) error {
			_, err := RenewCertificates(ctx, l.cluster, l.opts, Renewal{All: true})
			return err
		},
	} {
		l.events.reset()
		err := run(l.context())
		var early *step.PreflightError
		if !errors.As(err, &early) || len(early.Problems) != 1 || early.Problems[0].Host != "master" || !strings.Contains(early.Problems[0].Text, desired.KubernetesCA+" is not of this cluster's CA") {
			l.t.Errorf("%s where there is another CA: %v", operation, err)
		}
		if changed := l.events.texts(step.Changed); len(changed) > 0 {
			l.t.Errorf("%s changed something nevertheless: %q", operation, changed)
		}
	}
	if have, err := os.ReadFile(master.Path(desired.KubernetesCA)); err != nil || string(have) != string(other.CA) {
		l.t.Errorf("the other CA was touched, error %v", err)
	}
	if err := os.WriteFile(master.Path(desired.KubernetesCA), ours, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// outOfReach keeps a machine from reaching members.
func (l *lab) outOfReach(master *practice.Host) {
	l.t.Helper()
	url := l.cluster.Hosts[0].ClientURL()
	for _, c := range []struct {
		faults practice.Faults
		texts  []string
		remedy string
	}{
		{practice.Faults{Unreachable: []int{l.hosts[0].Ports().Client}}, []string{"master: 1 of 1 members do not answer from there", url}, "let TCP connections to " + strings.TrimPrefix(url, "https://") + " pass"},
		{practice.Faults{NoForwarding: true}, []string{"master: 1 of 1 members do not answer from there", url}, "AllowTcpForwarding yes"},
	} {
		master.Inject(c.faults)
		_, err := l.apply()
		var f *Failure
		if !errors.As(err, &f) || !strings.Contains(f.Hint(), c.remedy) {
			l.t.Errorf("hint %q of %v, want %q", f.Hint(), err, c.remedy)
			continue
		}
		for _, text := range c.texts {
			if !strings.Contains(err.Error(), text) {
				l.t.Errorf("error %q, want %q", err, text)
			}
		}
	}
	master.Inject(practice.Faults{})
	l.mustApply()
}

// resetWith removes what was delivered, and only that.
func (l *lab) resetWith(master *practice.Host) {
	l.t.Helper()
	if out, status := master.Console(l.context(), "echo own >/etc/kubernetes/pki/ca.crt"); status != 0 {
		l.t.Fatal(out)
	}
	var shown map[string][]string
	_, err := Reset(l.context(), l.cluster, l.opts, ResetOptions{Confirm: func(removal map[string][]string) (bool, error) {
		shown = removal
		return true, nil
	}})
	if err != nil {
		l.fatal(err)
	}
	files := []string{desired.KubernetesCA, desired.KubernetesCert, desired.KubernetesKey}
	if !slices.Equal(shown["master"], files) || !slices.Contains(shown["controller-0"], desired.KubernetesKey) {
		l.t.Errorf("shown to be removed: %q", shown)
	}
	if out, _ := master.Console(l.context(), "ls -A /etc/kubernetes/pki"); out != "ca.crt\n" {
		l.t.Errorf("left behind in /etc/kubernetes/pki: %q", out)
	}
}

// judged has the certificates checked, and the doctor look, when all is well
// and when a file is gone.
func (l *lab) judged(master *practice.Host) {
	l.t.Helper()
	places := func() (found int, problems []string) {
		check, err := CheckCertificates(l.context(), l.cluster, l.opts)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, c := range check.Certificates {
			if c.Place == PlaceHost && strings.HasPrefix(c.Path, "/etc/kubernetes/") {
				found++
				problems = append(problems, c.Problems...)
			}
		}
		return found, append(problems, check.Problems...)
	}
	about := func() (findings []string) {
		checkup, err := Doctor(l.context(), l.cluster, l.opts)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, f := range checkup.Findings {
			if strings.HasPrefix(f.Where, "master") {
				findings = append(findings, f.Where+": "+f.What)
			}
		}
		return findings
	}
	if found, problems := places(); found != 4 || len(problems) > 0 { // two on each machine
		l.t.Errorf("certs check finds %d, problems %q", found, problems)
	}
	if findings := about(); len(findings) > 0 {
		l.t.Errorf("the doctor finds %q", findings)
	}
	if out, status := master.Console(l.context(), "rm "+desired.KubernetesKey); status != 0 {
		l.t.Fatal(out)
	}
	master.Inject(practice.Faults{Unreachable: []int{l.hosts[0].Ports().Client}})
	if _, problems := places(); len(problems) != 1 || !strings.Contains(problems[0], "its key is missing") {
		l.t.Errorf("without the key, certs check finds %q", problems)
	}
	if findings := about(); len(findings) != 2 || findings[0] != "master: the certificates for its kube-apiserver are not the cluster's" || !strings.HasPrefix(findings[1], "master -> controller-0: the member cannot be used from there") {
		l.t.Errorf("without the key and a way to the member, the doctor finds %q", findings)
	}
	master.Inject(practice.Faults{})
	l.mustApply()
}

// lostWith loses the workstation's directory. What the machines have comes back
// from there, and is not emptied when it does not.
func (l *lab) lostWith(master *practice.Host) {
	l.t.Helper()
	if err := os.RemoveAll(l.cluster.PKI.Dir); err != nil {
		l.t.Fatal(err)
	}
	recovery, err := RecoverCertificates(l.context(), l.cluster, l.opts)
	if err != nil {
		l.fatal(err)
	}
	if want := []string{"ca.key"}; !slices.Equal(recovery.Missing, want) {
		l.t.Errorf("missing after the recovery: %q, want %q", recovery.Missing, want)
	}
	l.delivered(master, l.hosts[0])
	before, err := os.ReadFile(master.Path(desired.KubernetesCert))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, name := range []string{"apiserver-etcd-client.crt", "apiserver-etcd-client.key"} {
		if err := os.Remove(filepath.Join(l.cluster.PKI.Dir, name)); err != nil {
			l.t.Fatal(err)
		}
	}
	l.rotate(pki.Trusting)
	if after, err := os.ReadFile(master.Path(desired.KubernetesCert)); err != nil || string(after) != string(before) {
		l.t.Errorf("without a client on the workstation, that of the machine has become %q, error %v", after, err)
	}
	if warnings := l.events.texts(step.Warning); len(warnings) != 2 {
		l.t.Errorf("warnings %q, want one for each machine", warnings)
	}
	l.rotate("")
	l.delivered(master, l.hosts[0])
}

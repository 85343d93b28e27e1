package provision

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/provision/plan"
	"muster/provision/practice"
	"muster/provision/step"
)

// everything is each file of a host and of the workstation with its mode, size,
// content and time of change. What the members write all the time is left out.
func (l *lab) everything() []string {
	l.t.Helper()
	var all []string
	err := filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "/var/lib/muster") {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		if info.Mode().IsRegular() && info.Size() < 1<<20 {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(text)
		}
		if strings.Contains(path, "journal") { // written by the host itself
			return nil
		}
		all = append(all, fmt.Sprintf("%s %v %d %v %q", path, info.Mode(), info.Size(), info.ModTime(), content))
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return all
}

// planned is Plan, which must not leave a trace.
func (l *lab) planned() *plan.Plan {
	l.t.Helper()
	before := l.everything()
	if len(before) < 10 {
		l.t.Fatalf("only %d files are compared", len(before))
	}
	p := l.mustPlan()
	for _, after := range l.everything() {
		if !slices.Contains(before, after) {
			l.t.Errorf("plan touched %s", after)
		}
	}
	if now := l.everything(); len(now) != len(before) {
		l.t.Errorf("%d files before the plan, %d after", len(before), len(now))
	}
	return p
}

func TestPlanTouchesNothingAndApplyDoesIt(t *testing.T) {
	l := newLab(t, 3, func(i int, o *practice.HostOptions) {
		if i == 2 {
			o.User = "ops"
		}
	})
	l.cluster.Hosts[2].SSH.User = "ops"
	for _, change := range []struct {
		name string
		do   func()
		want []string // among the changes of the plan
	}{
		{"bare hosts", func() {}, []string{"cluster: create certificate ca.crt (missing)", "controller-2: start service musterd.service"}},
		{"nothing", func() {}, nil},
		{"a flag", func() {
			l.load("server:\n  flags: {heartbeat-interval: \"150\"}\n")
			l.cluster.Hosts[2].SSH.User = "ops"
		},
			[]string{"controller-1: update unit /etc/systemd/system/musterd.service (--heartbeat-interval: not set -> 150)", "controller-1: restart service musterd.service"}},
		{"what people do", func() {
			l.sh(0, "chmod 0644 /etc/muster/pki/server.key; rm /usr/local/bin/etcdctl; systemctl stop musterd; systemctl disable musterd")
		}, []string{
			"controller-0: update file /etc/muster/pki/server.key (mode: 0644 -> 0640)", "controller-0: create link /usr/local/bin/etcdctl (to musterctl)",
			"controller-0: update unit musterd.service (starts at boot: no -> yes)", "controller-0: start service musterd.service",
		}},
		{"a name in the certificates", func() { l.cluster.PKI.ExtraSANs = []string{"etcd.example.com"} },
			[]string{"cluster: create certificate hosts/controller-0/server.crt (its names have changed)"}},
	} {
		t.Run(change.name, func(t *testing.T) {
			change.do()
			p := l.planned()
			var all []string
			for _, c := range p.Changes {
				all = append(all, c.String())
			}
			for _, want := range change.want {
				if !slices.Contains(all, want) {
					t.Errorf("the plan lacks %q:\n%s", want, strings.Join(all, "\n"))
				}
			}
			if p.Empty() != (change.want == nil) {
				t.Errorf("plan: %s", strings.Join(all, "\n"))
			}
			l.opts.Approved = p.Fingerprint()
			defer func() { l.opts.Approved = "" }()
			if report := l.mustApply(); report.Changes != p.Len() {
				t.Errorf("%d changes were planned and %d made:\n%s\n%q", p.Len(), report.Changes, strings.Join(all, "\n"), l.events.texts(step.Changed))
			}
		})
	}
}

// What was approved is what is done: when a host changes while the operator
// thinks, nothing is.
func TestHostsChangeWhileSomebodyThinks(t *testing.T) {
	l := newLab(t, 2)
	l.mustApply()
	l.load("server:\n  flags: {heartbeat-interval: \"150\"}\n")
	var shown *plan.Plan
	l.opts.Confirm = func(_ context.Context, p *plan.Plan) (bool, error) {
		shown = p
		l.sh(1, "rm /usr/local/bin/etcdctl") // and nobody holds a lock
		return true, nil
	}
	err := l.mustFail("the hosts changed since the plan was shown: now planned, and not shown before: controller-1: create link /usr/local/bin/etcdctl")
	var changed *step.ChangedError
	if !errors.As(err, &changed) || len(l.events.texts(step.Changed)) > 0 {
		t.Errorf("%v, changes %q", err, l.events.texts(step.Changed))
	}
	l.opts.Confirm = func(_ context.Context, p *plan.Plan) (bool, error) { return false, nil }
	if _, err := l.apply(); !errors.Is(err, ErrDeclined) || len(l.events.texts(step.Changed)) > 0 {
		t.Errorf("declined: %v, changes %q", err, l.events.texts(step.Changed))
	}
	l.opts.Confirm = func(_ context.Context, p *plan.Plan) (bool, error) { shown = p; return true, nil }
	if report := l.mustApply(); report.Changes != shown.Len() {
		t.Errorf("%d changes, %d were shown", report.Changes, shown.Len())
	}
	l.opts.Confirm = func(context.Context, *plan.Plan) (bool, error) {
		t.Error("asked about nothing")
		return false, nil
	}
	l.mustBeDone()
}

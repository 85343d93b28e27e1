package provision

import (
	"slices"
	"strings"
	"testing"

	"muster/provision/plan"
	"muster/provision/snapshot"
	"muster/provision/step"
)

func (l *lab) plannedTexts() []string {
	l.t.Helper()
	p, err := Plan(l.context(), l.cluster, l.opts)
	if err != nil {
		l.fatal(err)
	}
	var texts []string
	for _, c := range p.Changes {
		texts = append(texts, c.String())
	}
	return texts
}

func TestBackupTimer(t *testing.T) {
	const dir = "/var/backups/muster"
	l := newLab(t, 1)
	l.mustApply()
	l.put(0, "k", "v")

	l.load("backup: {schedule: hourly, keep: 2}\n")
	planned := l.plannedTexts()
	want := []string{
		"controller-0: create directory " + dir,
		"controller-0: create unit /etc/systemd/system/musterd-backup.service",
		"controller-0: create unit /etc/systemd/system/musterd-backup.timer",
		"controller-0: start service musterd-backup.timer",
	}
	if !slices.Equal(planned, want) {
		t.Errorf("planned %q, want %q", planned, want)
	}
	l.mustApply()
	if changed := l.events.texts(step.Changed); len(changed) != 4 || len(restarts(changed)) > 0 {
		t.Errorf("changes: %q", changed)
	}
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("%d changes afterwards: %q", again.Changes, l.events.texts(step.Changed))
	}

	// What the timer starts: three times, of which two stay.
	for range 3 {
		l.put(0, "k", "v") // each has a revision, and a name, of its own
		l.sh(0, "systemctl start musterd-backup.service")
	}
	saved, err := snapshot.List(l.hosts[0].Path(dir), "test")
	if err != nil || len(saved) != 2 || saved[0].Member != "controller-0" || saved[0].Keys != 1 {
		t.Errorf("saved: %+v, %v\n%s", saved, err, l.sh(0, "journalctl -u musterd-backup.service -n 20 --no-pager -o cat"))
	}
	for _, m := range saved {
		if _, err := snapshot.Check(t.Context(), m.Path); err != nil {
			t.Error(err)
		}
	}

	// The schedule changes, and somebody stops the timer: the member is left
	// alone both times.
	l.load("backup: {schedule: daily, keep: 2}\n")
	l.mustApply()
	if changed := l.events.texts(step.Changed); len(changed) != 2 || changed[0] != "controller-0: wrote /etc/systemd/system/musterd-backup.timer" {
		t.Errorf("changes: %q", changed)
	}
	l.sh(0, "systemctl stop musterd-backup.timer")
	l.doctor().finds(t, "controller-0", "backups are not made")
	l.mustApply()
	if changed := l.events.texts(step.Changed); !slices.Equal(changed, []string{"controller-0: started musterd-backup.timer"}) {
		t.Errorf("changes: %q", changed)
	}
	if state := strings.TrimSpace(l.sh(0, "systemctl is-active musterd-backup.timer; systemctl is-enabled musterd-backup.timer")); state != "active\nenabled" {
		t.Errorf("the timer is %q", state)
	}

	// No backups are wanted any more.
	l.load("")
	if planned := l.plannedTexts(); len(planned) != 2 || !strings.HasPrefix(planned[0], "controller-0: "+string(plan.Remove)+" unit ") {
		t.Errorf("planned %q", planned)
	}
	l.mustApply()
	if again := l.mustApply(); again.Changes != 0 || exists(t, l.hosts[0].Path("/etc/systemd/system/musterd-backup.timer")) || exists(t, l.hosts[0].Path("/etc/systemd/system/timers.target.wants/musterd-backup.timer")) {
		t.Errorf("the timer is left, or %d changes", again.Changes)
	}
	if left, err := snapshot.List(l.hosts[0].Path(dir), "test"); err != nil || len(left) != 2 {
		t.Errorf("what was saved: %v, %v", left, err)
	}
	l.load("backup: {}\n")
	l.mustApply()
	l.mustReset(ResetOptions{})
	if exists(t, l.hosts[0].Path("/etc/systemd/system/musterd-backup.service")) {
		t.Error("reset has left the units")
	}
}

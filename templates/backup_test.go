package templates

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func exampleBackup() Backup {
	return Backup{
		Cluster: "prod", Program: "/usr/local/bin/musterctl", Unit: "musterd.service", Service: "musterd-backup.service", Directory: "/var/backups/muster", Schedule: "*-*-* 03:00",
		Args: []Argument{{Flag: "cluster", Value: "prod"}, {Flag: "endpoint", Value: "https://10.0.0.1:2379"}, {Flag: "keep", Value: "14"}},
	}
}

// systemd itself has to be content with the units, as they lie beside each
// other.
func TestBackupUnits(t *testing.T) {
	service, err := exampleBackup().RenderService()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "testdata/musterd-backup.service", service)
	timer, err := exampleBackup().RenderTimer()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "testdata/musterd-backup.timer", timer)

	b := exampleBackup()
	b.Program = "/bin/true" // verify wants a program that exists
	if service, err = b.RenderService(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "musterd-backup.service"), filepath.Join(dir, "musterd-backup.timer")}
	for i, text := range [][]byte{service, timer} {
		if err := os.WriteFile(paths[i], text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	analyze := systemdAnalyze(t)
	if out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, paths...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=45", paths[0]).CombinedOutput(); err != nil {
		t.Errorf("more exposed than 45 tenths: %v\n%s", err, out)
	}
	// A schedule that is none is noticed.
	b.Schedule = "every now and then"
	if timer, err = b.RenderTimer(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths[1], timer, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", paths[1]).CombinedOutput(); err == nil {
		t.Errorf("systemd-analyze accepts the schedule %q: %s", b.Schedule, out)
	}
}

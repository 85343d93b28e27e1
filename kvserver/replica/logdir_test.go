package replica

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogElsewhere(t *testing.T) {
	data, disk := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	inside, err := openLogDir(data, disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inside, "entry"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(disk, "entry")); err != nil {
		t.Errorf("what is written to the log is not there: %v", err)
	}
	for _, again := range []string{disk, ""} {
		if got, err := openLogDir(data, again); err != nil || got != inside {
			t.Errorf("with %q the log is in %s (%v)", again, got, err)
		}
	}
	own := t.TempDir()
	if _, err := openLogDir(own, ""); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ data, elsewhere, want string }{
		"another place":       {data, filepath.Join(t.TempDir(), "other"), "the raft log is in " + disk + ", not in --wal-dir"},
		"in its own place":    {own, filepath.Join(t.TempDir(), "other"), "leave --wal-dir out, or move the directory there"},
		"somebody's else log": {t.TempDir(), disk, "is not empty"},
	} {
		if _, err := openLogDir(test.data, test.elsewhere); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
	if err := os.RemoveAll(disk); err != nil {
		t.Fatal(err)
	}
	if _, err := openLogDir(data, ""); err == nil || !strings.Contains(err.Error(), "the raft log is in "+disk) {
		t.Errorf("without its disk: %v", err)
	}
}

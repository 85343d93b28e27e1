package provision

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/provision/step"
)

func (l *lab) reset(o ResetOptions) (int, error) {
	l.t.Helper()
	l.events.reset()
	if o.Confirm == nil {
		o.Confirm = func(map[string][]string) (bool, error) { return true, nil }
	}
	return Reset(l.context(), l.cluster, l.opts, o)
}

func (l *lab) mustReset(o ResetOptions) int {
	l.t.Helper()
	changes, err := l.reset(o)
	if err != nil {
		l.fatal(err)
	}
	return changes
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestResetKeepsTheData(t *testing.T) {
	l := newLab(t, 3)
	id := l.mustApply().Status.ClusterID
	stranger := l.hosts[0].Path("/usr/local/bin/etcd")
	if err := os.WriteFile(stranger, []byte("not ours"), 0o755); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	var shown map[string][]string
	changes := l.mustReset(ResetOptions{Confirm: func(removal map[string][]string) (bool, error) {
		shown = removal
		return true, nil
	}})
	if changes == 0 || len(shown) != 3 || !slices.Contains(shown["controller-1"], "/usr/local/bin/musterd") {
		t.Errorf("%d changes; shown before: %v", changes, shown)
	}
	for _, h := range l.hosts {
		for path, want := range map[string]bool{
			"/usr/local/bin/musterd": false, "/usr/local/bin/etcdctl": false, "/etc/muster/pki": false,
			"/etc/systemd/system/musterd.service": false, "/etc/muster/cluster.json": true, "/var/lib/muster": true,
		} {
			if got := exists(t, h.Path(path)); got != want {
				t.Errorf("%s: %s exists: %v, want %v", h.Name(), path, got, want)
			}
		}
	}
	if !exists(t, stranger) {
		t.Error("reset removed what is not ours")
	}
	if n := l.mustReset(ResetOptions{}); n != 0 {
		t.Errorf("the second reset made %d changes: %q", n, l.events.texts(step.Changed))
	}
	if again := l.mustApply().Status.ClusterID; again != id {
		t.Errorf("cluster %s came back as %s", id, again)
	}
}

func TestResetWithData(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	l.mustReset(ResetOptions{Data: true})
	h := l.hosts[0]
	for _, path := range []string{"/var/lib/muster", "/etc/muster"} {
		if exists(t, h.Path(path)) {
			t.Errorf("%s is still there", path)
		}
	}
	passwd, err := os.ReadFile(h.Path("/etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(passwd), "muster") {
		t.Errorf("the user is still there:\n%s", passwd)
	}
	if !exists(t, filepath.Join(l.cluster.PKI.Dir, "ca.crt")) {
		t.Error("the CA on the workstation is gone")
	}
	l.mustApply()
}

// An account that the host had before stays when everything else goes.
func TestResetKeepsAForeignAccount(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	l.console(h, "groupadd --system muster && useradd --system --gid muster --comment ours muster")
	l.mustApply()
	l.mustReset(ResetOptions{Data: true})
	if out, status := h.Console(l.context(), "getent passwd muster && getent group muster"); status != 0 {
		t.Errorf("the account is gone: %s", out)
	}
}

func TestResetDeclined(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	before := l.snapshot()
	_, err := l.reset(ResetOptions{Data: true, Confirm: func(map[string][]string) (bool, error) { return false, nil }})
	if !errors.Is(err, ErrDeclined) {
		t.Fatalf("error %v, want %v", err, ErrDeclined)
	}
	for i, h := range l.hosts {
		for _, name := range before[i] {
			path, _, _ := strings.Cut(name, " ")
			if !strings.HasPrefix(path, "/var/lib/muster/") && !exists(t, h.Path(path)) {
				t.Errorf("%s is gone", path)
			}
		}
	}
	if changed, failed := l.events.texts(step.Changed), l.events.texts(step.Failed); len(changed)+len(failed) > 0 {
		t.Errorf("changes %q, failures %q", changed, failed)
	}
}

func TestResetRefusesAnotherCluster(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	l.cluster.Name = "other"
	_, err := l.reset(ResetOptions{Data: true})
	if err == nil || !strings.Contains(err.Error(), `belongs to cluster "test", not to "other"`) {
		t.Fatalf("error %v", err)
	}
	if !exists(t, l.hosts[0].Path("/usr/local/bin/musterd")) {
		t.Error("something was removed")
	}
}

func TestResetLeavesForeignDataAlone(t *testing.T) {
	l := newLab(t, 1)
	data := l.hosts[0].Path("/var/lib/muster/precious")
	if err := os.MkdirAll(filepath.Dir(data), 0o755); err != nil { //nolint:gosec // a test's directory
		t.Fatal(err)
	}
	if err := os.WriteFile(data, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := l.reset(ResetOptions{Data: true})
	if err == nil || !strings.Contains(err.Error(), "holds data and nothing says that it is this cluster's") {
		t.Fatalf("error %v", err)
	}
	if !exists(t, data) {
		t.Error("the data is gone")
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"muster/provision"
	"muster/provision/practice"
)

var (
	kills = flag.Int("kills", 30, "how many applies are killed in a row on one cluster; a third as many first applies are killed on hosts of their own")
	seed  = flag.Uint64("seed", 0, "seed of the moments of the kills; random when 0")
)

// newWorkstation makes the programs to install.
func newWorkstation(t *testing.T) *workstation {
	t.Helper()
	w := &workstation{home: t.TempDir(), programs: t.TempDir()}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", w.programs, "../musterd", "../musterctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the programs to install: %v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Under this name the test binary is muster, see TestMain.
	w.muster = filepath.Join(w.home, "muster")
	if err := os.Symlink(self, w.muster); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestOnPracticeHosts runs the program against practice hosts.
func TestOnPracticeHosts(t *testing.T) {
	w := newWorkstation(t)
	t.Run("demo once", w.demoOnce)
	t.Run("demo interrupted", w.demoInterrupted)
	t.Run("practice in a process of its own", w.practiceProcess)
	t.Run("adopts", w.adopts)
	t.Run("killed with the locks", w.killedWithTheLocks)
	t.Run("killed on bare hosts", w.killedOnBareHosts)
	t.Run("killed in a row", w.killedInARow)
	t.Run("killed changing members", w.killedChangingMembers)
	t.Run("killed rotating", w.killedRotating)
	t.Run("killed restoring", w.killedRestoring)
	t.Run("killed replacing", w.killedReplacing)
	t.Run("killed upgrading", w.killedUpgrading)
	t.Run("killed backing up", w.killedBackingUp)
	t.Run("killed adopting", w.killedAdopting)
	t.Run("killed stacked", w.killedStacked)
	t.Run("killed adopting pods", w.killedAdoptingPods)
}

// workstation is where muster is run.
type workstation struct {
	home, programs, muster string
}

func (w *workstation) command(args ...string) *exec.Cmd {
	cmd := exec.Command(w.muster, args...)
	// The ssh configuration and agent of whoever runs the tests stay out.
	cmd.Env = append(os.Environ(), "HOME="+w.home, "SSH_AUTH_SOCK=")
	return cmd
}

func (w *workstation) demoOnce(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"demo", "--once", "--binary-dir", w.programs}, streams{out: &out, err: &errs}); code != exitOK {
		t.Fatalf("exit code %d\n%s%s", code, &out, &errs)
	}
	story := out.String()
	for _, want := range []string{"\n3 of 3 members started\n", `get greeting through controller-2: "hello from muster"`, "ETCDCTL_ENDPOINTS=https://127.", "nothing is left behind"} {
		if !strings.Contains(story, want) {
			t.Errorf("the demo does not say %q:\n%s", want, story)
		}
	}
	if n := len(regexp.MustCompile(`(?m)^controller-\d .* leader `).FindAllString(story, -1)); n != 1 {
		t.Errorf("%d leaders:\n%s", n, story)
	}
	dir := regexp.MustCompile(`-f (\S+)/inventory\.yaml`).FindStringSubmatch(story)
	if _, err := os.Stat(dir[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was left behind: %v", dir[1], err)
	}
}

// waitingWriter closes seen when what is written contains text.
type waitingWriter struct {
	text string
	seen chan struct{}
	mu   sync.Mutex
	all  bytes.Buffer
}

func newWaitingWriter(text string) *waitingWriter {
	return &waitingWriter{text: text, seen: make(chan struct{})}
}

func (w *waitingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := bytes.Contains(w.all.Bytes(), []byte(w.text))
	w.all.Write(p)
	if !before && bytes.Contains(w.all.Bytes(), []byte(w.text)) {
		close(w.seen)
	}
	return len(p), nil
}

func (w *waitingWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

func (w *waitingWriter) wait(t *testing.T) {
	t.Helper()
	select {
	case <-w.seen:
	case <-time.After(time.Minute):
		t.Fatalf("never said %q:\n%s", w.text, w)
	}
}

func (w *workstation) demoInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := newWaitingWriter("Ctrl-C stops")
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"demo", "--hosts", "1", "--binary-dir", w.programs}, streams{out: out, err: out})
	}()
	out.wait(t)
	file := regexp.MustCompile(`-f (\S+/inventory\.yaml)`).FindStringSubmatch(out.String())[1]
	if text, err := w.command("status", "-f", file).CombinedOutput(); err != nil {
		t.Errorf("muster status beside the demo: %v\n%s", err, text)
	}
	interrupt()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if _, err := os.Stat(filepath.Dir(file)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was left behind: %v", filepath.Dir(file), err)
	}
}

// The hosts outlive one process and come back in the next.
func (w *workstation) practiceProcess(t *testing.T) {
	dir := t.TempDir()
	start := func() (inventory string, stop func()) {
		out := newWaitingWriter("inventory.yaml\n")
		cmd := w.command("practice", "--dir", dir)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.wait(t)
		return strings.TrimSpace(out.String()), func() {
			_ = cmd.Process.Kill() // as a power cut; the status says so
			_ = cmd.Wait()
		}
	}
	file, stop := start()
	first := w.mustApply(t, file)
	stop()
	again, stop := start()
	defer stop()
	if again != file {
		t.Errorf("the inventory is %s now, was %s", again, file)
	}
	if second := w.mustApply(t, file); second.Changes != 0 || second.Status.ClusterID != first.Status.ClusterID {
		t.Errorf("%d changes; cluster %s, was %s", second.Changes, second.Status.ClusterID, first.Status.ClusterID)
	}
}

// mustApply runs apply to its end and returns the result.
func (w *workstation) mustApply(t *testing.T, file string) applyResult {
	t.Helper()
	cmd := w.command("apply", "--yes", "-f", file, "--binary-dir", w.programs, "-o", "json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("apply: %v\n%s%s", err, &out, &errs)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var result applyResult
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &result); err != nil || result.Kind != "result" {
		t.Fatalf("the last line of apply is %q: %v", lines[len(lines)-1], err)
	}
	if !result.Status.Healthy {
		t.Fatalf("apply succeeded and the cluster is not healthy: %+v", result.Status)
	}
	return result
}

// killApply starts an apply and kills it a moment after it has reported so
// many events. It returns how many events there were, whether the apply was
// still at work, and where.
func (w *workstation) killApply(t *testing.T, file string, events int, moment time.Duration) (seen int, killed bool, at string) {
	t.Helper()
	seen, at, killed = w.killRun(t, events, moment, "apply", "--yes", "-f", file, "--binary-dir", w.programs)
	return seen, killed, at
}

// clusterIdentity watches that a cluster keeps its CA and its ID.
type clusterIdentity struct{ ca, id string }

func (c *clusterIdentity) check(t *testing.T, file string, status *provision.Status) {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(filepath.Dir(file), "practice-pki", "ca.crt"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if c.ca != "" && c.ca != string(pem) {
		t.Fatal("the CA was replaced")
	}
	c.ca = string(pem)
	if status == nil {
		return
	}
	if c.ca == "" || status.ClusterID == "" || (c.id != "" && c.id != status.ClusterID) {
		t.Fatalf("cluster ID %q, was %q", status.ClusterID, c.id)
	}
	c.id = status.ClusterID
}

func (w *workstation) random(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("again with: -run '%s' -seed %d", t.Name(), s)
	return rand.New(rand.NewPCG(s, 0))
}

func (w *workstation) hosts(t *testing.T) (inventory string) {
	t.Helper()
	c, err := practice.StartCluster(practice.ClusterOptions{Dir: t.TempDir(), Hosts: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c.Inventory
}

// momentAfter is how long after an event the kill may come, at most.
const momentAfter = 30 * time.Millisecond

// killedWithTheLocks kills an apply that holds the lock of every host. The next
// one gets them without anybody's help.
func (w *workstation) killedWithTheLocks(t *testing.T) {
	file := w.hosts(t)
	first := w.command("apply", "--yes", "-f", file, "--binary-dir", w.programs, "-o", "json")
	out := newWaitingWriter(`"step":"programs"`)
	first.Stdout = out
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	out.wait(t)
	if err := first.Process.Signal(syscall.SIGSTOP); err != nil { // so that it does not end by itself
		t.Fatal(err)
	}
	second, err := w.command("apply", "--yes", "-f", file, "--binary-dir", w.programs).CombinedOutput()
	if held := fmt.Sprintf("process %d", first.Process.Pid); err == nil || !strings.Contains(string(second), held) {
		t.Errorf("while the locks were held by %s: %v\n%s", held, err, second)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // killed
	w.mustApply(t, file)
}

func (w *workstation) killedOnBareHosts(t *testing.T) {
	random := w.random(t)
	total, _, _ := w.killApply(t, w.hosts(t), -1, 0)
	for i := range (*kills + 2) / 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			file := w.hosts(t)
			var identity clusterIdentity
			_, killed, at := w.killApply(t, file, random.IntN(total), time.Duration(random.Int64N(int64(momentAfter))))
			t.Logf("killed=%t after %s", killed, at)
			identity.check(t, file, nil)
			result := w.mustApply(t, file)
			identity.check(t, file, &result.Status)
			if second := w.mustApply(t, file); second.Changes != 0 {
				t.Errorf("%d changes were left", second.Changes)
			}
		})
	}
}

func (w *workstation) killedInARow(t *testing.T) {
	random := w.random(t)
	file := w.hosts(t)
	base, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var identity clusterIdentity
	interrupted := 0
	// What a kill interrupts is the first apply, until one gets through; then
	// a change of a flag, which needs new files and restarts on every host.
	total, _, _ := w.killApply(t, w.hosts(t), -1, 0)
	for i := range *kills {
		changed := fmt.Sprintf("%sserver:\n  flags: {snapshot-count: %q}\n", base, fmt.Sprint(10000+i))
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		seen, killed, at := w.killApply(t, file, random.IntN(total), time.Duration(random.Int64N(int64(momentAfter))))
		t.Logf("%2d killed=%t after %s", i, killed, at)
		if killed {
			interrupted++
		} else {
			total = seen
		}
		identity.check(t, file, nil)
	}
	if interrupted < *kills/2 {
		t.Errorf("only %d of %d applies were interrupted", interrupted, *kills)
	}
	result := w.mustApply(t, file)
	identity.check(t, file, &result.Status)
	second := w.mustApply(t, file)
	identity.check(t, file, &second.Status)
	if second.Changes != 0 {
		t.Errorf("%d changes were left", second.Changes)
	}
}

// killedChangingMembers kills applies that add and remove members. Whatever is
// left then is a cluster that the next apply makes what the inventory says.
func (w *workstation) killedChangingMembers(t *testing.T) {
	random := w.random(t)
	file := w.hosts(t)
	var all map[string]any
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	controllers, _ := all["controllers"].([]any)
	use := func(first, last int) {
		all["controllers"] = controllers[first:last]
		text, err := yaml.Marshal(all)
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var identity clusterIdentity
	use(0, 1)
	result := w.mustApply(t, file)
	identity.check(t, file, &result.Status)
	for _, step := range []struct{ first, last int }{{0, 3}, {1, 3}} {
		use(step.first, step.last)
		total := 100
		for range (*kills + 4) / 5 {
			seen, killed, at := w.killApply(t, file, random.IntN(total), time.Duration(random.Int64N(int64(momentAfter))))
			t.Logf("to %d members: killed=%t after %s", step.last-step.first, killed, at)
			if !killed {
				total = seen
			}
		}
		result := w.mustApply(t, file)
		identity.check(t, file, &result.Status)
		if second := w.mustApply(t, file); second.Changes != 0 || len(second.Status.Members) != step.last-step.first {
			t.Errorf("%d changes were left; status %+v", second.Changes, second.Status)
		}
	}
}

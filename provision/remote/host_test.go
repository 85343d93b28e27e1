package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func testHost(t *testing.T) (*Host, *server) {
	t.Helper()
	w := newWorkstation(t)
	s, target := pinned(t, w)
	return dialed(t, w, target), s
}

func TestRun(t *testing.T) {
	h, _ := testHost(t)
	for _, test := range []struct {
		name       string
		command    Command
		wantStdout string
		wantErr    string
	}{
		{name: "output", command: Command{Script: "echo hello; echo other >&2"}, wantStdout: "hello\n"},
		{name: "arguments stay words", command: Command{Script: `for a in "$@"; do echo "[$a]"; done`, Args: []string{"a b", "it's", "", "$(id)", "x\ny"}}, wantStdout: "[a b]\n[it's]\n[]\n[$(id)]\n[x\ny]\n"},
		{name: "stdin", command: Command{Script: "cat", Stdin: strings.NewReader("data")}, wantStdout: "data"},
		{name: "exit status", command: Command{Label: "try", Script: "echo because >&2; exit 3"}, wantErr: "controller-0: try: exit status 3: because"},
		{name: "signal", command: Command{Label: "try", Script: "exit 1"}, wantErr: "controller-0: try: exit status 1"},
		{name: "locale", command: Command{Script: `printf %s "$LC_ALL"`}, wantStdout: "C"},
	} {
		t.Run(test.name, func(t *testing.T) {
			result, err := h.Run(testContext(t), test.command)
			if test.wantErr != "" {
				var failed *CommandError
				if !errors.As(err, &failed) || err.Error() != test.wantErr {
					t.Fatalf("error %v, want %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if result.Stdout != test.wantStdout {
				t.Errorf("stdout %q, want %q", result.Stdout, test.wantStdout)
			}
		})
	}
}

func TestRunIsCancelled(t *testing.T) {
	h, _ := testHost(t)
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := h.Run(ctx, Command{Label: "wait", Script: "exec sleep 5"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want the context's", err)
	}
	if elapsed := time.Since(begin); elapsed > 4*time.Second {
		t.Errorf("returned after %v", elapsed)
	}
}

func TestManySessions(t *testing.T) {
	h, _ := testHost(t)
	errs := make(chan error)
	for i := range 40 {
		go func() {
			result, err := h.Run(testContext(t), Command{Label: "count", Script: "echo $1", Args: []string{fmt.Sprint(i)}})
			if err == nil && strings.TrimSpace(result.Stdout) != fmt.Sprint(i) {
				err = fmt.Errorf("stdout %q, want %d", result.Stdout, i)
			}
			errs <- err
		}()
	}
	for range 40 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// owner is the owner of files this test can make.
func owner(t *testing.T) (name, group string) {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return u.Username, g.Name
}

func checkFile(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Errorf("%s: %d bytes that differ from the %d wanted", path, len(got), len(content))
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != mode {
		t.Errorf("%s: mode %v, want %v", path, info.Mode(), mode)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".muster-new-") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

func TestWriteFile(t *testing.T) {
	h, _ := testHost(t)
	name, group := owner(t)
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "it's a key"), Mode: 0o640, Owner: name, Group: group}
	for _, content := range []string{"first", "second\x00binary\n", ""} {
		if err := h.WriteFile(testContext(t), f, []byte(content)); err != nil {
			t.Fatal(err)
		}
		checkFile(t, f.Path, []byte(content), 0o640)
	}
}

func TestWriteTogether(t *testing.T) {
	h, _ := testHost(t)
	name, group := owner(t)
	dir := t.TempDir()
	files := []File{
		{Path: filepath.Join(dir, "it's a cert"), Mode: 0o644, Owner: name, Group: group},
		{Path: filepath.Join(dir, "key"), Mode: 0o640, Owner: name, Group: group},
	}
	if err := h.WriteTogether(testContext(t), files, [][]byte{[]byte("old cert\n"), {}}); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteTogether(testContext(t), files, [][]byte{[]byte("cert\x00binary"), []byte("key\n")}); err != nil {
		t.Fatal(err)
	}
	both := func() {
		t.Helper()
		checkFile(t, files[0].Path, []byte("cert\x00binary"), 0o644)
		checkFile(t, files[1].Path, []byte("key\n"), 0o640)
	}
	both()
	// What one of them fails at leaves both as they were.
	files[1].Owner = "nobody-of-that-name"
	if err := h.WriteTogether(testContext(t), files, [][]byte{[]byte("x"), []byte("y")}); err == nil || !strings.Contains(err.Error(), "write "+files[0].Path+" and "+files[1].Path) {
		t.Errorf("error %v", err)
	}
	both()
}

func TestCheckRefusesTheNewFile(t *testing.T) {
	h, _ := testHost(t)
	name, group := owner(t)
	f := File{Path: filepath.Join(t.TempDir(), "musterd.service"), Mode: 0o644, Owner: name, Group: group}
	if err := h.WriteFile(testContext(t), f, []byte("good")); err != nil {
		t.Fatal(err)
	}
	f.Check = `case $new in *.service) ;; *) exit 9;; esac; if grep -q bad "$new"; then echo "bad unit" >&2; exit 4; fi`
	err := h.WriteFile(testContext(t), f, []byte("bad"))
	var failed *CommandError
	if !errors.As(err, &failed) || failed.ExitStatus != 4 || failed.Output() != "bad unit" {
		t.Fatalf("error %v, want exit status 4 and its output", err)
	}
	checkFile(t, f.Path, []byte("good"), 0o644)
}

func TestUpload(t *testing.T) {
	h, _ := testHost(t)
	name, group := owner(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	noise := make([]byte, 3<<20)
	for i, r := 0, rand.New(rand.NewPCG(seed, 1)); i < len(noise); i++ {
		noise[i] = byte(r.Uint32())
	}
	for name2, content := range map[string][]byte{
		"empty":        {},
		"small":        []byte("#!/bin/sh\n"),
		"compressible": bytes.Repeat([]byte("a program "), 500_000),
		"noise":        noise,
	} {
		for link, compressBelow := range map[string]float64{"fast link": 0, "slow link": math.Inf(1)} {
			t.Run(name2+" "+link, func(t *testing.T) {
				f := File{Path: filepath.Join(t.TempDir(), "musterd"), Mode: 0o755, Owner: name, Group: group}
				var sent, total int64
				err := h.upload(testContext(t), f, NewPayload(content), compressBelow, func(n, of int64) { sent, total = n, of })
				if err != nil {
					t.Fatal(err)
				}
				checkFile(t, f.Path, content, 0o755)
				if len(content) > probeSize && (sent == 0 || sent != total) {
					t.Errorf("the last progress that was reported is %d of %d", sent, total)
				}
			})
		}
	}
	stage := h.stage.dir
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stage); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory for uploads, %s, was left behind", stage)
	}
}

func TestUploadSurvivesALostConnection(t *testing.T) {
	w := newWorkstation(t)
	s, target := pinned(t, w)
	name, group := owner(t)
	f := File{Path: filepath.Join(t.TempDir(), "musterd"), Mode: 0o755, Owner: name, Group: group}
	old := []byte("old program")
	if err := os.WriteFile(f.Path, old, 0o755); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	content := make([]byte, 8<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	s.cutAfter.Store(2 << 20)
	h, err := w.dialer().Dial(testContext(t), target)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Upload(testContext(t), f, NewPayload(content), nil); !errors.Is(err, ErrConnectionLost) {
		t.Fatalf("error %v, want %v", err, ErrConnectionLost)
	}
	select {
	case <-h.Lost():
	case <-time.After(5 * time.Second):
		t.Error("the host does not say that the connection is lost")
	}
	checkFile(t, f.Path, old, 0o755)

	s.cutAfter.Store(0)
	h, err = w.dialer().Dial(testContext(t), target)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close() //nolint:errcheck // the test is over
	if err := h.Upload(testContext(t), f, NewPayload(content), nil); err != nil {
		t.Fatal(err)
	}
	checkFile(t, f.Path, content, 0o755)
}

// A program that runs cannot be written to: "text file busy". It is replaced,
// and goes on with what it was.
func TestUploadOverARunningProgram(t *testing.T) {
	h, _ := testHost(t)
	name, group := owner(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	f := File{Path: filepath.Join(t.TempDir(), "sleep"), Mode: 0o755, Owner: name, Group: group}
	if err := h.Upload(testContext(t), f, NewPayload(program), nil); err != nil {
		t.Fatal(err)
	}
	running := exec.Command(f.Path, "300")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := running.Process.Kill(); err != nil {
			t.Error("the old program has ended: ", err)
		}
		_ = running.Wait()
	})
	if f, err := os.OpenFile(f.Path, os.O_WRONLY, 0); !errors.Is(err, syscall.ETXTBSY) {
		_ = f.Close()
		t.Fatalf("the test proves nothing: %v", err)
	}
	next := append(slices.Clone(program), "newer"...)
	if err := h.Upload(testContext(t), f, NewPayload(next), nil); err != nil {
		t.Fatal(err)
	}
	checkFile(t, f.Path, next, 0o755)
}

func TestProcess(t *testing.T) {
	h, _ := testHost(t)
	marker := filepath.Join(t.TempDir(), "ended")
	p, err := h.Start(Command{Label: "hold", Script: `echo begun; cat >/dev/null; echo x >"$1"`, Args: []string{marker}})
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := io.ReadFull(p.Stdout, line); err != nil || string(line) != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(marker); err != nil {
		t.Error("the process did not see the end of its input: ", err)
	}
}

func TestDialContext(t *testing.T) {
	h, _ := testHost(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // the test is over
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	conn, err := h.DialContext(testContext(t), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Fatalf("%q, %v", got, err)
	}
	_ = listener.Close()
	if _, err := h.DialContext(testContext(t), "tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "controller-0: connect to 127.0.0.1:1 through SSH") {
		t.Fatalf("error %v", err)
	}
}

func TestPrivilege(t *testing.T) {
	const refuses = "#!/bin/sh\necho \"$0: a password is required\" >&2\nexit 1\n"
	const allows = "#!/bin/sh\nshift\nBECAME=root exec \"$@\"\n"
	const alice = "#!/bin/sh\ncase $1 in -un) echo alice;; *) echo 1000;; esac\n"
	for _, test := range []struct {
		name    string
		tools   map[string]string
		become  string
		problem string
	}{
		{name: "sudo", tools: map[string]string{"id": alice, "sudo": allows}, become: "sudo -n"},
		{name: "doas", tools: map[string]string{"id": alice, "sudo": refuses, "doas": allows}, become: "doas -n"},
		{name: "password", tools: map[string]string{"id": alice, "sudo": refuses}, problem: "a password is required"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorkstation(t)
			s, target := pinned(t, w)
			for name, text := range test.tools {
				if err := os.WriteFile(filepath.Join(s.path, name), []byte(text), 0o755); err != nil { //nolint:gosec // it is a program
					t.Fatal(err)
				}
			}
			h := dialed(t, w, target)
			p := h.Privilege()
			if p.User != "alice" || p.Root || strings.Join(p.Become, " ") != test.become || !strings.Contains(p.Problem, test.problem) || (p.Problem == "") != (test.problem == "") {
				t.Fatalf("%+v", p)
			}
			if test.become == "" {
				return
			}
			for asLogin, want := range map[bool]string{false: "root", true: ""} {
				result, err := h.Run(testContext(t), Command{Label: "who", Script: `printf %s "$BECAME"`, AsLogin: asLogin})
				if err != nil || result.Stdout != want {
					t.Errorf("as login %v: became %q, %v, want %q", asLogin, result.Stdout, err, want)
				}
			}
		})
	}
}

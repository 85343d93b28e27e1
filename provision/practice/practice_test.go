package practice_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"muster/provision/practice"
)

// operator is somebody who may log in.
type operator struct{ signer ssh.Signer }

func newOperator(t *testing.T) operator {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return operator{signer}
}

func (o operator) start(t *testing.T, opts practice.HostOptions) *practice.Host {
	t.Helper()
	if opts.Name == "" {
		opts.Name = "controller-0"
	}
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	opts.AuthorizedKey = o.signer.PublicKey()
	h, err := practice.StartHost(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (o operator) dial(h *practice.Host, user string) (*ssh.Client, error) {
	return ssh.Dial("tcp", net.JoinHostPort(h.Address(), strconv.Itoa(h.Ports().SSH)), &ssh.ClientConfig{
		User: user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(o.signer)},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if got := ssh.FingerprintSHA256(key); got != h.Fingerprint() {
				return fmt.Errorf("host key is %s", got)
			}
			return nil
		},
		Timeout: 10 * time.Second,
	})
}

func (o operator) login(t *testing.T, h *practice.Host, user string) *ssh.Client {
	t.Helper()
	c, err := o.dial(h, user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// sh runs a script and returns what it printed on both outputs and its exit
// status.
func sh(t *testing.T, c *ssh.Client, script string, stdin string) (output string, status int) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // closed by the other end
	s.Stdin = strings.NewReader(stdin)
	out, err := s.CombinedOutput(script)
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitStatus()
	}
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return string(out), 0
}

func newSession(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func TestTools(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := o.login(t, h, "root")
	for _, tc := range []struct {
		script string
		stdin  string
		want   string
		status int
	}{
		{script: "echo hi", want: "hi\n"},
		{script: "pwd; echo ~; id -un", want: "/root\n/root\nroot\n"},
		{script: "nosuch --flag", want: "practice host: nosuch: not found\n", status: 127},
		{script: `sh -c 'echo "$0 $2"' muster a "b c"`, want: "muster b c\n"},
		{script: "set -eu; false; echo unreached", status: 1},
		{script: "cat > /etc/f && cat /etc/f", stdin: "content", want: "content"},
		{script: "cat /etc/none", want: "cat: /etc/none: No such file or directory\n", status: 1},
		{script: "sha256sum < /dev/null", want: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  -\n"},
		{script: "umask 077; echo x > /tmp/a; stat -c '%a %U:%G %s %F' /tmp/a", want: "600 root:root 2 regular file\n"},
		{script: "install -d -m 0750 -o nobody /x", want: "install: invalid user: \"nobody\"\n", status: 1},
		{
			script: "groupadd --system muster && useradd --system --gid muster --no-create-home --home-dir /var/lib/muster --shell /usr/sbin/nologin muster" +
				" && getent group muster && getent passwd muster && id -u muster",
			want: "muster:x:999:\nmuster:x:998:999::/var/lib/muster:/usr/sbin/nologin\n998\n",
		},
		{script: "getent passwd nobody", status: 2},
		{script: "mkdir -p /etc/m/pki && echo k > /etc/m/pki/k && chown muster:muster /etc/m/pki/k && chmod 0600 /etc/m/pki/k && mv -fT /etc/m/pki/k /etc/m/pki/l && stat -c '%a %U:%G %n' /etc/m/pki/l", want: "600 muster:muster /etc/m/pki/l\n"},
		{script: "rm -f /etc/m/pki/l && echo new > /etc/m/pki/l && stat -c %U /etc/m/pki/l", want: "root\n"},
		{script: "ln -sfn /etc/f /etc/link && readlink /etc/link && cat /etc/link", want: "/etc/f\ncontent"},
		{script: "d=$(mktemp -d /var/tmp/m.XXXXXX) && stat -c '%a %F' \"$d\" && rm -rf /var/tmp/m.* && ls -A /var/tmp", want: "700 directory\n"},
		{script: "printf 'a\\nb\\nc\\n' | tail -n 2 | head -n 1", want: "b\n"},
		{script: "printf 'a b\\nc d\\n' | grep -v ^a | cut -d ' ' -f 2", want: "d\n"},
		{script: "printf 'raw\\npacked' >/tmp/p && { head -c 4; wc -c; } </tmp/p", want: "raw\n6\n"},
		{script: "printf 'l1\\nl2\\n' | wc -l", want: "2\n"},
		{script: "command -v systemctl; command -v zstd", want: "/usr/bin/systemctl\n", status: 1},
		{script: "uname -s; date +%s%N | wc -c", want: "Linux\n20\n"},
		{script: "df -Pk /var/lib | tail -n 1 | grep -c /dev/practice", want: "1\n"},
		{script: "dd if=/dev/zero of=/var/lib/probe bs=4096 count=2 oflag=dsync status=none && stat -c %s /var/lib/probe", want: "8192\n"},
		{script: "flock -n /run/l sh -c 'echo held; flock -n /run/l true || echo busy'", want: "held\nbusy\n"},
		{
			script: "flock -w 3 /run/l sh -c '\n\tprintf \"%s\\n\" \"$2\" >\"$1\"\n\twhile [ -n \"$(timeout 60 head -n 1)\" ]; do echo beat; done\n' muster /run/l 'me & you'; cat /run/l",
			stdin:  "line\n", want: "beat\nme & you\n",
		},
		{script: "timeout 0.1 sleep 60 || echo late", want: "late\n"},
		{script: "A=1; export A; sh -c 'echo $A'", want: "1\n"},
		{script: "echo <(true)", want: "sh: sh:1:6: `<` must be followed by a word\n", status: 2},
		{script: "systemctl is-active nosuch", want: "inactive\n", status: 3},
		{script: "systemctl start nosuch", want: "Failed to start nosuch.service: Unit nosuch.service not found.\n", status: 5},
		{script: "trap 'echo bye' EXIT; echo hi", want: "hi\nbye\n"},
		{script: "sync /etc/f /etc && cd /etc && cat f", want: "content"},
		{script: "cat /etc/../../../../etc/f", want: "content"},
	} {
		got, status := sh(t, c, tc.script, tc.stdin)
		if got != tc.want || status != tc.status {
			t.Errorf("%s\ngot  %q, exit status %d\nwant %q, exit status %d", tc.script, got, status, tc.want, tc.status)
		}
	}
	if _, err := os.Stat(h.Path("/etc/f")); err != nil {
		t.Errorf("the files are not below the host's root: %v", err)
	}
}

// A read that waits for a client that says nothing ends with timeout, and what
// comes later is read by the next command.
func TestTimeoutEndsARead(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	s, err := o.login(t, h, "root").NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("timeout 0.1 head -n 1 || echo late; head -n 1"); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "late\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := io.WriteString(in, "more\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "more\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

func TestOnlyTheAuthorizedKeyLogsIn(t *testing.T) {
	o, stranger := newOperator(t), newOperator(t)
	h := o.start(t, practice.HostOptions{})
	if _, err := stranger.dial(h, "root"); err == nil {
		t.Error("another key logged in")
	}
	if _, err := o.dial(h, "admin"); err == nil {
		t.Error("another user logged in")
	}
}

func TestNonRootUser(t *testing.T) {
	o := newOperator(t)
	for _, doas := range []bool{false, true} {
		h := o.start(t, practice.HostOptions{User: "ops", Doas: doas})
		c := o.login(t, h, "ops")
		become, other := "sudo -n", "doas -n"
		if doas {
			become, other = other, become
		}
		for _, tc := range []struct {
			script string
			want   string
			status int
		}{
			{script: "id -un; pwd", want: "ops\n/home/ops\n"},
			{script: "echo x > /etc/x", want: "open /etc/x: permission denied\n", status: 1},
			{script: "echo x > x && stat -c %U x && mktemp -d /var/tmp/m.XXXX | wc -l", want: "ops\n1\n"},
			{script: "systemctl daemon-reload", want: "systemctl: Interactive authentication required.\n", status: 1},
			{script: become + " sh -c 'id -un; echo x > /etc/x; chmod 0600 /etc/x'", want: "root\n"},
			{script: "cat /etc/x", want: "cat: /etc/x: Permission denied\n", status: 1},
			{script: other + " true", want: "sh: 1: " + other[:4] + ": not found\n", status: 127},
		} {
			got, status := sh(t, c, tc.script, "")
			if got != tc.want || status != tc.status {
				t.Errorf("doas=%t: %s\ngot  %q, exit status %d\nwant %q, exit status %d", doas, tc.script, got, status, tc.want, tc.status)
			}
		}
		h.Inject(practice.Faults{SudoPassword: true})
		if out, status := sh(t, c, become+" true", ""); status != 1 {
			t.Errorf("%s without a password: exit status %d, %q", become, status, out)
		}
	}
}

func TestSFTP(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{User: "ops"})
	c := o.login(t, h, "ops")
	client, err := sftp.NewClient(c, sftp.UseConcurrentWrites(true))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // the connection ends with the test
	content := make([]byte, 3<<20)
	_, _ = rand.Read(content) // never fails
	f, err := client.Create("upload")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFrom(bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o640); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.PosixRename("upload", "final"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(h.Path("/home/ops/final"))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the file did not arrive whole: %d bytes, %v", len(got), err)
	}
	if out, _ := sh(t, c, "stat -c '%a %U' final", ""); out != "640 ops\n" {
		t.Errorf("mode and owner are %q", out)
	}
	if _, err := client.Create("/etc/passwd"); !errors.Is(err, os.ErrPermission) {
		t.Errorf("writing /etc/passwd as ops: %v", err)
	}
	if _, err := client.Stat("missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat of a missing file: %v", err)
	}
	list, err := client.ReadDir(".")
	if err != nil || len(list) != 1 || list[0].Name() != "final" {
		t.Errorf("listing: %v, %v", list, err)
	}
}

func TestFaults(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})

	t.Run("drop the connection in an upload", func(t *testing.T) {
		c := o.login(t, h, "root")
		client, err := sftp.NewClient(c, sftp.UseConcurrentWrites(true))
		if err != nil {
			t.Fatal(err)
		}
		h.Inject(practice.Faults{DropUploadAfter: 1 << 20})
		f, err := client.Create("/tmp/up")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadFrom(bytes.NewReader(make([]byte, 4<<20))); err == nil {
			t.Error("the upload went through")
		}
		if info, err := os.Stat(h.Path("/tmp/up")); err != nil || info.Size() >= 4<<20 {
			t.Errorf("a part of the file should be there: %v, %v", info, err)
		}
		c = o.login(t, h, "root")
		if _, status := sh(t, c, "cat > /tmp/up2", strings.Repeat("x", 2<<20)); status != 0 {
			t.Error("the fault struck twice")
		}
	})
	t.Run("disk full", func(t *testing.T) {
		c := o.login(t, h, "root")
		h.Inject(practice.Faults{DiskFullAfter: 1000, FreeSpace: 1 << 20})
		out, status := sh(t, c, "head -c 4000 /dev/zero > /dev/null; cat > /tmp/full", strings.Repeat("x", 4000))
		if status == 0 || !strings.Contains(strings.ToLower(out), "no space left on device") {
			t.Errorf("exit status %d, %q", status, out)
		}
		if out, _ := sh(t, c, "df -Pk / | tail -n 1 | cut -d ' ' -f 4", ""); out != "1024\n" {
			t.Errorf("df says %q", out)
		}
	})
	t.Run("facts", func(t *testing.T) {
		c := o.login(t, h, "root")
		h.Inject(practice.Faults{Machine: "riscv64", NoSystemd: true, ClockOffset: time.Hour, FailCommands: map[string]string{"chown": "chown: broken"}})
		out, _ := sh(t, c, "uname -m; systemctl 2>&1; chown x y 2>&1; date +%s", "")
		lines := strings.Split(out, "\n")
		if lines[0] != "riscv64" || lines[1] != "practice host: systemctl: not found" || lines[2] != "chown: broken" {
			t.Errorf("%q", out)
		}
		at, err := strconv.ParseInt(lines[3], 10, 64)
		if err != nil || time.Until(time.Unix(at, 0)) < 50*time.Minute {
			t.Errorf("the clock says %s", lines[3])
		}
	})
	t.Run("slow fsync", func(t *testing.T) {
		c := o.login(t, h, "root")
		h.Inject(practice.Faults{SlowSync: 50 * time.Millisecond})
		begin := time.Now()
		sh(t, c, "touch /tmp/s && sync /tmp/s && sync /tmp/s", "")
		if took := time.Since(begin); took < 100*time.Millisecond {
			t.Errorf("two syncs took %v", took)
		}
	})
	t.Run("refused connections", func(t *testing.T) {
		h.Inject(practice.Faults{RefuseConnections: true})
		if _, err := o.dial(h, "root"); err == nil {
			t.Error("a connection was accepted")
		}
		h.Inject(practice.Faults{})
		o.login(t, h, "root")
	})
	t.Run("changed host key", func(t *testing.T) {
		h.Inject(practice.Faults{ChangedHostKey: true})
		if _, err := o.dial(h, "root"); err == nil || !strings.Contains(err.Error(), "host key is SHA256:") {
			t.Errorf("dial: %v", err)
		}
		h.Inject(practice.Faults{})
	})
	t.Run("reboot at the third command", func(t *testing.T) {
		c := o.login(t, h, "root")
		h.Inject(practice.Faults{RebootAtCommand: 3})
		out, err := newSession(t, c).Output("touch /tmp/1 /run/gone; echo builtin; touch /tmp/2; touch /tmp/3")
		if err == nil || string(out) != "builtin\n" {
			t.Errorf("%q, %v", out, err)
		}
		eventually(t, "the host is back", func() bool {
			back, err := o.dial(h, "root")
			if err != nil {
				return false
			}
			defer back.Close() //nolint:errcheck // only asked once
			out, _ := sh(t, back, "ls /tmp/2 /tmp/3 /run/gone", "")
			return strings.Contains(out, "2\n") && strings.Contains(out, "/tmp/3: No such file") && !strings.Contains(out, "gone\n")
		})
	})
	t.Run("reboot before a command", func(t *testing.T) {
		c := o.login(t, h, "root")
		h.Inject(practice.Faults{RebootBefore: "touch /tmp/b"})
		if out, err := newSession(t, c).Output("touch /tmp/a && touch /tmp/b"); err == nil {
			t.Errorf("%q", out)
		}
		_, errA := os.Stat(h.Path("/tmp/a"))
		_, errB := os.Stat(h.Path("/tmp/b"))
		if errA != nil || !errors.Is(errB, os.ErrNotExist) {
			t.Errorf("%v, %v", errA, errB)
		}
		eventually(t, "the host is back", func() bool {
			back, err := o.dial(h, "root")
			if err != nil {
				return false
			}
			_ = back.Close() // only asked once
			return true
		})
	})
	t.Run("port taken", func(t *testing.T) {
		c := o.login(t, h, "root")
		l, err := net.Listen("tcp", net.JoinHostPort(h.Address(), strconv.Itoa(h.Ports().Client)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // only had to be there
		out, _ := sh(t, c, fmt.Sprintf("ss -Hltnp | grep :%d", h.Ports().Client), "")
		if !strings.Contains(out, `users:(("stranger",pid=`) {
			t.Errorf("ss says %q", out)
		}
	})
}

func TestForwardingReachesLoopbackOnly(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // ends with the test
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, _ = io.WriteString(conn, "hello")
			_ = conn.Close()
		}
	}()
	c := o.login(t, h, "root")
	conn, err := c.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := c.Dial("tcp", "192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "only loopback") {
		t.Errorf("dial beyond loopback: %v", err)
	}
}

func TestHundredHosts(t *testing.T) {
	o := newOperator(t)
	begin := time.Now()
	dir := t.TempDir()
	for i := range 100 {
		o.start(t, practice.HostOptions{Name: fmt.Sprintf("controller-%d", i), Dir: filepath.Join(dir, strconv.Itoa(i))})
	}
	t.Logf("100 hosts were up after %v", time.Since(begin))
}

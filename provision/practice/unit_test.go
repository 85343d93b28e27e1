package practice_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/crypto/ssh"

	"muster/provision/practice"
)

// TestMain lets this binary stand in for a server: PLAY says which.
func TestMain(m *testing.M) {
	play, ok := os.LookupEnv("PLAY")
	if !ok {
		os.Exit(m.Run())
	}
	if err := act(play, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(7)
	}
}

// act is a server that keeps a record of its starts in --data-dir.
func act(play string, args []string) error {
	flags := map[string]string{}
	for i := 0; i < len(args); i++ {
		name, value, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !joined && i+1 < len(args) {
			i++
			value = args[i]
		}
		flags[name] = value
	}
	fmt.Println("playing", play)
	switch play {
	case "fail":
		return errors.New("cannot go on")
	case "version":
		fmt.Println(strings.Join(args, " "))
		return nil
	}
	starts, err := os.OpenFile(filepath.Join(flags["data-dir"], "starts"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(starts, os.Getpid()); err != nil {
		return err
	}
	l, err := net.Listen("tcp", flags["listen"])
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // the process ends
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if play == "stubborn" {
		signal.Reset(syscall.SIGTERM)
		signal.Ignore(syscall.SIGTERM)
	}
	if play != "never-ready" {
		if _, err := daemon.SdNotify(false, "STATUS=fine\nREADY=1"); err != nil {
			return err
		}
	}
	<-stop
	fmt.Println("stopping")
	return nil
}

// unitText is a unit that runs this binary.
func unitText(play string, h *practice.Host, more string) string {
	return fmt.Sprintf(`[Unit]
Description=a play
StartLimitIntervalSec=0

[Service]
Type=notify
User=muster
Group=muster
Environment=PLAY=%s
StateDirectory=play
StateDirectoryMode=0700
Restart=on-failure
RestartSec=50ms
ExecStart=/usr/local/bin/play \
  --data-dir /var/lib/play \
  --listen=127.0.0.1:%d
%s

[Install]
WantedBy=multi-user.target
`, play, h.Ports().Client, more)
}

// stage puts this binary and a unit on a host.
func stage(t *testing.T, o operator, h *practice.Host, unit string) *ssh.Client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := copyFile(self, h.Path("/usr/local/bin/play")); err != nil {
		t.Fatal(err)
	}
	c := o.login(t, h, "root")
	must(t, c, "getent passwd muster || { groupadd --system muster && useradd --system --gid muster muster; }", "")
	must(t, c, "cat > /etc/systemd/system/play.service && systemctl daemon-reload", unit)
	return c
}

func must(t *testing.T, c *ssh.Client, script, stdin string) string {
	t.Helper()
	out, status := sh(t, c, script, stdin)
	if status != 0 {
		t.Fatalf("%s: exit status %d\n%s", script, status, out)
	}
	return out
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func starts(t *testing.T, h *practice.Host) int {
	t.Helper()
	data, err := os.ReadFile(h.Path("/var/lib/play/starts"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

func TestUnit(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := stage(t, o, h, unitText("server", h, ""))

	must(t, c, "systemd-analyze verify /etc/systemd/system/play.service", "")
	must(t, c, "systemctl enable play && systemctl start play && systemctl is-active play", "")
	state := h.UnitState("play")
	if state["ActiveState"] != "active" || state["StatusText"] != "fine" || state["UnitFileState"] != "enabled" {
		t.Errorf("%v", state)
	}
	if out := must(t, c, "stat -c '%a %U:%G' /var/lib/play", ""); out != "700 muster:muster\n" {
		t.Errorf("the state directory is %q", out)
	}
	if out := must(t, c, fmt.Sprintf("ss -Hltnp | grep :%d", h.Ports().Client), ""); !strings.Contains(out, `(("play",pid=`+state["MainPID"]) {
		t.Errorf("ss says %q", out)
	}

	t.Run("it comes back when it is killed", func(t *testing.T) {
		pid, err := strconv.Atoi(state["MainPID"])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a second start", func() bool {
			s := h.UnitState("play")
			return s["ActiveState"] == "active" && s["NRestarts"] == "1" && s["MainPID"] != state["MainPID"]
		})
		if starts(t, h) != 2 {
			t.Errorf("%d starts", starts(t, h))
		}
	})
	t.Run("a changed file waits for daemon-reload", func(t *testing.T) {
		must(t, c, "cat > /etc/systemd/system/play.service", unitText("fail", h, ""))
		if out := must(t, c, "systemctl show -p NeedDaemonReload play", ""); out != "NeedDaemonReload=yes\n" {
			t.Errorf("%q", out)
		}
		must(t, c, "systemctl restart play && systemctl is-active play", "")
		must(t, c, "cat > /etc/systemd/system/play.service && systemctl daemon-reload", unitText("server", h, ""))
	})
	t.Run("stop lets it end", func(t *testing.T) {
		must(t, c, "systemctl stop play", "")
		if s := h.UnitState("play"); s["ActiveState"] != "inactive" || s["MainPID"] != "0" {
			t.Errorf("%v", s)
		}
		out := must(t, c, "journalctl -u play -n 3 --no-pager -o cat", "")
		if out != "Stopping play.service - a play...\nstopping\nStopped play.service - a play.\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("a reboot starts what is enabled", func(t *testing.T) {
		before := starts(t, h)
		h.Reboot()
		eventually(t, "active after the reboot", func() bool { return h.UnitState("play")["ActiveState"] == "active" })
		if got := starts(t, h); got != before+1 {
			t.Errorf("%d starts after %d", got, before)
		}
		c = o.login(t, h, "root")
		must(t, c, "systemctl disable play", "")
		h.Reboot()
		if s := h.UnitState("play"); s["ActiveState"] != "inactive" || s["UnitFileState"] != "disabled" {
			t.Errorf("%v", s)
		}
	})
}

func TestUnitThatFails(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := stage(t, o, h, unitText("fail", h, ""))
	out, status := sh(t, c, "systemctl start play", "")
	if status != 1 || !strings.Contains(out, "Job for play.service failed") {
		t.Errorf("exit status %d, %q", status, out)
	}
	eventually(t, "three attempts", func() bool {
		n, err := strconv.Atoi(h.UnitState("play")["NRestarts"])
		return err == nil && n >= 3
	})
	must(t, c, "systemctl stop play", "")
	if out := must(t, c, "journalctl -u play -n 20 --no-pager -o cat", ""); !strings.Contains(out, "error: cannot go on\n") ||
		!strings.Contains(out, "Main process exited, result=exit-code, status=7") {
		t.Errorf("%q", out)
	}

	must(t, c, "cat > /etc/systemd/system/play.service && systemctl daemon-reload",
		strings.Replace(unitText("fail", h, "StartLimitIntervalSec=10"), "StartLimitIntervalSec=0", "StartLimitBurst=3", 1))
	must(t, c, "systemctl start --no-block play", "")
	eventually(t, "the start limit", func() bool { return h.UnitState("play")["Result"] == "start-limit-hit" })
	must(t, c, "systemctl reset-failed play", "")
	if s := h.UnitState("play"); s["ActiveState"] != "inactive" {
		t.Errorf("%v", s)
	}
}

func TestUnitThatIsNotReady(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := stage(t, o, h, unitText("never-ready", h, ""))
	must(t, c, "systemctl start --no-block play", "")
	eventually(t, "a process", func() bool { return h.UnitState("play")["MainPID"] != "0" })
	if s := h.UnitState("play"); s["ActiveState"] != "activating" {
		t.Errorf("%v", s)
	}
	must(t, c, "systemctl stop play && cat > /etc/systemd/system/play.service && systemctl daemon-reload",
		unitText("never-ready", h, "TimeoutStartSec=100ms\nRestart=no"))
	if out, status := sh(t, c, "systemctl start play", ""); status != 1 {
		t.Errorf("exit status %d, %q", status, out)
	}
	eventually(t, "the unit has failed", func() bool { return h.UnitState("play")["Result"] == "timeout" })
}

func TestUnitThatIgnoresSIGTERM(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := stage(t, o, h, unitText("stubborn", h, "TimeoutStopSec=200ms"))
	must(t, c, "systemctl start play", "")
	begin := time.Now()
	must(t, c, "systemctl stop play", "")
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("stopped after %v", took)
	}
	if s := h.UnitState("play"); s["ActiveState"] != "inactive" {
		t.Errorf("%v", s)
	}
}

func TestBadUnits(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := stage(t, o, h, unitText("server", h, ""))
	for _, tc := range []struct{ name, from, to, want string }{
		{"no program", "/usr/local/bin/play", "/usr/local/bin/none", "Command /usr/local/bin/none is not executable: No such file or directory"},
		{"no command", "ExecStart", "Execstart", "service has no ExecStart="},
		{"wrong type", "Type=notify", "Type=odd", "failed to parse service type: odd"},
		{"wrong time", "RestartSec=50ms", "RestartSec=soon", "RestartSec=:"},
		{"cut short", "[Install]\nWantedBy=multi-user.target\n", "[Inst", "unable to find end of section"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(unitText("server", h, ""), tc.from, tc.to, 1)
			out, status := sh(t, c, "cat > /tmp/new.service; systemd-analyze verify /tmp/new.service", text)
			if status != 1 || !strings.Contains(out, tc.want) {
				t.Errorf("exit status %d, %q, want %q", status, out, tc.want)
			}
		})
	}
	must(t, c, "cat > /etc/systemd/system/play.service && systemctl daemon-reload",
		strings.Replace(unitText("server", h, "Restart=no"), "User=muster", "User=nobody", 1))
	if _, status := sh(t, c, "systemctl start play", ""); status != 1 {
		t.Error("a unit started as a user that does not exist")
	}
}

func TestInstalledProgram(t *testing.T) {
	o := newOperator(t)
	h := o.start(t, practice.HostOptions{})
	c := stage(t, o, h, unitText("server", h, ""))
	out := must(t, c, "PLAY=version play --config=/etc/hostname /registry/x", "")
	if want := "playing version\n--config=" + h.Path("/etc/hostname") + " /registry/x\n"; out != want {
		t.Errorf("%q, want %q", out, want)
	}
	if _, status := sh(t, c, "PLAY=fail /usr/local/bin/play", ""); status != 7 {
		t.Errorf("exit status %d", status)
	}
}

// A host that is started again on its directory is the same host.
func TestHostComesBackOnItsDirectory(t *testing.T) {
	o := newOperator(t)
	opts := practice.HostOptions{Name: "controller-0", Dir: t.TempDir(), AuthorizedKey: o.signer.PublicKey()}
	first, err := practice.StartHost(opts)
	if err != nil {
		t.Fatal(err)
	}
	c := stage(t, o, first, unitText("server", first, ""))
	must(t, c, "systemctl enable play && systemctl start play && chown muster:muster /usr/local/bin/play", "")
	pid, err := strconv.Atoi(first.UnitState("play")["MainPID"])
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the unit outlived its host: %v", err)
	}
	opts.Ports = first.Ports()
	second := o.start(t, opts)
	if second.Fingerprint() != first.Fingerprint() {
		t.Error("another host key")
	}
	eventually(t, "the enabled unit is active", func() bool { return second.UnitState("play")["ActiveState"] == "active" })
	c = o.login(t, second, "root")
	if out := must(t, c, "stat -c %U /usr/local/bin/play", ""); out != "muster\n" {
		t.Errorf("the owner is %q", out)
	}
}

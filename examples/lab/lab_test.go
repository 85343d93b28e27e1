//go:build lab

package lab

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	keep   = flag.Bool("keep", false, "keep the hosts of a failed test")
	rounds = flag.Int("rounds", 1, "measure this many times and print the medians")
)

// Budgets are what the installer promises on hosts like these. They are
// reported, not enforced: a busy machine is no defect.
const (
	firstApplyBudget  = 15 * time.Second
	secondApplyBudget = 3 * time.Second
)

// TestLab installs a cluster on bare hosts, uses it with the distribution's
// client, and takes the hosts away one at a time. Its steps build on each
// other.
func TestLab(t *testing.T) {
	t.Setenv("ETCDCTL_API", "3")
	h := up(t, 3)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *hosts)
	}{
		{"bastion", bastion},
		{"plan for bare hosts", plan},
		{"apply", apply},
		{"apply again", applyAgain},
		{"plan for a cluster", plan},
		{"unit", unit},
		{"tools on the host", toolsOnHost},
		{"client", client},
		{"restart", restart},
		{"any one down", anyOneDown},
		{"leader cut off", leaderCutOff},
		{"reset", reset},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			at := *h
			at.t = t
			step.run(t, &at)
		}) {
			t.Fatalf("%s failed; the steps after it need it", step.name)
		}
	}
}

// bastion makes sure that the awkward host is one: its sshd answers nobody but
// the bastion, and root may not log in.
func bastion(t *testing.T, h *hosts) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(h.address(2), "22")); err == nil {
		conn.Close()
		t.Errorf("%s answers on port 22 without the bastion", h.names[2])
	}
	if out, err := h.try(10*time.Second, "", "ssh", "-F", filepath.Join(h.state, "ssh_config"), "-l", "root", h.names[2], "id"); err == nil {
		t.Errorf("root may log in to %s: %s", h.names[2], out)
	}
	if user := strings.TrimSpace(h.on(h.names[2], "id -un")); user != "admin" {
		t.Errorf("muster logs in to %s as %s", h.names[2], user)
	}
}

// plan says what apply would do, and leaves no trace on any host but the one
// that sshd, sudo and PAM leave of every login.
func plan(t *testing.T, h *hosts) {
	for _, name := range h.names {
		h.on(name, "sudo -n true") // sudo leaves a mark in the home of who calls it first
	}
	before := h.trees()
	out, err := h.muster(time.Minute, "plan", "-o", "json")
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 2) {
		t.Fatal(err)
	}
	t.Logf("%d bytes of plan", len(out))
	for i, after := range h.trees() {
		if after != before[i] {
			t.Errorf("plan has changed %s (-before +after):\n%s", h.names[i], cmp.Diff(strings.Split(before[i], "\n"), strings.Split(after, "\n")))
		}
	}
}

// trees describes every file of every host: its kind, mode, owner, size, when
// its content and its inode changed, and a hash of all contents. Left out are
// logs, what systemd and PAM keep of a login, and the data of a member, who
// writes by itself.
func (h *hosts) trees() []string {
	h.t.Helper()
	const look = `cd / && list() {
	find / /run -xdev \( -path /var/log -o -path /run/systemd -o -path /run/user -o -path /run/utmp -o -path /run/log -o -path /run/sudo -o -path /run/motd.dynamic -o -path '/var/lib/muster/*' \) -prune -o "$@"
}
list ! -path /run -printf '%p %y %m %u:%g %s %T@ %C@ %l\n' | sort
list -type f -print0 | sort -z | xargs -0 cat | sha256sum`
	var trees []string
	for i := range h.names {
		tree := h.docker("exec", h.container(i), "sh", "-ec", look)
		if strings.Count(tree, "\n") < 5000 {
			h.t.Fatalf("%s has only %d files:\n%s", h.names[i], strings.Count(tree, "\n"), tree)
		}
		trees = append(trees, tree)
	}
	return trees
}

func apply(t *testing.T, h *hosts) {
	began := time.Now()
	out, err := h.muster(5*time.Minute, "apply", "--yes")
	if err != nil {
		t.Fatal(err)
	}
	budget(t, "bare hosts to verified cluster", time.Since(began), firstApplyBudget)
	t.Log(out)
}

func applyAgain(t *testing.T, h *hosts) {
	began := time.Now()
	out, err := h.muster(time.Minute, "apply", "--yes")
	if err != nil {
		t.Fatal(err)
	}
	budget(t, "apply with nothing to do", time.Since(began), secondApplyBudget)
	if !regexp.MustCompile(`\b0 changes`).MatchString(out) {
		t.Errorf("the second apply does not report 0 changes:\n%s", out)
	}
}

// unit checks what an administrator looks for on a host.
func unit(t *testing.T, h *hosts) {
	var initial []string
	for i, name := range h.names {
		initial = append(initial, fmt.Sprintf("%s=https://%s:2380", name, h.address(i)))
	}
	exposure := regexp.MustCompile(`Overall exposure level for musterd\.service: ([0-9.]+)`)
	for i, name := range h.names {
		flags := []string{
			"--advertise-client-urls " + h.endpoint(i),
			"--initial-cluster " + strings.Join(initial, ","),
		}
		text := h.on(name, "systemctl cat musterd")
		processes := h.on(name, "ps -ef")
		for _, flag := range flags {
			if !strings.Contains(text, flag) {
				t.Errorf("%s: systemctl cat musterd has no %q:\n%s", name, flag, text)
			}
			if !strings.Contains(processes, flag) {
				t.Errorf("%s: ps -ef has no %q:\n%s", name, flag, processes)
			}
		}

		security := h.on(name, "systemd-analyze security --no-pager musterd.service")
		level := exposure.FindStringSubmatch(security)
		if level == nil {
			t.Fatalf("%s: no exposure level in:\n%s", name, security)
		}
		value, err := strconv.ParseFloat(level[1], 64)
		if err != nil || value > 1.5 {
			t.Errorf("%s: exposure level %s, want at most 1.5 (%v):\n%s", name, level[1], err, security)
		}
		t.Logf("%s: exposure level %s", name, level[1])
	}
}

// toolsOnHost lists the members with the tools that came with the server.
func toolsOnHost(t *testing.T, h *hosts) {
	const pki = "/etc/muster/pki"
	for _, name := range h.names {
		out := h.on(name, "sudo etcdctl --cacert "+pki+"/ca.crt --cert "+pki+"/healthcheck-client.crt --key "+
			pki+"/healthcheck-client.key --endpoints https://127.0.0.1:2379 member list")
		if got := strings.Count(out, "started"); got != len(h.names) {
			t.Errorf("%s: etcdctl member list shows %d started members, want %d:\n%s", name, got, len(h.names), out)
		}
		if out := h.on(name, "etcdutl version"); !strings.HasPrefix(out, "etcdutl version:") {
			t.Errorf("%s: etcdutl version says %q", name, out)
		}
	}
}

// client drives the cluster with Debian's etcdctl.
func client(t *testing.T, h *hosts) {
	version, err := h.try(10*time.Second, "", "etcdctl", "version")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", version)

	run := func(stdin string, args ...string) string {
		t.Helper()
		out, err := h.etcdctl(stdin, h.endpoints(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := func(out, want string) {
		t.Helper()
		if strings.TrimSpace(out) != want {
			t.Errorf("got %q, want %q", out, want)
		}
	}

	table := run("", "member", "list", "-w", "table")
	t.Logf("\n%s", table)
	for i, name := range h.names {
		row := regexp.MustCompile(`(?m)^\|.*\bstarted\b.*\b` + name + `\b.*` +
			regexp.QuoteMeta(fmt.Sprintf("https://%s:2380", h.address(i))) + `.*` + regexp.QuoteMeta(h.endpoint(i)))
		if !row.MatchString(table) {
			t.Errorf("member list has no started %s", name)
		}
	}

	want(run("", "put", "fruit", "apple"), "OK")
	want(run("", "get", "fruit"), "fruit\napple")
	for i := range 12 {
		want(run("", "put", fmt.Sprintf("/registry/pods/%02d", i), "pod"), "OK")
	}
	keys := strings.Fields(run("", "get", "/", "--prefix", "--keys-only", "--limit=10"))
	if len(keys) != 10 || keys[0] != "/registry/pods/00" || keys[9] != "/registry/pods/09" {
		t.Errorf("get / --prefix --keys-only --limit=10 gave %q", keys)
	}
	const orchard = "value(\"fruit\") = \"apple\"\n\nput fruit pear\nget fruit\n\nput fruit plum\n\n"
	want(run(orchard, "txn"), "SUCCESS\n\nOK\n\nfruit\npear")
	want(run(orchard, "txn"), "FAILURE\n\nOK")
	want(run("", "del", "fruit"), "1")
	want(run("", "del", "fruit"), "0")
	want(run("", "get", "fruit"), "")

	var health []struct {
		Endpoint string
		Health   bool
	}
	unmarshal(t, run("", "endpoint", "health", "-w", "json"), &health)
	if len(health) != len(h.names) {
		t.Errorf("endpoint health knows %d endpoints", len(health))
	}
	for _, e := range health {
		if !e.Health {
			t.Errorf("%s is not healthy", e.Endpoint)
		}
	}

	status := h.status()
	t.Logf("\n%s", run("", "endpoint", "status", "-w", "table"))
	members := map[uint64]bool{}
	for _, e := range status {
		members[e.Status.Header.MemberID] = true
		first := status[0].Status
		if e.Status.Leader == 0 || e.Status.Leader != first.Leader || e.Status.Header.ClusterID != first.Header.ClusterID ||
			e.Status.Version == "" || e.Status.DBSize <= 0 {
			t.Errorf("%s has the status %+v, the first endpoint %+v", e.Endpoint, e.Status, first)
		}
	}
	if len(members) != len(h.names) || !members[status[0].Status.Leader] {
		t.Errorf("endpoint status names the members %v and the leader %d", members, status[0].Status.Leader)
	}
}

// restart takes hosts down cleanly and otherwise; they must come back by
// themselves.
func restart(t *testing.T, h *hosts) {
	// Not docker restart: it keeps the root file system mounted, which the
	// systemd of Debian 11 leaves read-only when it goes down.
	h.docker("stop", h.container(0))
	h.docker("start", h.container(0))
	h.waitHealthy("after docker stop and docker start of " + h.names[0])
	h.docker("kill", h.container(1))
	h.docker("start", h.container(1))
	h.waitHealthy("after docker kill and docker start of " + h.names[1])
}

// anyOneDown writes and reads while each host in turn is gone, the leader's
// among them. The host that returns must have what it missed.
func anyOneDown(t *testing.T, h *hosts) {
	for i, name := range h.names {
		key := "down/" + name
		h.docker("kill", h.container(i))
		pause := eventually(t, 30*time.Second, "a write without "+name, func() error {
			_, err := h.etcdctl("", h.endpoints(i), "put", key, "0")
			return err
		})
		t.Logf("%s down: the first write was through after %s", name, pause.Round(10*time.Millisecond))
		for n := 1; n <= 10; n++ {
			value := strconv.Itoa(n)
			if _, err := h.etcdctl("", h.endpoints(i), "put", key, value); err != nil {
				t.Fatalf("%s down: %v", name, err)
			}
			for other := range h.names {
				if other == i {
					continue
				}
				out, err := h.etcdctl("", h.endpoint(other), "get", key, "--print-value-only")
				if err != nil || strings.TrimSpace(out) != value {
					t.Fatalf("%s down: %s reads %q, %v; %q is written", name, h.names[other], out, err, value)
				}
			}
		}
		h.docker("start", h.container(i))
		h.waitHealthy("after the return of " + name)
		out, err := h.etcdctl("", h.endpoint(i), "get", key, "--print-value-only")
		if err != nil || strings.TrimSpace(out) != "10" {
			t.Fatalf("%s is back and reads %q, %v; 10 is written", name, out, err)
		}
	}
}

// leaderCutOff pulls the leader's network cable. The others go on without it,
// and when it is back it has what they wrote, not what it remembers.
func leaderCutOff(t *testing.T, h *hosts) {
	leader := -1
	for i, s := range h.status() {
		if s.Status.Leader == s.Status.Header.MemberID {
			leader = i
		}
	}
	if leader < 0 {
		t.Fatal("no endpoint leads the cluster")
	}
	if _, err := h.etcdctl("", h.endpoints(), "put", "cable", "in"); err != nil {
		t.Fatal(err)
	}
	h.docker("network", "disconnect", labName, h.container(leader))
	pause := eventually(t, 30*time.Second, "a write without the leader", func() error {
		_, err := h.etcdctl("", h.endpoints(leader), "put", "cable", "out")
		return err
	})
	t.Logf("%s, the leader, cut off: the first write was through after %s", h.names[leader], pause.Round(10*time.Millisecond))
	h.docker("network", "connect", "--ip", h.address(leader), labName, h.container(leader))
	h.waitHealthy("after the return of " + h.names[leader])
	out, err := h.etcdctl("", h.endpoint(leader), "get", "cable", "--print-value-only")
	if err != nil || strings.TrimSpace(out) != "out" {
		t.Fatalf("%s is back and reads %q, %v; \"out\" is written", h.names[leader], out, err)
	}
}

// reset takes the cluster off the hosts and puts it back from the data that
// stayed there.
func reset(t *testing.T, h *hosts) {
	if _, err := h.etcdctl("", h.endpoints(), "put", "kept", "yes"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.muster(time.Minute, "reset", "--yes"); err != nil {
		t.Fatal(err)
	}
	for _, name := range h.names {
		left := h.on(name, "systemctl is-active musterd.service; sudo ls /usr/local/bin /etc/muster /etc/systemd/system 2>&1; true")
		for _, trace := range []string{"musterd.service", "musterctl", "server.key"} {
			if strings.HasPrefix(left, "active") || strings.Contains(left, trace) {
				t.Errorf("%s after the reset: %s is left:\n%s", name, trace, left)
			}
		}
	}
	if _, err := h.muster(5*time.Minute, "apply", "--yes"); err != nil {
		t.Fatal(err)
	}
	out, err := h.etcdctl("", h.endpoints(), "get", "kept", "--print-value-only")
	if err != nil || strings.TrimSpace(out) != "yes" {
		t.Fatalf("after reset and apply the key reads %q, %v", out, err)
	}
}

// waitHealthy waits until muster itself calls the cluster healthy.
func (h *hosts) waitHealthy(when string) {
	h.t.Helper()
	took := eventually(h.t, time.Minute, "muster status "+when, func() error {
		_, err := h.muster(20*time.Second, "status")
		return err
	})
	h.t.Logf("healthy %s: %s", when, took.Round(10*time.Millisecond))
}

func budget(t *testing.T, what string, took, limit time.Duration) {
	verdict := "within"
	if took > limit {
		verdict = "OVER"
	}
	t.Logf("%s: %s, %s its budget of %s", what, took.Round(10*time.Millisecond), verdict, limit)
}

func unmarshal(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}

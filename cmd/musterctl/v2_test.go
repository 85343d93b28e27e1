package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/v2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/errgroup"
	"mvdan.cc/sh/v3/shell"

	"muster/cmd/musterctl/ctlv2"
	"muster/kvserver"
	"muster/kvserver/etcd34"
)

// TestTranscriptV2 has etcdctl 3.4 and this program say what
// testdata/v2.txt makes them say, each of etcd 3.4 and of musterd. All must say
// the same.
func TestTranscriptV2(t *testing.T) {
	t.Parallel()
	theirs := etcd34.Program(t, "etcdctl")
	etcd := func() []string { return etcd34.Start(t, addresses(t, 1)...) }
	compareV2(t, "testdata/v2.txt",
		&v2Speaker{name: "their client of etcd", program: theirs, endpoints: etcd()},
		&v2Speaker{name: "our client of etcd", endpoints: etcd()},
		&v2Speaker{name: "their client of musterd", program: theirs, endpoints: startMusterdV2(t, 1)},
		&v2Speaker{name: "our client of musterd", endpoints: startMusterdV2(t, 1)},
	)
}

// TestTranscriptV2OfMembers does so with three members, each client with its own
// server.
func TestTranscriptV2OfMembers(t *testing.T) {
	t.Parallel()
	theirs := etcd34.Program(t, "etcdctl")
	compareV2(t, "testdata/v2members.txt",
		&v2Speaker{name: "their client of etcd", program: theirs, endpoints: etcd34.Start(t, addresses(t, 3)...)},
		&v2Speaker{name: "our client of musterd", endpoints: startMusterdV2(t, 3)},
	)
}

// compareV2 compares what the first speaker is told with what the others are.
func compareV2(t *testing.T, path string, sides ...*v2Speaker) {
	t.Helper()
	commands := readTranscript(t, path)
	said := make([][]string, len(sides))
	var talking errgroup.Group
	for i, side := range sides {
		side.dir = t.TempDir()
		talking.Go(func() error {
			for _, c := range commands {
				answer, err := side.runAgain(t.Context(), c)
				if err != nil {
					return fmt.Errorf("line %d: %s, %s: %w", c.line, c.text, side.name, err)
				}
				said[i] = append(said[i], answer)
			}
			return nil
		})
	}
	if err := talking.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, c := range commands {
		for n, side := range sides[1:] {
			if diff := cmp.Diff(said[0][i], said[n+1][i]); diff != "" {
				t.Errorf("line %d: %s: %s says something else (-%s +%s):\n%s", c.line, c.text, side.name, sides[0].name, side.name, diff)
			}
		}
		if c.fails != !strings.HasPrefix(said[0][i], "exit 0\n") {
			t.Errorf("line %d: %s: fails %v is wrong:\n%s", c.line, c.text, c.fails, said[0][i])
		}
	}
}

// v2Speaker talks to one of the servers with one of the clients.
type v2Speaker struct {
	name, dir string
	// program is empty for this one, which runs in this process if it can.
	program   string
	endpoints []string
	added     string // the last member added
}

// runAgain runs a command, and one that is to succeed again while it does not:
// members have to be connected for a while before others are added.
func (s *v2Speaker) runAgain(ctx context.Context, c command) (answer string, err error) {
	for deadline := time.After(patience); ; {
		answer, err = s.run(ctx, c)
		if err != nil || c.fails || strings.HasPrefix(answer, "exit 0\n") {
			return answer, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			return answer, nil
		}
	}
}

var (
	v2Added      = regexp.MustCompile(`with ID ([0-9a-f]+) to cluster`)
	v2Expiration = regexp.MustCompile(`"expiration":"[^"]*"`)
	v2TTL        = regexp.MustCompile(`("ttl":|TTL: )[1-9][0-9]*`)
	v2Leads      = regexp.MustCompile(`isLeader=(true|false)`)
)

func (s *v2Speaker) mask(text string) string {
	text = strings.NewReplacer(s.dir, "DIR", "localhost:2380", "ADDRESS", "   3.4.23\n", "   VERSION\n", "   "+version.Version+"\n", "   VERSION\n").Replace(text)
	text = address.ReplaceAllString(text, "ADDRESS")
	text = loopbackAddress.ReplaceAllString(text, "ADDRESS")
	text = identity.ReplaceAllString(text, " ID")
	text = v2Expiration.ReplaceAllString(text, `"expiration":"E"`)
	return v2TTL.ReplaceAllString(text, "${1}N")
}

var loopbackAddress = regexp.MustCompile(`127\.[0-9.]+:[0-9]+`)

func (s *v2Speaker) run(ctx context.Context, c command) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	args, err := shell.Fields(c.text, func(name string) string {
		switch name {
		case "ADDED":
			return s.added
		case "DIR":
			return s.dir
		case "ENDPOINT":
			return s.endpoints[0]
		default:
			return "$" + name // for the commands that commands run
		}
	})
	if err != nil {
		return "", err
	}
	if len(s.endpoints) > 1 {
		args = append([]string{"--no-sync"}, args...) // members learn at different times what has changed
	}
	args = append([]string{"--timeout", "50s", "--total-timeout", "50s"}, args...) // of a busy machine
	if !slices.Contains(args, "--endpoints") {
		args = append([]string{"--endpoints", s.endpoints[0]}, args...)
	}
	var stdout, stderr bytes.Buffer
	var code int
	if s.program == "" && c.lines == 0 && !strings.Contains(c.text, "--debug") {
		app := ctlv2.App{
			Streams: ctlv2.Streams{In: strings.NewReader(c.stdin), Out: &stdout, Err: &stderr},
			Name:    "etcdctl", Version: version.Version, Getenv: func(string) string { return "" },
		}
		code = exitCode(app.Run(ctx, args), &stderr)
	} else if code, err = s.execute(ctx, c, args, &stdout, &stderr); err != nil {
		return "", fmt.Errorf("%w (said %q, %q)", err, stdout.String(), stderr.String())
	}
	if found := v2Added.FindStringSubmatch(stdout.String()); found != nil {
		s.added = found[1]
	}
	told := s.mask(stdout.String())
	if len(s.endpoints) > 1 { // in the order of the IDs, which is each cluster's own
		told = v2Leads.ReplaceAllString(told, "isLeader=L")
		told = founding.ReplaceAllStringFunc(told, func(list string) string {
			members := strings.Split(founding.FindStringSubmatch(list)[1], ",")
			slices.Sort(members)
			return strings.Join(members, ",")
		})
		all := strings.SplitAfter(told, "\n")
		slices.Sort(all)
		told = strings.Join(all, "")
	}
	return fmt.Sprintln("exit", code) + told + "--\n" + s.mask(stderr.String()), nil
}

// execute runs a program and returns its exit code.
func (s *v2Speaker) execute(ctx context.Context, c command, args []string, stdout, stderr *bytes.Buffer) (int, error) {
	program := s.program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return 0, err
		}
	}
	process := exec.CommandContext(ctx, program)
	process.Args = append([]string{"etcdctl"}, args...)
	process.Env = append(os.Environ(), "ETCDCTL_API=2")
	process.Dir, process.WaitDelay = s.dir, time.Second
	process.Stdin, process.Stderr = strings.NewReader(c.stdin), stderr
	process.Stdout = &lineCounter{into: stdout, last: c.lines, reached: func() { _ = process.Process.Signal(os.Interrupt) }}
	err := process.Run()
	if exit := (*exec.ExitError)(nil); ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		return 0, errors.Join(ctx.Err(), err)
	}
	return process.ProcessState.ExitCode(), nil
}

// lineCounter passes on the first lines and says when the last of them has come.
// What comes after it depends on how fast the process ends.
type lineCounter struct {
	into    *bytes.Buffer
	last    int // 0 for no last one
	reached func()
}

func (l *lineCounter) Write(p []byte) (int, error) {
	for _, b := range p {
		if l.last > 0 && bytes.Count(l.into.Bytes(), []byte("\n")) == l.last {
			break
		}
		l.into.WriteByte(b)
		if l.last > 0 && bytes.Count(l.into.Bytes(), []byte("\n")) == l.last {
			l.reached()
		}
	}
	return len(p), nil
}

// startMusterdV2 is startMusterd with version 2. Every member knows where all are
// when it returns.
func startMusterdV2(t *testing.T, size int) []string {
	t.Helper()
	endpoints := startMembers(t, size, func(c *kvserver.Config) { c.EnableV2 = true })
	for _, endpoint := range endpoints {
		connected, err := client.New(client.Config{Endpoints: []string{endpoint}})
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
			members, err := client.NewMembersAPI(connected).List(t.Context())
			if err == nil && !slices.ContainsFunc(members, func(m client.Member) bool { return len(m.ClientURLs) == 0 }) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s knows the members %v, %v", endpoint, members, err)
			}
		}
	}
	return endpoints
}

// TestWatchesGoOn: a watch that waits, and one that runs commands, see what
// happens after they began, and end well when they are interrupted.
func TestWatchesGoOn(t *testing.T) {
	t.Parallel()
	endpoint := startMusterdV2(t, 1)[0]
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ args, want string }{
		{"watch --forever --recursive /w", "[set] /w/a\nx\n"},
		{"exec-watch --recursive /w -- sh -c 'echo $ETCD_WATCH_ACTION $ETCD_WATCH_KEY $ETCD_WATCH_VALUE'", "set /w/a x\n"},
	} {
		args, err := shell.Fields("--endpoints "+endpoint+" "+test.args, func(name string) string { return "$" + name })
		if err != nil {
			t.Fatal(err)
		}
		process := exec.CommandContext(t.Context(), program)
		process.Args = append([]string{"etcdctl"}, args...)
		process.Env = append(os.Environ(), "ETCDCTL_API=2")
		output, err := process.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var writing errgroup.Group
		writing.Go(func() error { return setUntil(endpoint, stop) })
		got := make([]byte, len(test.want))
		_, err = io.ReadFull(output, got)
		close(stop)
		if err := errors.Join(err, writing.Wait(), process.Process.Signal(os.Interrupt)); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, output) // it may say more before it ends
		if err := process.Wait(); err != nil || string(got) != test.want {
			t.Errorf("%s: %q, %v", test.args, got, err)
		}
	}
}

// setUntil sets a key again and again: it cannot be known when somebody else has
// begun to watch it.
func setUntil(endpoint string, stop <-chan struct{}) error {
	connected, err := client.New(client.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	keys := client.NewKeysAPI(connected)
	for {
		if _, err := keys.Set(context.Background(), "/w/a", "x", nil); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestBackupV2 copies the data of a member that has stopped, and makes a cluster
// of one of the copy.
func TestBackupV2(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := kvserver.Default()
	config.EnableV2, config.Logger, config.BcryptCost = true, slog.New(slog.DiscardHandler), bcrypt.MinCost
	config.Name, config.DataDir, config.WALDir = "m0", filepath.Join(dir, "data"), filepath.Join(dir, "wal")
	urls := addresses(t, 2)
	config.ListenClientURLs, config.AdvertiseClientURLs = urls[:1], urls[:1]
	config.ListenPeerURLs, config.InitialAdvertisePeerURLs = urls[1:], urls[1:]
	config.InitialCluster = "m0=" + urls[1]
	backup := func(args ...string) (string, int) {
		var said bytes.Buffer
		code := runV2(newV2(false, ctlv2.Streams{In: strings.NewReader(""), Out: &said, Err: &said}), append([]string{"backup"}, args...))
		return said.String(), code
	}
	if said, code := backup("--data-dir", dir, "--backup-dir", filepath.Join(dir, "copy")); code != 1 || !strings.Contains(said, "is not a data directory of musterd") {
		t.Errorf("%d %s", code, said)
	}
	server, err := kvserver.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	<-server.Ready()
	connected, err := client.New(client.Config{Endpoints: urls[:1]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.NewKeysAPI(connected).Set(t.Context(), "/key", "kept", nil); err != nil {
		t.Fatal(err)
	}
	args := []string{"--data-dir", config.DataDir, "--wal-dir", config.WALDir, "--backup-dir", filepath.Join(dir, "copy"), "--backup-wal-dir", filepath.Join(dir, "copywal")}
	// A lock does not keep the process out that has it, so another one asks.
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	asking := exec.CommandContext(t.Context(), program)
	asking.Args, asking.Env = append([]string{"etcdctl", "backup"}, args...), append(os.Environ(), "ETCDCTL_API=2")
	if said, err := asking.CombinedOutput(); err == nil || !strings.Contains(string(said), "stop the musterd that runs on it") {
		t.Errorf("while it runs: %v: %s", err, said)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if said, code := backup(args...); code != 0 || said != "" {
		t.Fatalf("%d %s", code, said)
	}
	if said, code := backup(args...); code != 1 || !strings.Contains(said, "is not empty") {
		t.Errorf("%d %s", code, said)
	}
	config.DataDir, config.WALDir, config.ForceNewCluster = filepath.Join(dir, "copy"), "", true
	if server, err = kvserver.Start(config); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	<-server.Ready()
	resp, err := client.NewKeysAPI(connected).Get(t.Context(), "/key", &client.GetOptions{Quorum: true})
	if err != nil || resp.Node.Value != "kept" {
		t.Errorf("the copy has %v, %v", resp, err)
	}
}

// TestUnreachable: exit codes and texts when nobody answers.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	theirs := etcd34.Program(t, "etcdctl")
	nobody := addresses(t, 1)
	for _, text := range []string{"get /a", "ls", "--no-sync get /a", "member list", "user list", "cluster-health", "-o json get /a", "--timeout 1s --total-timeout 1s get /a"} {
		var said []string
		for _, program := range []string{theirs, ""} {
			s := &v2Speaker{program: program, endpoints: nobody, dir: t.TempDir()}
			answer, err := s.run(t.Context(), command{text: text})
			if err != nil {
				t.Fatal(err)
			}
			said = append(said, answer)
		}
		if diff := cmp.Diff(said[0], said[1]); diff != "" {
			t.Errorf("%s (-etcdctl +musterctl):\n%s", text, diff)
		}
	}
}

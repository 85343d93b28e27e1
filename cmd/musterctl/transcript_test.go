package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/errgroup"
	"mvdan.cc/sh/v3/shell"

	"muster/kvserver"
)

var etcdctl = flag.String("musterctl.etcdctl", "", "an etcdctl to run instead of this one; an older one must be told the same by both servers, too")

// TestTranscript runs the commands of testdata/transcript.txt against etcd and
// against musterd, which must make etcdctl say the same.
func TestTranscript(t *testing.T) {
	commands := readTranscript(t, "testdata/transcript.txt")
	sides := []*speaker{
		{name: "etcd", endpoint: startEtcd(t)},
		{name: "musterd", endpoint: startMusterd(t)},
	}
	said := make([][]string, len(sides))
	var talking errgroup.Group
	for i, side := range sides {
		side.dir = t.TempDir()
		talking.Go(func() error {
			for _, c := range commands {
				answer, err := side.run(t.Context(), c)
				if err != nil {
					return fmt.Errorf("line %d: %s, of %s: %w", c.line, c.text, side.name, err)
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
		if diff := cmp.Diff(said[0][i], said[1][i]); diff != "" {
			t.Errorf("line %d: %s: the answer differs (-etcd +musterd):\n%s", c.line, c.text, diff)
		}
		if c.fails != !strings.HasPrefix(said[0][i], "exit 0\n") && *etcdctl == "" {
			t.Errorf("line %d: %s: fails %v is wrong:\n%s", c.line, c.text, c.fails, said[0][i])
		}
	}
}

// command is a line of a transcript.
type command struct {
	text  string
	line  int
	stdin string
	// lines is after how many lines of output the command is interrupted, as it
	// goes on for ever; 0 is not at all.
	lines int
	fails bool
}

// readTranscript reads a file of commands, one in a line. What is indented
// below a command is its standard input, ~ an empty line of it. "N| command" is interrupted after N
// lines of output, "! command" fails. Lines that begin with # are comments.
func readTranscript(t *testing.T, path string) (commands []command) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case strings.HasPrefix(line, "#"), line == "":
		case strings.HasPrefix(line, "\t"):
			commands[len(commands)-1].stdin += strings.TrimPrefix(line[1:], "~") + "\n"
		default:
			c := command{text: line, line: i + 1}
			if n, rest, ok := strings.Cut(line, "| "); ok {
				if _, err := fmt.Sscan(n, &c.lines); err == nil {
					c.text = rest
				}
			}
			if rest, ok := strings.CutPrefix(c.text, "! "); ok {
				c.text, c.fails = rest, true
			}
			commands = append(commands, c)
		}
	}
	return commands
}

// speaker talks to one of the servers.
type speaker struct {
	name, endpoint, dir string
	lease               string // the last one granted
}

// run returns how a command ended and what it said, without what differs from
// one server to another.
func (s *speaker) run(ctx context.Context, c command) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	args, err := shell.Fields(c.text, func(name string) string {
		return map[string]string{"LEASE": s.lease, "DIR": s.dir, "ENDPOINT": s.endpoint}[name]
	})
	if err != nil {
		return "", err
	}
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	if *etcdctl != "" {
		program = *etcdctl
	}
	process := exec.CommandContext(ctx, program)
	process.Args = append([]string{"etcdctl"}, args...)
	process.Env = append(os.Environ(), "ETCDCTL_ENDPOINTS="+s.endpoint, "ETCDCTL_API=3")
	process.Dir = s.dir
	process.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	process.Stderr = &stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		return "", err
	}
	output, err := process.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := process.Start(); err != nil {
		return "", err
	}
	_, _ = io.WriteString(stdin, c.stdin)
	if c.lines == 0 {
		_ = stdin.Close()
	}
	reader := bufio.NewReader(output)
	for n := 1; ; n++ {
		line, err := reader.ReadString('\n')
		stdout.WriteString(line)
		if n == c.lines {
			_ = process.Process.Signal(os.Interrupt)
			_, _ = io.Copy(io.Discard, reader) // it may say more before it ends
			break
		}
		if err != nil {
			break
		}
	}
	err = process.Wait()
	if exit := (*exec.ExitError)(nil); ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		return "", fmt.Errorf("%w (said %q, %q)", errors.Join(ctx.Err(), err), stdout.String(), stderr.String())
	}
	if found := grantedLease.FindStringSubmatch(stdout.String()); found != nil {
		s.lease = found[1]
	}
	exit := fmt.Sprintln("exit", process.ProcessState.ExitCode())
	if c.lines > 0 {
		exit = "exit 0\n" // etcdctl ends as the signal bids it, but not always
	}
	return exit + s.mask(stdout.String()) + "--\n" + s.mask(stderr.String()), nil
}

var (
	grantedLease = regexp.MustCompile(`lease ([0-9a-f]+) granted`)
	// what the client logs of its own accord
	logLine = regexp.MustCompile(`(?m)^\{"level":.*\n`)
	// identities are in hexadecimal for people, and in decimal in JSON
	identity = regexp.MustCompile(`\b([0-9a-f]{13,16}|[0-9]{14,20})\b`)
	took     = regexp.MustCompile(`\b[0-9.]+(µs|ms|s)\b`)
	progress = regexp.MustCompile(`("[Rr]aft_?(Term|term|Index|AppliedIndex)" ?:) ?[0-9]+`)
	size     = regexp.MustCompile(`("[Dd][Bb]Size(InUse|Quota)?" ?:) ?[0-9]+`)
	// status is the line of endpoint status: sizes, the share of the space in
	// use and of the quota, and then whether it leads, learns, the term, the
	// index and the applied index
	status = regexp.MustCompile(`([0-9.]+ [kMG]?B, )+([0-9]+%, )?([0-9.]+ [kMG]?B, )?(true|false), (true|false), [0-9]+, [0-9]+, [0-9]+`)
	ttl    = regexp.MustCompile(`(remaining\(|"ttl" ?: ?|"TTL" ?: ?)-?[0-9]+`)
)

func (s *speaker) mask(text string) string {
	text = strings.NewReplacer(s.endpoint, "ENDPOINT", strings.TrimPrefix(s.endpoint, "http://"), "ENDPOINT", s.dir, "DIR").Replace(text)
	text = logLine.ReplaceAllString(text, "")
	text = identity.ReplaceAllString(text, "ID")
	text = took.ReplaceAllString(text, "TOOK")
	text = progress.ReplaceAllString(text, "$1 N")
	text = size.ReplaceAllString(text, "$1 N")
	text = status.ReplaceAllString(text, "SIZES, $4, $5, N, N, N")
	return ttl.ReplaceAllString(text, "${1}N")
}

func startEtcd(t *testing.T) (endpoint string) {
	t.Helper()
	config := embed.NewConfig()
	config.Dir, config.LogLevel, config.UnsafeNoFsync = filepath.Join(t.TempDir(), "etcd"), "fatal", true
	config.BcryptCost = uint(bcrypt.MinCost)
	client := []url.URL{{Scheme: "http", Host: freeAddress(t)}}
	config.ListenClientUrls, config.AdvertiseClientUrls = client, client
	config.ListenPeerUrls = []url.URL{{Scheme: "http", Host: freeAddress(t)}}
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	<-etcd.Server.ReadyNotify()
	return client[0].String()
}

// freeAddress is one of this process alone, so that nobody else takes it.
func freeAddress(t *testing.T) string {
	t.Helper()
	pid := os.Getpid()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 100+pid>>16&31, pid>>8&255, pid&255))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func startMusterd(t *testing.T) (endpoint string) {
	t.Helper()
	config := kvserver.Default()
	config.DataDir, config.Logger = filepath.Join(t.TempDir(), "musterd"), slog.New(slog.DiscardHandler)
	config.BcryptCost = bcrypt.MinCost
	endpoint = "http://" + freeAddress(t)
	config.ListenClientURLs, config.AdvertiseClientURLs = []string{endpoint}, []string{endpoint}
	config.ListenPeerURLs = []string{"http://" + freeAddress(t)}
	server, err := kvserver.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	<-server.Ready()
	return endpoint
}

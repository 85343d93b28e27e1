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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
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
	t.Parallel()
	compareTranscripts(t, "testdata/transcript.txt", startEtcd(t, 1), startMusterd(t, 1))
}

// TestTranscriptOfMembers does so with three members each.
func TestTranscriptOfMembers(t *testing.T) {
	t.Parallel()
	compareTranscripts(t, "testdata/members.txt", startEtcd(t, 3), startMusterd(t, 3))
}

func compareTranscripts(t *testing.T, path string, etcd, musterd []string) {
	t.Helper()
	commands := readTranscript(t, path)
	sides := []*speaker{{name: "etcd", endpoints: etcd}, {name: "musterd", endpoints: musterd}}
	said := make([][]string, len(sides))
	var talking errgroup.Group
	for i, side := range sides {
		side.dir, side.client = t.TempDir(), dial(t, side.endpoints...)
		talking.Go(func() error {
			for _, c := range commands {
				answer, err := side.runAgain(t.Context(), c)
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
	name, dir    string
	endpoints    []string
	client       *clientv3.Client
	lease, added string // the last lease granted, the last member added
}

// variable is what a command calls $name.
func (s *speaker) variable(ctx context.Context, name string) (string, error) {
	switch name {
	case "LEASE":
		return s.lease, nil
	case "DIR":
		return s.dir, nil
	case "ADDED":
		return s.added, nil
	case "LEADER", "FOLLOWER", "LEADER_ENDPOINT", "FOLLOWER_ENDPOINT":
	default:
		return "", nil // the shell's own
	}
	for deadline := time.After(patience); ; {
		for _, endpoint := range s.endpoints {
			status, err := s.client.Status(ctx, endpoint)
			if err != nil {
				return "", err
			}
			leads := status.Leader == status.Header.MemberId
			switch {
			case name == "LEADER" && leads, name == "FOLLOWER" && !leads:
				return fmt.Sprintf("%x", status.Header.MemberId), nil
			case name == "LEADER_ENDPOINT" && leads, name == "FOLLOWER_ENDPOINT" && !leads:
				return endpoint, nil
			}
		}
		select {
		case <-time.After(100 * time.Millisecond): // an election is under way
		case <-deadline:
			return "", fmt.Errorf("there is no $%s", name)
		}
	}
}

// passing is what a cluster says whose members have not been connected for long
// enough, or have lost their leader for a moment.
var passing = regexp.MustCompile(`etcdserver: (unhealthy cluster|leader changed|no leader|request timed out)`)

// runAgain runs a command, and again while the cluster is not well.
func (s *speaker) runAgain(ctx context.Context, c command) (answer string, err error) {
	for deadline := time.After(patience); ; {
		answer, err = s.run(ctx, c)
		moved := !c.fails && strings.Contains(answer, "no leader endpoint given")
		if err != nil || !moved && !passing.MatchString(answer) {
			return answer, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			return answer, nil
		}
	}
}

// run returns how a command ended and what it said, without what differs from
// one server to another.
func (s *speaker) run(ctx context.Context, c command) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var unknown error
	args, err := shell.Fields(c.text, func(name string) string {
		value, err := s.variable(ctx, name)
		unknown = errors.Join(unknown, err)
		return value
	})
	if err = errors.Join(err, unknown); err != nil {
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
	process.Env = append(os.Environ(), "ETCDCTL_API=3")
	if !slices.Contains(args, "--endpoints") { // both at once are refused
		process.Env = append(process.Env, "ETCDCTL_ENDPOINTS="+s.endpoints[0])
	}
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
	if found := addedMember.FindStringSubmatch(stdout.String()); found != nil {
		s.added = found[1]
	}
	exit := fmt.Sprintln("exit", process.ProcessState.ExitCode())
	if c.lines > 0 {
		exit = "exit 0\n" // etcdctl ends as the signal bids it, but not always
	}
	told := s.mask(stdout.String())
	if len(s.endpoints) > 1 { // in the order of the IDs, which is each cluster's own
		lines := strings.SplitAfter(told, "\n")
		slices.Sort(lines)
		told = strings.Join(lines, "")
	}
	return exit + told + "--\n" + s.mask(stderr.String()), nil
}

var (
	addedMember  = regexp.MustCompile(`Member +([0-9a-f]+) added`)
	grantedLease = regexp.MustCompile(`lease ([0-9a-f]+) granted`)
	// what the client logs of its own accord
	logLine = regexp.MustCompile(`(?m)^\{"level":.*\n`)
	// identities are in hexadecimal for people, and in decimal in JSON
	identity = regexp.MustCompile(` *\b([0-9a-f]{13,16}|[0-9]{14,20})\b`)
	took     = regexp.MustCompile(`\b[0-9.]+(µs|ms|s)\b`)
	progress = regexp.MustCompile(`("[Rr]aft_?(Term|term|Index|AppliedIndex)" ?:) ?[0-9]+`)
	size     = regexp.MustCompile(`("[Dd][Bb]Size(InUse|Quota)?" ?:) ?[0-9]+`)
	// status is the line of endpoint status: sizes, the share of the space in
	// use and of the quota, and then whether it leads, learns, the term, the
	// index and the applied index
	status = regexp.MustCompile(`([0-9.]+ [kMG]?B, )+([0-9]+%, )?([0-9.]+ [kMG]?B, )?(true|false), (true|false), [0-9]+, [0-9]+, [0-9]+`)
	// address is one of this process, of which peers have some
	address = regexp.MustCompile(`127\.1[0-3][0-9]\.[0-9.]+:[0-9]+`)
	// founding is in the order of the IDs
	founding = regexp.MustCompile(`ETCD_INITIAL_CLUSTER="(.*)"`)
	ttl      = regexp.MustCompile(`(remaining\(|"ttl" ?: ?|"TTL" ?: ?)-?[0-9]+`)
)

func (s *speaker) mask(text string) string {
	for _, endpoint := range s.endpoints {
		text = strings.NewReplacer(endpoint, "ENDPOINT", strings.TrimPrefix(endpoint, "http://"), "ENDPOINT", s.dir, "DIR").Replace(text)
	}
	text = logLine.ReplaceAllString(text, "")
	text = identity.ReplaceAllString(text, " ID")
	text = took.ReplaceAllString(text, "TOOK")
	text = progress.ReplaceAllString(text, "$1 N")
	text = size.ReplaceAllString(text, "$1 N")
	text = status.ReplaceAllString(text, "SIZES, $4, $5, N, N, N")
	text = address.ReplaceAllString(text, "ADDRESS")
	text = founding.ReplaceAllStringFunc(text, func(list string) string {
		members := strings.Split(founding.FindStringSubmatch(list)[1], ",")
		slices.Sort(members)
		return strings.Join(members, ",")
	})
	return ttl.ReplaceAllString(text, "${1}N")
}

// handedOut counts the ports that tests of this process were given: tests that run
// side by side get none twice. They are below those of outgoing connections.
var handedOut atomic.Int32

const firstPort = 10000

// addresses are URLs on which nothing listens. It is found out by connecting: a
// process that is just being started would hold a listener for a moment after it
// was closed here.
func addresses(t *testing.T, n int) (urls []string) {
	t.Helper()
	pid := os.Getpid()
	host := fmt.Sprintf("127.%d.%d.%d", 100+pid>>16&31, pid>>8&255, pid&255) // of this process alone
	for len(urls) < n {
		address := net.JoinHostPort(host, fmt.Sprint(firstPort+handedOut.Add(1)))
		conn, err := net.Dial("tcp", address)
		if err != nil {
			urls = append(urls, "http://"+address)
			continue
		}
		if err := conn.Close(); err != nil { // somebody else's
			t.Fatal(err)
		}
	}
	return urls
}

func parsed(t *testing.T, raw string) []url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return []url.URL{*u}
}

// advertised are the peer URLs that members are known by. One that is alone is
// known by the same one to everybody, and so has the same ID in every cluster.
func advertised(peers []string) []string {
	if len(peers) == 1 {
		return []string{"http://localhost:2380"}
	}
	return peers
}

// founders are the members m0, m1 and so on, with their peer URLs.
func founders(peers []string) string {
	named := make([]string, len(peers))
	for i, peer := range peers {
		named[i] = fmt.Sprintf("m%d=%s", i, peer)
	}
	return strings.Join(named, ",")
}

// storageVersion is what etcd and musterd both tell of their storage.
const storageVersion = "3.7.0"

func startEtcd(t *testing.T, size int) (endpoints []string) {
	t.Helper()
	endpoints, listening := addresses(t, size), addresses(t, size)
	peers := advertised(listening)
	var starting errgroup.Group
	for i := range size {
		config := embed.NewConfig()
		config.Name, config.InitialCluster = fmt.Sprint("m", i), founders(peers)
		config.Dir, config.LogLevel, config.UnsafeNoFsync = filepath.Join(t.TempDir(), "etcd"), "fatal", true
		config.BcryptCost = uint(bcrypt.MinCost)
		config.ListenClientUrls, config.ListenPeerUrls = parsed(t, endpoints[i]), parsed(t, listening[i])
		config.AdvertiseClientUrls, config.AdvertisePeerUrls = config.ListenClientUrls, parsed(t, peers[i])
		starting.Go(func() error {
			etcd, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			t.Cleanup(etcd.Close)
			<-etcd.Server.ReadyNotify()
			// It migrates its own storage when the cluster has agreed on a version.
			for version := etcd.Server.StorageVersion(); version == nil || version.String() != storageVersion; version = etcd.Server.StorageVersion() {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-t.Context().Done():
					return t.Context().Err()
				}
			}
			return nil
		})
	}
	if err := starting.Wait(); err != nil {
		t.Fatal(err)
	}
	return endpoints
}

func startMusterd(t *testing.T, size int) (endpoints []string) {
	t.Helper()
	return startMembers(t, size, func(*kvserver.Config) {})
}

// startMembers starts musterd with what change changes.
func startMembers(t *testing.T, size int, change func(*kvserver.Config)) (endpoints []string) {
	t.Helper()
	endpoints, listening := addresses(t, size), addresses(t, size)
	peers := advertised(listening)
	var ready []<-chan struct{}
	for i := range size {
		config := kvserver.Default()
		config.Name, config.InitialCluster = fmt.Sprint("m", i), founders(peers)
		config.DataDir, config.Logger = filepath.Join(t.TempDir(), "musterd"), slog.New(slog.DiscardHandler)
		config.BcryptCost = bcrypt.MinCost
		config.ListenClientURLs, config.ListenPeerURLs = endpoints[i:i+1], listening[i:i+1]
		config.AdvertiseClientURLs, config.InitialAdvertisePeerURLs = endpoints[i:i+1], peers[i:i+1]
		change(&config)
		server, err := kvserver.Start(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
		ready = append(ready, server.Ready())
	}
	for _, each := range ready {
		<-each
	}
	return endpoints
}

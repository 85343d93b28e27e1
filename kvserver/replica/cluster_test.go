package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/internal/loopback"
	"muster/kvserver/membership"
)

const (
	testElection = 400 * time.Millisecond
	patience     = 30 * time.Second
)

// testCluster is a cluster of members in this process, each behind a gate that
// can cut it off from the others.
type testCluster struct {
	t       *testing.T
	members []*testMember
}

type testMember struct {
	config Config
	gate   *gate
	*Replica
}

// newCluster prepares n members and starts none of them.
func newCluster(t *testing.T, n int, adjust ...func(*Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	root := t.TempDir()
	var initial []string
	for i := range n {
		listen := loopback.Address(t)
		m := &testMember{gate: openGate(t, listen)}
		m.config = Config{
			Dir: filepath.Join(root, fmt.Sprintf("m%d", i)), ClientURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", 100+i)},
			PeerListen: []string{listen}, ElectionTimeout: testElection,
			SnapshotEntries: 1 << 40, SnapshotBytes: 1 << 50, MaxLearners: 1,
			Logger: testLogger(t, fmt.Sprintf("m%d", i)),
		}
		for _, each := range adjust {
			each(&m.config)
		}
		c.members = append(c.members, m)
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, m.gate.address()))
	}
	cluster, err := membership.ParseInitialCluster(strings.Join(initial, ","), "test")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range c.members {
		m.config.Cluster = cluster
		if m.config.Self, err = cluster.ByName(fmt.Sprintf("m%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.stop(i)
		}
	})
	return c
}

// startCluster starts n members and waits until all are ready.
func startCluster(t *testing.T, n int, adjust ...func(*Config)) *testCluster {
	t.Helper()
	c := newCluster(t, n, adjust...)
	c.startAll()
	for i := range n {
		c.awaitReady(i)
	}
	return c
}

// startAll starts every member at once, as a founding cluster is.
func (c *testCluster) startAll() {
	c.t.Helper()
	errs := make([]error, len(c.members))
	var starting sync.WaitGroup
	for i := range c.members {
		starting.Go(func() { errs[i] = c.tryStart(i) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) tryStart(i int) error {
	replica, err := Start(c.members[i].config)
	if err == nil {
		c.members[i].Replica = replica
	}
	return err
}

func (c *testCluster) start(i int) {
	c.t.Helper()
	if err := c.tryStart(i); err != nil {
		c.t.Fatalf("start m%d: %v", i, err)
	}
}

func (c *testCluster) stop(i int) {
	c.t.Helper()
	m := c.members[i]
	if m.Replica == nil {
		return
	}
	if err := m.Replica.Close(); err != nil {
		c.t.Errorf("close m%d: %v", i, err)
	}
	m.Replica = nil
}

func (c *testCluster) awaitReady(i int) {
	c.t.Helper()
	select {
	case <-c.members[i].Ready():
	case err := <-c.members[i].Failed():
		c.t.Fatalf("m%d failed: %v", i, err)
	case <-time.After(patience):
		c.t.Fatalf("m%d is not ready after %v", i, patience)
	}
}

func (c *testCluster) index(member uint64) int {
	for i, m := range c.members {
		if m.config.Self.ID == member {
			return i
		}
	}
	return -1
}

// leader waits until a majority of all members agrees on one, itself included.
func (c *testCluster) leader() int {
	c.t.Helper()
	found := -1
	eventually(c.t, "a leader", func() bool {
		votes := map[uint64]int{}
		for _, m := range c.members {
			if m.Replica != nil {
				votes[m.Status().Leader]++
			}
		}
		for member, n := range votes {
			i := c.index(member)
			if i >= 0 && n > len(c.members)/2 && c.members[i].Replica != nil && c.members[i].Status().Leader == member && c.members[i].leadership.led() == c.members[i].Status().Term {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

// followers are all members but the leader.
func (c *testCluster) followers(leader int) (others []int) {
	for i := range c.members {
		if i != leader {
			others = append(others, i)
		}
	}
	return others
}

// follower is the first running member that does not lead.
func (c *testCluster) follower() int {
	c.t.Helper()
	leader := c.leader()
	for i, m := range c.members {
		if i != leader && m.Replica != nil {
			return i
		}
	}
	c.t.Fatal("no follower runs")
	return -1
}

func (c *testCluster) tryPut(i int, key, value string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	outcome, err := c.members[i].Propose(ctx, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}})
	return errors.Join(err, outcome.Err)
}

// put tries again when the outcome is unknown, as a client may for a request
// that does not matter twice: a connection breaks, or another leader comes.
func (c *testCluster) put(i int, key, value string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("put %s=%s through m%d", key, value, i), func() bool {
		err := c.tryPut(i, key, value, 5*testElection)
		if err != nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrLeaderLost) {
			c.t.Fatalf("put %s=%s through m%d: %v", key, value, i, err)
		}
		return err == nil
	})
}

// have is the key as this member's store has it now.
func (m *testMember) have(key string) *pb.RangeResponse {
	response, err := m.Machine().Range(context.Background(), &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		return nil
	}
	return response
}

func (m *testMember) value(key string) string {
	response := m.have(key)
	if response == nil || len(response.Kvs) == 0 {
		return ""
	}
	return string(response.Kvs[0].Value)
}

func (c *testCluster) linearize(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.members[i].Linearize(ctx); err != nil {
		c.t.Fatalf("linearize on m%d: %v", i, err)
	}
}

// isolate cuts the member off in both directions.
func (c *testCluster) isolate(i int) {
	for j, m := range c.members {
		if i == j {
			m.gate.block(func(uint64) bool { return true })
		} else {
			id := c.members[i].config.Self.ID
			m.gate.block(func(from uint64) bool { return from == id })
		}
	}
}

func (c *testCluster) heal() {
	for _, m := range c.members {
		m.gate.unmute()
		m.gate.block(nobody)
	}
}

// deafen lets what a member sends pass and swallows the answers to it.
func (c *testCluster) deafen(i int) {
	id := c.members[i].config.Self.ID
	for _, m := range c.members {
		m.gate.mute(func(from uint64) bool { return from == id })
	}
}

// eventually polls until is holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("waited %v for %s", patience, what)
}

// testLogger keeps what a member logs for the output of a failed test.
func testLogger(t *testing.T, name string) *slog.Logger {
	var mu sync.Mutex
	var kept strings.Builder
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		if t.Failed() {
			t.Log(kept.String())
		}
	})
	return slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return kept.Write(p)
	}), &slog.HandlerOptions{Level: slog.LevelInfo})).With("on", name)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// gate forwards connections to a member's peer port and reads who dials from
// the opening line.
type gate struct {
	listener net.Listener
	target   string

	mu      sync.Mutex
	blocked func(from uint64) bool
	muted   func(from uint64) bool
	conns   map[net.Conn]uint64
}

func nobody(uint64) bool { return false }

func openGate(t *testing.T, target string) *gate {
	t.Helper()
	listener, err := net.Listen("tcp", loopback.Address(t))
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: listener, target: target, blocked: nobody, muted: nobody, conns: map[net.Conn]uint64{}}
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			forwarding.Go(func() { g.forward(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		g.block(func(uint64) bool { return true })
		forwarding.Wait()
	})
	return g
}

func (g *gate) address() string { return g.listener.Addr().String() }

// block decides from now on who may pass; those inside who may not are thrown out.
func (g *gate) block(blocked func(from uint64) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blocked = blocked
	for conn, from := range g.conns {
		if blocked(from) {
			_ = conn.Close()
		}
	}
}

func (g *gate) mute(muted func(from uint64) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.muted = muted
}

// unmute ends the connections that lost something.
func (g *gate) unmute() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for conn, from := range g.conns {
		if g.muted(from) {
			_ = conn.Close()
		}
	}
	g.muted = nobody
}

func (g *gate) forward(client net.Conn) {
	defer client.Close()
	_ = client.SetReadDeadline(time.Now().Add(patience))
	var line []byte
	for one := make([]byte, 1); len(line) == 0 || line[len(line)-1] != '\n'; line = append(line, one...) {
		if _, err := io.ReadFull(client, one); err != nil {
			return
		}
	}
	_ = client.SetReadDeadline(time.Time{})
	var protocol string
	var cluster, from uint64
	if _, err := fmt.Sscanf(string(line), "%s %x %x", &protocol, &cluster, &from); err != nil {
		return
	}
	g.mu.Lock()
	if g.blocked(from) {
		g.mu.Unlock()
		return
	}
	g.conns[client] = from
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.conns, client)
		g.mu.Unlock()
	}()
	server, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(line); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(writerFunc(func(p []byte) (int, error) {
			g.mu.Lock()
			mute := g.muted(from)
			g.mu.Unlock()
			if mute {
				return len(p), nil
			}
			return client.Write(p)
		}), server)
		_ = client.Close()
	}()
	_, _ = io.Copy(server, client)
}

// lines collects what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) contain(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

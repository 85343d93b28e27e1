package clustertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"muster/kvserver/internal/loopback"
)

// plantTags are the build tags of the bugs to plant in musterd.
var plantTags []string

var buildServer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "muster-clustertest-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "musterd")
	build := exec.Command("go", "build", "-tags", strings.Join(plantTags, ","), "-o", path, "muster/cmd/musterd")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build musterd: %w\n%s", err, output)
	}
	return path, nil
})

// member is one musterd process and its place on this machine.
type member struct {
	name, dir          string
	clientURL, peerURL string
	// joins is its --initial-cluster when it came later, empty for a founder.
	joins string

	process *exec.Cmd
	exited  chan struct{}
	log     *os.File
}

// cluster is members on loopback.
type cluster struct {
	t               *testing.T
	electionTimeout time.Duration
	binary          string
	members         []*member
	gone            []*member // removed from the cluster
	initial         string
}

func startCluster(t *testing.T, electionTimeout time.Duration) *cluster {
	t.Helper()
	return startClusterOf(t, 3, electionTimeout)
}

func startClusterOf(t *testing.T, n int, electionTimeout time.Duration) *cluster {
	t.Helper()
	binary, err := buildServer()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, electionTimeout: electionTimeout, binary: binary}
	var initial []string
	for i := range n {
		m := newMember(t, fmt.Sprintf("m%d", i))
		c.members = append(c.members, m)
		initial = append(initial, m.name+"="+m.peerURL)
	}
	c.initial = strings.Join(initial, ",")
	t.Cleanup(c.stop)
	for _, m := range c.members {
		c.start(m)
	}
	for _, m := range c.members {
		c.awaitRead(m)
	}
	return c
}

func newMember(t *testing.T, name string) *member {
	t.Helper()
	return &member{
		name:      name,
		dir:       filepath.Join(t.TempDir(), "data"),
		clientURL: "http://" + loopback.Address(t),
		peerURL:   "http://" + loopback.Address(t),
	}
}

func (c *cluster) start(m *member) {
	c.t.Helper()
	initial, state := c.initial, "new"
	if m.joins != "" {
		initial, state = m.joins, "existing"
	}
	log, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	m.log = log
	m.process = exec.Command(c.binary,
		"--name", m.name, "--data-dir", m.dir,
		"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
		"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.peerURL,
		"--initial-cluster", initial, "--initial-cluster-state", state, "--initial-cluster-token", c.t.Name(),
		"--heartbeat-interval", fmt.Sprint(c.electionTimeout.Milliseconds()/10), "--election-timeout", fmt.Sprint(c.electionTimeout.Milliseconds()),
		"--snapshot-count", "500")
	m.process.Stdout, m.process.Stderr = log, log
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.process.Start(); err != nil {
		c.t.Fatal(err)
	}
	exited := make(chan struct{})
	m.exited = exited
	go func() { _ = m.process.Wait(); close(exited) }()
}

func (c *cluster) signal(m *member, signal syscall.Signal) {
	c.t.Helper()
	if err := m.process.Process.Signal(signal); err != nil {
		c.t.Fatalf("signal %v to %s: %v", signal, m.name, err)
	}
}

func (c *cluster) kill(m *member) {
	c.t.Helper()
	c.signal(m, syscall.SIGKILL)
	<-m.exited
}

func (c *cluster) stop() {
	for _, m := range append(c.members, c.gone...) {
		if m.process != nil {
			_ = m.process.Process.Kill()
			<-m.exited
			_ = m.log.Close()
		}
		if c.t.Failed() {
			c.t.Logf("last lines of %s:\n%s", m.name, tail(m.dir+".log", 25))
		}
	}
}

// alive fails the test when a member has exited by itself.
func (c *cluster) alive() {
	c.t.Helper()
	for _, m := range c.members {
		select {
		case <-m.exited:
			c.t.Fatalf("%s exited by itself: %v", m.name, m.process.ProcessState)
		default:
		}
	}
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// dial returns a connection to one member that never tries another.
func (c *cluster) dial(m *member) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(m.clientURL, "http://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), grpc.WithConnectParams(quickReconnect),
		// A request waits for a connection: one that was never sent has a known outcome.
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// leader waits until the members that answer agree on a leader other than
// besides, and returns it.
func (c *cluster) leader(besides *member) *member {
	c.t.Helper()
	var found *member
	eventually(c.t, "a leader is known", func() error {
		for _, m := range c.members {
			if m == besides {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			status, err := pb.NewMaintenanceClient(c.dialOnce(m)).Status(ctx, &pb.StatusRequest{})
			cancel()
			if err == nil && status.GetLeader() == status.GetHeader().GetMemberId() {
				found = m
				return nil
			}
		}
		return fmt.Errorf("no member says that it leads")
	})
	return found
}

var conns sync.Map // by client URL

func (c *cluster) dialOnce(m *member) *grpc.ClientConn {
	if conn, ok := conns.Load(c.t.Name() + m.clientURL); ok {
		return conn.(*grpc.ClientConn)
	}
	conn := c.dial(m)
	conns.Store(c.t.Name()+m.clientURL, conn)
	return conn
}

// awaitRead waits until the member answers a linearizable read.
func (c *cluster) awaitRead(m *member) {
	c.t.Helper()
	kv := pb.NewKVClient(c.dialOnce(m))
	eventually(c.t, m.name+" answers a linearizable read", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("probe")})
		return err
	})
}

// awaitWrite waits until a write through m is acknowledged.
func (c *cluster) awaitWrite(m *member) {
	c.t.Helper()
	kv := pb.NewKVClient(c.dialOnce(m))
	eventually(c.t, "a write through "+m.name+" is acknowledged", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("probe"), Value: []byte("x")})
		return err
	})
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s: %v", what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

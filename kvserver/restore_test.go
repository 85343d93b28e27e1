package kvserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
)

// saved fills a server through its API, saves a snapshot of it as etcdctl does,
// and returns the file and the hash of the keys in it.
func saved(t *testing.T, s side, keys int) (path string, hash *pb.HashKVResponse) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range keys {
		if _, err := pb.NewKVClient(s.conn).Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i%7), Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	hash, err := pb.NewMaintenanceClient(s.conn).HashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "snapshot.db")
	if _, err := snapshot.SaveWithVersion(ctx, zap.NewNop(), clientv3.Config{Endpoints: []string{s.url}}, path); err != nil {
		t.Fatal(err)
	}
	return path, hash
}

// start runs a member until the test ends; the function that is returned stops
// it before.
func start(t *testing.T, config Config) (*Server, func()) {
	t.Helper()
	server, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return server, stop
}

func awaitReady(t *testing.T, server *Server) {
	t.Helper()
	select {
	case <-server.Ready():
	case err := <-server.replica.Failed():
		t.Fatal(err)
	case <-time.After(30 * time.Second):
		t.Fatal("the member is not ready")
	}
}

func sameKeys(t *testing.T, server *Server, want *pb.HashKVResponse) {
	t.Helper()
	got, err := server.replica.Machine().History().HashKV(t.Context(), want.HashRevision)
	if err != nil || got.Hash != want.Hash || got.Compacted != want.CompactRevision {
		t.Errorf("the keys at revision %d are %+v, %v, want %v", want.HashRevision, got, err, want)
	}
}

func TestRestoreFromEtcd(t *testing.T) {
	etcd, ours := bothSides(t)
	theirs, hash := saved(t, etcd, 50)
	another, _ := saved(t, ours, 3)

	config := single(t)
	config.RestoreSnapshot = theirs
	server, stop := start(t, config)
	awaitReady(t, server)
	sameKeys(t, server, hash)
	cluster := server.replica.Cluster()
	conn := connect(t, server.clients[0].Addr().String()).conn
	response, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("k1")})
	if err != nil || response.Header.Revision != hash.HashRevision+1 {
		t.Errorf("the first put answered %v, %v, the snapshot is of revision %d", response, err, hash.HashRevision)
	}
	stop()

	// The member goes on with its data, whether or not it is told again what
	// it was founded from, and whether or not the file is still there.
	moved := filepath.Join(t.TempDir(), "moved.db")
	if err := os.Rename(theirs, moved); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", theirs, moved} {
		config.RestoreSnapshot = path
		server, stop := start(t, config)
		awaitReady(t, server)
		sameKeys(t, server, hash)
		if got := server.replica.Machine().Revision(); got != hash.HashRevision+1 {
			t.Errorf("after a start with %q the revision is %d, want %d", path, got, hash.HashRevision+1)
		}
		if got := server.replica.Cluster(); got != cluster {
			t.Errorf("after a start with %q the cluster is %x, it was %x", path, got, cluster)
		}
		stop()
	}
	config.RestoreSnapshot = another
	if _, err := Start(config); err == nil || !strings.Contains(err.Error(), "was not founded from this snapshot") {
		t.Errorf("started over existing data from another snapshot: %v", err)
	}
}

// TestRestoreFromADataDirectory is TestRestoreFromEtcd for a member whose flags
// cannot be changed.
func TestRestoreFromADataDirectory(t *testing.T) {
	etcd, _ := bothSides(t)
	theirs, hash := saved(t, etcd, 5)
	content, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	clusters := map[string]uint64{}
	for _, id := range []string{"", "one", "another"} {
		config := single(t)
		stage := map[string][]byte{StagedSnapshot: content}
		if id != "" {
			stage[StagedID] = []byte(id + "\n")
		}
		for name, text := range stage {
			name = filepath.Join(config.DataDir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, text, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			server, stop := start(t, config)
			awaitReady(t, server)
			sameKeys(t, server, hash)
			cluster := server.replica.Cluster()
			if before, again := clusters[id]; again && before != cluster {
				t.Errorf("with the ID %q the cluster was %x and is %x", id, before, cluster)
			}
			clusters[id] = cluster
			stop()
		}
		// Another restore, whose snapshot the data does not come from.
		if err := os.WriteFile(filepath.Join(config.DataDir, StagedID), []byte("later"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Start(config); err == nil || !strings.Contains(err.Error(), "holds data that does not come from the snapshot in its directory restore") {
			t.Errorf("with data of another restore: %v", err)
		}
		// It is over: the directory is gone, and the data stays.
		if err := os.RemoveAll(filepath.Join(config.DataDir, filepath.Dir(StagedSnapshot))); err != nil {
			t.Fatal(err)
		}
		server, _ := start(t, config)
		awaitReady(t, server)
		sameKeys(t, server, hash)
	}
	if clusters[""] == clusters["one"] || clusters["one"] == clusters["another"] {
		t.Errorf("the restores are one cluster: %x", clusters)
	}
}

func TestRestoreRefuses(t *testing.T) {
	_, ours := bothSides(t)
	path, _ := saved(t, ours, 3)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "snapshot.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flipped := bytes.Clone(content)
	flipped[len(flipped)/2] ^= 1
	for name, test := range map[string]struct {
		spoil  func(*Config)
		saying string
	}{
		"no such file":       {func(c *Config) { c.RestoreSnapshot = "/no/snapshot" }, "--restore-snapshot: open /no/snapshot"},
		"a truncated file":   {func(c *Config) { c.RestoreSnapshot = file(content[:len(content)-100]) }, "no checksum at its end"},
		"a flipped bit":      {func(c *Config) { c.RestoreSnapshot = file(flipped) }, "does not match its content"},
		"used data":          {func(c *Config) { run(t, *c, ""); c.RestoreSnapshot = path }, "restored only into an empty directory"},
		"another id":         {func(c *Config) { run(t, *c, path); c.RestoreID = "again" }, "was not founded from this snapshot"},
		"used data, no file": {func(c *Config) { run(t, *c, ""); c.RestoreSnapshot = "/no/snapshot" }, "--restore-snapshot: open /no/snapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			config := single(t)
			config.RestoreSnapshot = path
			if strings.HasPrefix(name, "used") {
				config.RestoreSnapshot = ""
			}
			test.spoil(&config)
			used := false
			if entries, err := os.ReadDir(config.DataDir); err == nil {
				used = len(entries) > 0
			}
			server, err := Start(config)
			if err == nil {
				_ = server.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), test.saying) {
				t.Errorf("error %q does not say %q", err, test.saying)
			}
			// What was refused can be put right and started again.
			if entries, err := os.ReadDir(config.DataDir); !used && (err == nil || len(entries) > 0) {
				t.Errorf("a start that was refused left %v behind", entries)
			}
		})
	}
	t.Run("begun without", func(t *testing.T) {
		config := single(t)
		config.ListenPeerURLs = []string{"http://192.0.2.1:1"} // not ours: founding fails after the identity is written
		if _, err := Start(config); err == nil {
			t.Fatal("started")
		}
		config.ListenPeerURLs, config.RestoreSnapshot = []string{"http://127.0.0.1:0"}, path
		if _, err := Start(config); err == nil || !strings.Contains(err.Error(), "start the member with the same --restore-snapshot as then") {
			t.Errorf("founded from another snapshot than was begun with: %v", err)
		}
	})
}

// run starts a member once.
func run(t *testing.T, config Config, snapshot string) {
	t.Helper()
	config.RestoreSnapshot = snapshot
	server, stop := start(t, config)
	awaitReady(t, server)
	stop()
}

// lines collects a log.
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

// founders configures three members of a new cluster.
func founders(t *testing.T) []Config {
	t.Helper()
	var configs []Config
	var initial []string
	for i := range 3 {
		config, peer := single(t), freeURL(t)
		config.Name = fmt.Sprintf("m%d", i)
		config.ListenPeerURLs, config.InitialAdvertisePeerURLs = []string{peer.String()}, []string{peer.String()}
		initial = append(initial, config.Name+"="+peer.String())
		configs = append(configs, config)
	}
	for i := range configs {
		configs[i].InitialCluster = strings.Join(initial, ",")
	}
	return configs
}

// Every founding member is given the same snapshot; one that is not, is in a
// cluster of its own, where it does no harm.
func TestRestoreOnEveryMember(t *testing.T) {
	_, ours := bothSides(t)
	path, hash := saved(t, ours, 100)
	for name, third := range map[string]string{"all alike": path, "one without": ""} {
		t.Run(name, func(t *testing.T) {
			configs := founders(t)
			heard := &lines{}
			configs[0].Logger = slog.New(slog.NewTextHandler(heard, nil))
			var servers []*Server
			for i, config := range configs {
				config.RestoreSnapshot = path
				if i == 2 {
					config.RestoreSnapshot = third
				}
				server, _ := start(t, config)
				servers = append(servers, server)
			}
			awaitReady(t, servers[0])
			awaitReady(t, servers[1])
			if third == path {
				awaitReady(t, servers[2])
				for _, server := range servers {
					sameKeys(t, server, hash)
				}
				return
			}
			deadline := time.After(20 * time.Second)
			for !heard.contain("cluster id mismatch") {
				select {
				case <-time.After(10 * time.Millisecond):
				case <-deadline:
					t.Fatal("the third member was not refused")
				}
			}
			select {
			case <-servers[2].Ready():
				t.Error("the third member is ready without the others")
			default:
			}
			if _, err := pb.NewKVClient(connect(t, servers[0].clients[0].Addr().String()).conn).Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); err != nil {
				t.Error(err)
			}
			if got := servers[2].replica.Machine().Revision(); got != 1 {
				t.Errorf("the third member is at revision %d; it has what it was not founded from", got)
			}
		})
	}
}

package kvserver

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/kvserver/membership"
	"muster/kvserver/replica"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestConfigSaysEverythingThatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*Config)
		want  []string
	}{
		"the defaults":     {func(*Config) {}, nil},
		"no name":          {func(c *Config) { c.Name = "" }, []string{"--name is empty"}},
		"short election":   {func(c *Config) { c.ElectionTimeout = 499 * time.Millisecond }, []string{"--election-timeout 499ms must be at least five times --heartbeat-interval 100ms"}},
		"long election":    {func(c *Config) { c.ElectionTimeout = 51 * time.Second }, []string{"--election-timeout 51s is longer than 50s"}},
		"short heartbeat":  {func(c *Config) { c.HeartbeatInterval = time.Millisecond }, []string{"--heartbeat-interval 1ms is shorter than 10ms"}},
		"two on one URL":   {func(c *Config) { c.ListenClientHTTPURLs = c.ListenClientURLs }, []string{"cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://localhost:2379"}},
		"no such state":    {func(c *Config) { c.InitialClusterState = "old" }, []string{`--initial-cluster-state "old" is neither new nor existing`}},
		"no URL":           {func(c *Config) { c.ListenClientURLs = nil }, []string{"--listen-client-urls is empty"}},
		"https, no files":  {func(c *Config) { c.ListenPeerURLs = []string{"https://127.0.0.1:1"} }, []string{"--listen-peer-urls has https://127.0.0.1:1 but no certificate is given"}},
		"no port":          {func(c *Config) { c.AdvertiseClientURLs = []string{"http://host"} }, []string{`--advertise-client-urls: "http://host": host and port are needed`}},
		"bad metrics URL":  {func(c *Config) { c.ListenMetricsURLs = []string{"unix://x:1"} }, []string{"--listen-metrics-urls: ", "the scheme must be http or https"}},
		"metrics, no cert": {func(c *Config) { c.ListenMetricsURLs = []string{"https://127.0.0.1:1"} }, []string{"--listen-metrics-urls has https://127.0.0.1:1 but no certificate is given"}},
		"a weak hash":      {func(c *Config) { c.BcryptCost = 3 }, []string{"--bcrypt-cost 3 must be 4 to 31"}},
		"no token's life":  {func(c *Config) { c.AuthTokenTTL = 0 }, []string{"--auth-token-ttl 0s must be longer than nothing"}},
		"many at once": {func(c *Config) { c.Name, c.ListenPeerURLs, c.ElectionTimeout = "", nil, 0 }, []string{
			"--name is empty", "--listen-peer-urls is empty", "--election-timeout 0s",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			config := Default()
			config.DataDir, config.Logger = t.TempDir(), discard()
			test.spoil(&config)
			err := config.check()
			if (err == nil) != (len(test.want) == 0) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// A member that has its data starts whatever --initial-cluster-state says.
func TestMemberWithDataIgnoresTheState(t *testing.T) {
	config := single(t)
	run := func() {
		server, err := Start(config)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-server.Ready():
		case err := <-server.Replica().Failed():
			t.Fatal(err)
		case <-time.After(30 * time.Second):
			t.Fatal("not ready")
		}
		for range 2 {
			if err := server.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	}
	run()
	config.InitialClusterState = "existing"
	run()
}

// single is a cluster of one member on free ports.
func single(t *testing.T) Config {
	t.Helper()
	config := Default()
	config.DataDir, config.Logger = filepath.Join(t.TempDir(), "data"), discard()
	config.ListenPeerURLs = []string{"http://127.0.0.1:0"}
	config.ListenClientURLs = []string{"http://127.0.0.1:0"}
	config.HeartbeatInterval, config.ElectionTimeout = 20*time.Millisecond, 200*time.Millisecond
	return config
}

func TestJoiningNeedsSomebodyToJoin(t *testing.T) {
	config := single(t)
	config.InitialClusterState = stateExisting
	if server, err := Start(config); err == nil || !strings.Contains(err.Error(), "--initial-cluster names no other member to ask") {
		if err == nil {
			_ = server.Close()
		}
		t.Errorf("joined nobody: %v", err)
	}
}

func TestStartFails(t *testing.T) {
	taken := single(t)
	server, err := Start(taken)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for name, test := range map[string]struct {
		spoil  func(*Config)
		want   error
		saying string
	}{
		"client port in use": {func(c *Config) { c.ListenClientURLs = []string{"http://" + server.clients[0].Addr().String()} }, nil, "listen for clients on 127.0.0.1:"},
		"data dir in use":    {func(c *Config) { c.DataDir = taken.DataDir }, nil, "open the store"},
		"not a member":       {func(c *Config) { c.InitialCluster = "other=http://127.0.0.1:1" }, membership.ErrUnknownName, "--initial-cluster has other"},
		"no certificates":    {func(c *Config) { c.PeerTLS.Cert, c.PeerTLS.Key = "/no/cert", "/no/key" }, nil, "peer certificates: read the certificate /no/cert"},
		"foreign data":       {func(c *Config) { c.DataDir, c.Name, c.InitialCluster = taken.DataDir, "b", "b=http://127.0.0.1:1" }, replica.ErrForeignData, "was made by member"},
	} {
		t.Run(name, func(t *testing.T) {
			config := single(t)
			test.spoil(&config)
			failed, err := Start(config)
			if err == nil {
				_ = failed.Close()
				t.Fatal("started")
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("error %q is not %q", err, test.want)
			}
			if !strings.Contains(err.Error(), test.saying) {
				t.Errorf("error %q does not say %q", err, test.saying)
			}
		})
	}
}

// The log may be on a disk of its own; the data directory knows where.
func TestLogOnADiskOfItsOwn(t *testing.T) {
	config := single(t)
	config.WALDir = filepath.Join(t.TempDir(), "wal")
	for _, again := range []string{config.WALDir, ""} {
		config.WALDir = again
		server, err := Start(config)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-server.Ready():
		case <-time.After(30 * time.Second):
			t.Fatal("not ready")
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}

package kvserver

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"muster/kvserver/etcdapi"
	"muster/kvserver/membership"
	"muster/kvserver/replica"
	"muster/kvserver/tlsfiles"
)

// Config is everything one member needs to know; each field is etcd's flag of
// the same name. Start from Default.
type Config struct {
	Name    string
	DataDir string

	ListenClientURLs    []string
	AdvertiseClientURLs []string
	ListenPeerURLs      []string
	// InitialAdvertisePeerURLs must equal this member's URLs in InitialCluster.
	InitialAdvertisePeerURLs []string
	// ListenMetricsURLs serve health and metrics only, without client
	// certificates.
	ListenMetricsURLs []string

	// InitialCluster is name=peerURL,...; empty means a cluster of this member
	// alone. It is read only while the data directory is empty.
	InitialCluster      string
	InitialClusterToken string
	InitialClusterState string
	// RestoreSnapshot is a file that etcdctl snapshot save has written, for a
	// new cluster to begin with: every founding member is started with the same
	// one. It is read only while the data directory is empty.
	RestoreSnapshot string

	ClientTLS tlsfiles.Files
	PeerTLS   tlsfiles.Files

	// HeartbeatInterval must be at most a fifth of ElectionTimeout, which must
	// be at most 50 s; both are etcd's rules.
	HeartbeatInterval time.Duration
	ElectionTimeout   time.Duration
	// SnapshotCount is how many log entries are kept before they are cut.
	SnapshotCount        uint64
	MaxRequestBytes      int
	MaxTxnOps            int
	MaxConcurrentStreams uint32
	// WatchProgressNotifyInterval is raised to 100 ms, and 0 is the default;
	// both are etcd's rules.
	WatchProgressNotifyInterval time.Duration

	// AuthToken is the kind of tokens with its options; see token.New.
	AuthToken string
	// AuthTokenTTL is how long a simple token is good without being used.
	AuthTokenTTL time.Duration
	// BcryptCost is the strength of the hashes of passwords, 4 to 31.
	BcryptCost int

	Logger *slog.Logger
}

const defaultProgressInterval = 10 * time.Minute

// Default returns etcd's defaults.
func Default() Config {
	return Config{
		Name:                     "default",
		ListenClientURLs:         []string{"http://localhost:2379"},
		AdvertiseClientURLs:      []string{"http://localhost:2379"},
		ListenPeerURLs:           []string{"http://localhost:2380"},
		InitialAdvertisePeerURLs: []string{"http://localhost:2380"},
		InitialClusterToken:      "etcd-cluster",
		InitialClusterState:      "new",
		HeartbeatInterval:        100 * time.Millisecond,
		ElectionTimeout:          time.Second,
		SnapshotCount:            10000,
		MaxRequestBytes:          1536 * 1024,
		MaxTxnOps:                128,
		MaxConcurrentStreams:     1<<32 - 1,

		WatchProgressNotifyInterval: defaultProgressInterval,

		AuthToken:    "simple",
		AuthTokenTTL: 5 * time.Minute,
		BcryptCost:   bcrypt.DefaultCost,
	}
}

// snapshotBytes cuts the log however few entries it has: entries differ in
// size, and every byte above the last snapshot is read again at start.
const snapshotBytes = 64 << 20

const metricsURLs = "--listen-metrics-urls"

// check reports every problem of the configuration at once.
func (c *Config) check() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		complain("--name is empty; give this member the name it has in --initial-cluster")
	}
	if c.DataDir == "" {
		c.DataDir = c.Name + ".etcd"
	}
	if c.ElectionTimeout < 5*c.HeartbeatInterval {
		complain("--election-timeout %v must be at least five times --heartbeat-interval %v", c.ElectionTimeout, c.HeartbeatInterval)
	}
	if c.ElectionTimeout > 50*time.Second {
		complain("--election-timeout %v is longer than 50s", c.ElectionTimeout)
	}
	if c.HeartbeatInterval < 10*time.Millisecond {
		complain("--heartbeat-interval %v is shorter than 10ms", c.HeartbeatInterval)
	}
	if c.BcryptCost < bcrypt.MinCost || c.BcryptCost > bcrypt.MaxCost {
		complain("--bcrypt-cost %d must be %d to %d", c.BcryptCost, bcrypt.MinCost, bcrypt.MaxCost)
	}
	if c.AuthTokenTTL <= 0 {
		complain("--auth-token-ttl %v must be longer than nothing", c.AuthTokenTTL)
	}
	if err := c.checkState(); err != nil {
		errs = append(errs, err)
	}
	lists := []struct {
		flag  string
		urls  []string
		files tlsfiles.Files
	}{
		{"--listen-client-urls", c.ListenClientURLs, c.ClientTLS},
		{"--advertise-client-urls", c.AdvertiseClientURLs, c.ClientTLS},
		{"--listen-peer-urls", c.ListenPeerURLs, c.PeerTLS},
		{"--initial-advertise-peer-urls", c.InitialAdvertisePeerURLs, c.PeerTLS},
		{metricsURLs, c.ListenMetricsURLs, c.ClientTLS},
	}
	for _, list := range lists {
		if len(list.urls) == 0 && list.flag != metricsURLs {
			complain("%s is empty", list.flag)
		}
		for _, raw := range list.urls {
			if _, err := membership.CheckURL(raw); err != nil {
				complain("%s: %w", list.flag, err)
			} else if strings.HasPrefix(raw, "https:") && !list.files.Enabled() {
				complain("%s has %s but no certificate is given; add the cert-file and key-file flags", list.flag, raw)
			}
		}
	}
	return errors.Join(errs...)
}

// checkState judges --initial-cluster-state, which, as in etcd, matters only
// while the data directory is empty.
func (c *Config) checkState() error {
	switch c.InitialClusterState {
	case "new":
		return nil
	case "existing":
	default:
		return fmt.Errorf("--initial-cluster-state %q is neither new nor existing", c.InitialClusterState)
	}
	known, err := replica.LoadIdentity(c.DataDir)
	if err != nil {
		return err
	}
	if known == nil || !known.Founded {
		return fmt.Errorf("--initial-cluster-state existing: there is no member's data in %s, and this version cannot join a running cluster; give this member its own --data-dir, or found a cluster with --initial-cluster-state new", c.DataDir)
	}
	return nil
}

// member returns the founding cluster and this member's place in it.
func (c *Config) member() (membership.Cluster, membership.Peer, error) {
	text := c.InitialCluster
	if text == "" {
		var own []string
		for _, peerURL := range c.InitialAdvertisePeerURLs {
			own = append(own, c.Name+"="+peerURL)
		}
		text = strings.Join(own, ",")
	}
	cluster, err := membership.ParseInitialCluster(text, c.InitialClusterToken)
	if err != nil {
		return cluster, membership.Peer{}, err
	}
	self, err := cluster.ByName(c.Name)
	return cluster, self, err
}

func (c *Config) replica() (replica.Config, error) {
	cluster, self, err := c.member()
	if err != nil {
		return replica.Config{}, err
	}
	config := replica.Config{
		Dir: c.DataDir, Cluster: cluster, Self: self, ClientURLs: c.AdvertiseClientURLs,
		ElectionTimeout: c.ElectionTimeout,
		SnapshotEntries: c.SnapshotCount, SnapshotBytes: snapshotBytes,
		Logger: c.Logger,
	}
	for _, raw := range c.ListenPeerURLs {
		config.PeerListen = append(config.PeerListen, hostPort(raw))
	}
	if c.PeerTLS.Enabled() {
		if config.ServerTLS, err = c.PeerTLS.Server(); err != nil {
			return config, fmt.Errorf("peer certificates: %w", err)
		}
		if config.ClientTLS, err = c.PeerTLS.Client(); err != nil {
			return config, fmt.Errorf("peer certificates: %w", err)
		}
	}
	return config, nil
}

func (c *Config) limits() etcdapi.Limits {
	return etcdapi.Limits{
		MaxRequestBytes:      c.MaxRequestBytes,
		MaxTxnOps:            c.MaxTxnOps,
		MaxConcurrentStreams: c.MaxConcurrentStreams,
		MinLeaseTTL:          c.minLeaseTTL(),
		ElectionTimeout:      c.ElectionTimeout,
		RequestTimeout:       c.requestTimeout(),

		WatchProgressNotifyInterval: c.watchProgressInterval(),
	}
}

func (c *Config) watchProgressInterval() time.Duration {
	if c.WatchProgressNotifyInterval <= 0 {
		return defaultProgressInterval
	}
	return max(c.WatchProgressNotifyInterval, 100*time.Millisecond)
}

// minLeaseTTL is etcd's rule (server/etcdserver/server.go): one and a half
// election timeouts, in whole seconds.
func (c *Config) minLeaseTTL() int64 {
	ticks := int64(c.ElectionTimeout / c.HeartbeatInterval)
	return int64(math.Ceil(float64(3*ticks/2) * c.HeartbeatInterval.Seconds()))
}

// requestTimeout is etcd's: long enough for a slow disk and two elections.
func (c *Config) requestTimeout() time.Duration { return 5*time.Second + 2*c.ElectionTimeout }

func hostPort(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}

package kvserver

import (
	"log/slog"
	"net"
	"time"

	"golang.org/x/crypto/bcrypt"

	"muster/kvserver/discovery"
	"muster/kvserver/tlsfiles"
)

// Config is everything one member needs to know; each field is etcd's flag of
// the same name. Start from Default.
type Config struct {
	Name    string
	DataDir string
	// WALDir is where the log of a new member goes; empty is in DataDir.
	WALDir string

	ListenClientURLs    []string
	AdvertiseClientURLs []string
	ListenPeerURLs      []string
	// ListenClientHTTPURLs, unless empty, serve what is not gRPC, and
	// ListenClientURLs no longer do.
	ListenClientHTTPURLs []string
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
	// Discovery, if wanted, says who is in InitialCluster.
	Discovery discovery.Config
	// RestoreSnapshot is a file that etcdctl snapshot save has written, for a
	// new cluster to begin with: every founding member is started with the same
	// one. It is read only while the data directory is empty.
	RestoreSnapshot string
	// RestoreID distinguishes two clusters that begin with the same snapshot:
	// the same on every founding member, another one each time. It may be empty.
	RestoreID string

	// ClientTLS and PeerTLS are each port's own; the suites and versions below
	// are both's.
	ClientTLS     tlsfiles.Files
	PeerTLS       tlsfiles.Files
	CipherSuites  []string
	TLSMinVersion string
	TLSMaxVersion string
	// SelfSignedCertValidity is for how many years the certificates are valid
	// that Auto makes.
	SelfSignedCertValidity uint

	// HeartbeatInterval must be at most a fifth of ElectionTimeout, which must
	// be at most 50 s; both are etcd's rules.
	HeartbeatInterval time.Duration
	ElectionTimeout   time.Duration
	// InitialElectionTickAdvance spares a lone member, and a new cluster whose
	// members are all there, the wait for ElectionTimeout before they elect.
	InitialElectionTickAdvance bool
	// SnapshotCount is how many log entries are kept before they are cut.
	SnapshotCount uint64
	// SnapshotCatchUpEntries is how many of them are left for members that are a
	// little behind; 64 at least.
	SnapshotCatchUpEntries uint64
	MaxRequestBytes        int
	MaxTxnOps              int
	MaxConcurrentStreams   uint32
	// GRPCKeepAliveMinTime is how often a client may ping. The member pings an
	// idle client every GRPCKeepAliveInterval and waits for the answer for
	// GRPCKeepAliveTimeout; 0 is not at all.
	GRPCKeepAliveMinTime  time.Duration
	GRPCKeepAliveInterval time.Duration
	GRPCKeepAliveTimeout  time.Duration
	// SocketReusePort shares the ports with other processes.
	SocketReusePort bool
	// Inherited are open sockets to listen on, for the addresses they have.
	Inherited []net.Listener
	// WatchProgressNotifyInterval is raised to 100 ms, and 0 is the default;
	// both are etcd's rules.
	WatchProgressNotifyInterval time.Duration

	// AuthToken is the kind of tokens with its options; see token.New.
	AuthToken string
	// AuthTokenTTL is how long a simple token is good without being used.
	AuthTokenTTL time.Duration
	// BcryptCost is the strength of the hashes of passwords, 4 to 31.
	BcryptCost int

	// StrictReconfigCheck refuses changes of the members that could cost the
	// quorum.
	StrictReconfigCheck bool
	// MaxLearners bounds the learners of the cluster.
	MaxLearners int
	// ForceNewCluster makes this member's data a new cluster of one.
	ForceNewCluster bool

	// QuotaBackendBytes bounds the bytes in use; 0 is 2 GiB, below 0 there is
	// no bound.
	QuotaBackendBytes int64
	// AutoCompactionMode is periodic or revision. AutoCompactionRetention is
	// the history to keep: hours or a duration, or a number of revisions; 0
	// compacts never.
	AutoCompactionMode      string
	AutoCompactionRetention string
	// InitialCorruptCheck compares this member's data with the others' before
	// it serves, CorruptCheckTime (0 is never) while it does.
	InitialCorruptCheck bool
	CorruptCheckTime    time.Duration
	// CompactHashCheck compares the hashes of compactions with the other
	// members' every CompactHashCheckTime.
	CompactHashCheck     bool
	CompactHashCheckTime time.Duration

	// EnableV2 serves the HTTP API of version 2. The members keep its data
	// whether they do or not.
	EnableV2 bool
	// EnableGRPCGateway serves the API as JSON over HTTP.
	EnableGRPCGateway bool
	// CORS are the origins of web pages that may call this member, and
	// HostWhitelist the names by which clients without TLS may call it; empty,
	// or one that is *, means all.
	CORS          []string
	HostWhitelist []string
	// EnablePprof serves profiles of the process below /debug/pprof/.
	// ExtensiveMetrics adds histograms of how long calls take.
	ExtensiveMetrics bool
	EnablePprof      bool

	// Requests that take longer are logged: WarningUnaryRequestDuration from the
	// client's side, WarningApplyDuration where a batch of them is applied.
	WarningUnaryRequestDuration time.Duration
	WarningApplyDuration        time.Duration

	Logger *slog.Logger
}

const defaultProgressInterval = 10 * time.Minute

// Default returns etcd's defaults.
func Default() Config {
	return Config{
		Name:                       "default",
		ListenClientURLs:           []string{"http://localhost:2379"},
		AdvertiseClientURLs:        []string{"http://localhost:2379"},
		ListenPeerURLs:             []string{"http://localhost:2380"},
		InitialAdvertisePeerURLs:   []string{"http://localhost:2380"},
		InitialClusterToken:        "etcd-cluster",
		InitialClusterState:        "new",
		Discovery:                  discovery.Default(),
		TLSMinVersion:              "TLS1.2",
		SelfSignedCertValidity:     1,
		HeartbeatInterval:          100 * time.Millisecond,
		ElectionTimeout:            time.Second,
		InitialElectionTickAdvance: true,
		SnapshotCount:              10000,
		SnapshotCatchUpEntries:     5000,
		MaxRequestBytes:            1536 * 1024,
		MaxTxnOps:                  128,
		MaxConcurrentStreams:       1<<32 - 1,
		GRPCKeepAliveMinTime:       5 * time.Second,
		GRPCKeepAliveInterval:      2 * time.Hour,
		GRPCKeepAliveTimeout:       20 * time.Second,

		WatchProgressNotifyInterval: defaultProgressInterval,

		AuthToken:    "simple",
		AuthTokenTTL: 5 * time.Minute,
		BcryptCost:   bcrypt.DefaultCost,

		StrictReconfigCheck: true,
		MaxLearners:         1,

		AutoCompactionMode:      "periodic",
		AutoCompactionRetention: "0",
		CompactHashCheckTime:    time.Minute,

		WarningUnaryRequestDuration: 300 * time.Millisecond,
		WarningApplyDuration:        100 * time.Millisecond,

		EnableGRPCGateway: true,
		CORS:              []string{"*"},
		HostWhitelist:     []string{"*"},
	}
}

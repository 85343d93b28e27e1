package kvserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/pkg/v3/runtime"

	"muster/kvserver/clientport"
	"muster/kvserver/etcdapi"
	"muster/kvserver/membership"
	"muster/kvserver/peerport"
	"muster/kvserver/replica"
	"muster/kvserver/tlsfiles"
)

// snapshotBytes cuts the log however few entries it has: entries differ in
// size, and every byte above the last snapshot is read again at start.
const snapshotBytes = 64 << 20

// discover asks who founds the cluster, unless this member has been founded.
func (c *Config) discover(ctx context.Context) error {
	if !c.Discovery.Wanted() {
		return nil
	}
	if c.Discovery.Service.Token != "" {
		c.InitialClusterToken = c.Discovery.Service.Token
	}
	known, err := replica.LoadIdentity(c.DataDir)
	if err != nil || known != nil && known.Founded {
		return err
	}
	c.InitialCluster, c.InitialClusterToken, err = c.Discovery.Founders(ctx, c.Name, c.InitialAdvertisePeerURLs, c.InitialClusterToken, c.Logger)
	return err
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
		ElectionTimeout: c.ElectionTimeout, HastenElection: c.InitialElectionTickAdvance,
		ForceNewCluster: c.ForceNewCluster, StrictReconfig: c.StrictReconfigCheck, MaxLearners: c.MaxLearners,
		SnapshotEntries: c.SnapshotCount, SnapshotBytes: snapshotBytes, TrailingEntries: c.SnapshotCatchUpEntries,
		LogDir:    c.WALDir,
		SlowApply: c.WarningApplyDuration,
		Logger:    c.Logger,
	}
	for _, raw := range c.ListenPeerURLs {
		config.PeerListen = append(config.PeerListen, hostPort(raw))
	}
	if c.PeerTLS.Enabled() || c.PeerTLS.Auto {
		credentials, err := c.credentials(c.PeerTLS, "peer", c.ListenPeerURLs)
		if err != nil {
			return config, fmt.Errorf("peer certificates: %w", err)
		}
		config.ServerTLS, config.ClientTLS = credentials.Server(peerport.Protocols()...), credentials.Client()
		config.CheckAddress = credentials.CheckAddress
	}
	return config, nil
}

// clientTLS is nil when clients are served without TLS.
func (c *Config) clientTLS() (*tls.Config, error) {
	if !c.ClientTLS.Enabled() && !c.ClientTLS.Auto {
		return nil, nil
	}
	credentials, err := c.credentials(c.ClientTLS, "client", slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs))
	if err != nil {
		return nil, fmt.Errorf("client certificates: %w", err)
	}
	return credentials.Server(clientport.Protocols()...), nil
}

// maxClients leaves some of the files that the process may have open to the log
// and the store, as etcd does.
func maxClients() int {
	const reserved = 150
	limit, err := runtime.FDLimit()
	if err != nil || limit <= 2*reserved {
		return 0
	}
	return int(min(limit-reserved, math.MaxInt32))
}

// credentials opens the files of a port; what is not there and is to be made
// is made for the hosts of the URLs.
func (c *Config) credentials(files tlsfiles.Files, port string, urls []string) (*tlsfiles.Credentials, error) {
	files.CipherSuites, files.MinVersion, files.MaxVersion = c.CipherSuites, c.TLSMinVersion, c.TLSMaxVersion
	var hosts []string
	for _, raw := range urls {
		hosts = append(hosts, hostPort(raw))
	}
	files, err := files.SelfSign(filepath.Join(c.DataDir, "fixtures", port), hosts, c.SelfSignedCertValidity)
	if err != nil {
		return nil, err
	}
	return files.Open(c.Logger)
}

func (c *Config) limits() etcdapi.Limits {
	return etcdapi.Limits{
		MaxRequestBytes:      c.MaxRequestBytes,
		MaxTxnOps:            c.MaxTxnOps,
		QuotaBytes:           c.quota(),
		MaxConcurrentStreams: c.MaxConcurrentStreams,
		KeepAliveMinTime:     c.GRPCKeepAliveMinTime,
		KeepAliveInterval:    c.GRPCKeepAliveInterval,
		KeepAliveTimeout:     c.GRPCKeepAliveTimeout,
		MinLeaseTTL:          c.minLeaseTTL(),
		ElectionTimeout:      c.ElectionTimeout,
		RequestTimeout:       c.requestTimeout(),

		WatchProgressNotifyInterval: c.watchProgressInterval(),
	}
}

// quota is etcd's rule: 0 is its default.
func (c *Config) quota() int64 {
	if c.QuotaBackendBytes == 0 {
		return 2 << 30
	}
	return c.QuotaBackendBytes
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

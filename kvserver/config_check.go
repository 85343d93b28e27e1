package kvserver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"muster/kvserver/membership"
	"muster/kvserver/tlsfiles"
)

const (
	metricsURLs    = "--listen-metrics-urls"
	clientHTTPURLs = "--listen-client-http-urls"
)

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
	if c.CorruptCheckTime < 0 {
		complain("--corrupt-check-time %v is negative; 0 is never", c.CorruptCheckTime)
	}
	if c.CompactHashCheckTime <= 0 {
		complain("--compact-hash-check-time %v must be longer than nothing", c.CompactHashCheckTime)
	}
	if _, err := c.retention(); err != nil {
		errs = append(errs, err)
	}
	if err := c.Discovery.Check(c.InitialCluster); err != nil {
		errs = append(errs, err)
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
		{clientHTTPURLs, c.ListenClientHTTPURLs, c.ClientTLS},
		{"--advertise-client-urls", c.AdvertiseClientURLs, c.ClientTLS},
		{"--listen-peer-urls", c.ListenPeerURLs, c.PeerTLS},
		{"--initial-advertise-peer-urls", c.InitialAdvertisePeerURLs, c.PeerTLS},
		{metricsURLs, c.ListenMetricsURLs, c.ClientTLS},
	}
	for _, list := range lists {
		if len(list.urls) == 0 && list.flag != metricsURLs && list.flag != clientHTTPURLs {
			complain("%s is empty", list.flag)
		}
		for _, raw := range list.urls {
			if _, err := membership.CheckURL(raw); err != nil {
				complain("%s: %w", list.flag, err)
			} else if strings.HasPrefix(raw, "https:") && !list.files.Enabled() && !list.files.Auto {
				complain("%s has %s but no certificate is given; add the cert-file and key-file flags", list.flag, raw)
			}
		}
	}
	for _, raw := range c.ListenClientHTTPURLs {
		if slices.Contains(c.ListenClientURLs, raw) {
			complain("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url %s", raw)
		}
	}
	return errors.Join(errs...)
}

// stateExisting is the --initial-cluster-state of a member that joins a running
// cluster. As in etcd it matters only while the data directory is empty.
const stateExisting = "existing"

func (c *Config) checkState() error {
	if c.InitialClusterState != "new" && c.InitialClusterState != stateExisting {
		return fmt.Errorf("--initial-cluster-state %q is neither new nor existing", c.InitialClusterState)
	}
	return nil
}

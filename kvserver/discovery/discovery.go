// Package discovery finds out who founds a cluster when that is not in the
// configuration: from DNS, or from a discovery service, both as etcd does.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3discovery"
	"go.uber.org/zap"

	"muster/kvserver/membership"
)

// Config says whom to ask. At most one of Domain and Service.Endpoints is
// given.
type Config struct {
	// Domain has SRV records of the members, for _etcd-server-ssl._tcp and
	// _etcd-server._tcp; ServiceName is appended to the names of these services.
	Domain, ServiceName string
	// Service is an etcd cluster where the members of the new cluster, which
	// Service.Token names, put themselves down.
	Service v3discovery.DiscoveryConfig
}

// Default returns etcd's timeouts.
func Default() Config {
	return Config{Service: v3discovery.DiscoveryConfig{ConfigSpec: clientv3.ConfigSpec{
		DialTimeout: 2 * time.Second, RequestTimeout: 5 * time.Second,
		KeepAliveTime: 2 * time.Second, KeepAliveTimeout: 6 * time.Second,
		Secure: &clientv3.SecureConfig{InsecureTransport: true},
		Auth:   &clientv3.AuthConfig{},
	}}}
}

// Wanted reports whether somebody is to be asked.
func (c Config) Wanted() bool { return c.Domain != "" || len(c.Service.Endpoints) > 0 }

// Check refuses what etcd refuses (server/embed/config.go).
func (c Config) Check(initialCluster string) error {
	asked := 0
	for _, given := range []bool{initialCluster != "", c.Domain != "", len(c.Service.Endpoints) > 0} {
		if given {
			asked++
		}
	}
	switch {
	case asked > 1:
		return errors.New(`multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`)
	case (c.Service.Token != "") != (len(c.Service.Endpoints) > 0):
		return errors.New("both --discovery-token and --discovery-endpoints must be set")
	}
	for _, endpoint := range c.Service.Endpoints {
		if strings.TrimSpace(endpoint) == "" {
			return errors.New("--discovery-endpoints must not contain empty endpoints")
		}
	}
	return nil
}

// Founders returns the founding members as --initial-cluster has them, and the
// cluster's token. A discovery service is asked until all have put themselves
// down, or ctx ends.
func (c Config) Founders(ctx context.Context, name string, peerURLs []string, token string, logger *slog.Logger) (initialCluster, clusterToken string, err error) {
	if c.Domain != "" {
		initialCluster, err = c.fromDNS(name, peerURLs, logger)
		return initialCluster, token, err
	}
	service := c.Service
	id := membership.MemberID(peerURLs, service.Token)
	own := make([]string, len(peerURLs))
	for i, peerURL := range peerURLs {
		own[i] = name + "=" + peerURL
	}
	logger.Info("waiting for the founding members at the discovery service", "endpoints", service.Endpoints)
	asked := "ask the discovery service at " + strings.Join(service.Endpoints, ",")
	answered := make(chan error, 1)
	var founders string
	go func() { // it cannot be told to stop
		var err error
		founders, err = v3discovery.JoinCluster(zap.NewNop(), &service, types.ID(id), strings.Join(own, ","))
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", asked, err)
		}
		return founders, service.Token, nil
	case <-ctx.Done():
		return "", "", fmt.Errorf("%s: %w", asked, ctx.Err())
	}
}

func (c Config) fromDNS(name string, peerURLs []string, logger *slog.Logger) (string, error) {
	own := make(types.URLs, len(peerURLs))
	for i, peerURL := range peerURLs {
		parsed, err := url.Parse(peerURL)
		if err != nil {
			return "", err
		}
		own[i] = *parsed
	}
	var founders []string
	var errs []error
	for _, scheme := range []string{"https", "http"} {
		service := srv.GetSRVService("etcd-server", c.ServiceName, scheme)
		found, err := srv.GetCluster(scheme, service, name, c.Domain, own)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		founders = append(founders, found...)
	}
	if len(founders) == 0 {
		return "", fmt.Errorf("--discovery-srv=%s: %w", c.Domain, errors.Join(errs...))
	}
	logger.Info("found the founding members in DNS", "domain", c.Domain, "initial-cluster", founders)
	initialCluster := strings.Join(founders, ",")
	if !strings.HasPrefix(initialCluster, name+"=") && !strings.Contains(initialCluster, ","+name+"=") {
		return "", fmt.Errorf("cannot find local etcd member %q in SRV records of %s, which are %s; compare them with --initial-advertise-peer-urls", name, c.Domain, initialCluster)
	}
	return initialCluster, nil
}

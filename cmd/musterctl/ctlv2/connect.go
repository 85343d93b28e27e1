package ctlv2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/bgentry/speakeasy"
	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/v2"
)

// maxDial bounds how long a connection may take to be made.
const maxDial = 30 * time.Second

const defaultEndpoints = "http://127.0.0.1:2379,http://127.0.0.1:4001"

// setting is a global flag, or else an environment variable.
func (s *session) setting(c *cli.Context, flag, variable string) string {
	if value := c.GlobalString(flag); value != "" {
		return value
	}
	return s.Getenv("ETCDCTL_" + variable)
}

// domain is where endpoints are to be discovered, and whether those without TLS
// are welcome.
func (s *session) domain(c *cli.Context) (name string, insecure bool) {
	return s.setting(c, "discovery-srv", "DISCOVERY_SRV"), c.GlobalBool("insecure-discovery") || s.Getenv("ETCDCTL_INSECURE_DISCOVERY") != ""
}

func (s *session) endpoints(c *cli.Context) ([]string, error) {
	found, err := s.discovered(c)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		found = strings.Split(s.named(c), ",")
	}
	for i, endpoint := range found {
		u, err := url.Parse(endpoint)
		if err != nil {
			return nil, err
		}
		if u.Scheme == "" {
			u.Scheme = "http"
		}
		found[i] = u.String()
	}
	return found, nil
}

// named are the endpoints that are given, by the name of today or an old one.
func (s *session) named(c *cli.Context) string {
	for _, each := range []struct{ flag, variable string }{{"endpoints", "ENDPOINTS"}, {"endpoint", "ENDPOINT"}, {"peers", "PEERS"}} {
		if value := s.setting(c, each.flag, each.variable); value != "" {
			return value
		}
	}
	return defaultEndpoints
}

func (s *session) discovered(c *cli.Context) ([]string, error) {
	domain, insecure := s.domain(c)
	if domain == "" {
		return nil, nil
	}
	all, err := client.NewSRVDiscover().Discover(domain, s.Getenv("ETCDCTL_DISCOVERY_SRV_NAME"))
	if err != nil || insecure {
		return all, err
	}
	var safe []string
	for _, endpoint := range all {
		if strings.HasPrefix(endpoint, "http://") {
			fmt.Fprintf(s.Err, "ignoring discovered insecure endpoint %s\n", quoted(endpoint))
			continue
		}
		safe = append(safe, endpoint)
	}
	return safe, nil
}

func (s *session) transport(c *cli.Context) (*http.Transport, error) {
	domain, insecure := s.domain(c)
	if insecure {
		domain = ""
	}
	dial := maxDial
	if total := c.GlobalDuration("total-timeout"); total != 0 {
		dial = min(dial, total)
	}
	return transport.NewTransport(transport.TLSInfo{
		CertFile: s.setting(c, "cert-file", "CERT_FILE"), KeyFile: s.setting(c, "key-file", "KEY_FILE"),
		TrustedCAFile: s.setting(c, "ca-file", "CA_FILE"), ServerName: domain,
	}, dial)
}

// password splits name[:password], and asks for a password that is missing.
func (s *session) password(prompt, login string) (name, password string, err error) {
	name, password, given := strings.Cut(login, ":")
	if !given {
		password, err = speakeasy.Ask(prompt)
	}
	return name, password, err
}

// unsynced is a client that knows the endpoints that are given.
func (s *session) unsynced(c *cli.Context) (client.Client, error) {
	config := client.Config{HeaderTimeoutPerRequest: c.GlobalDuration("timeout")}
	var err error
	if config.Endpoints, err = s.endpoints(c); err != nil {
		return nil, &Failure{exitError, err}
	}
	if config.Transport, err = s.transport(c); err != nil {
		return nil, &Failure{exitError, err}
	}
	if login := s.setting(c, "username", "USERNAME"); login != "" {
		if config.Username, config.Password, err = s.password("Password: ", login); err != nil {
			return nil, &Failure{exitError, err}
		}
	}
	connected, err := client.New(config)
	if err != nil {
		return nil, &Failure{exitError, err}
	}
	return connected, nil
}

// connect is a client that knows the endpoints that the members have announced,
// unless that is not wanted or cannot be.
func (s *session) connect(c *cli.Context) (client.Client, error) {
	connected, err := s.unsynced(c)
	if err != nil {
		return nil, err
	}
	debug := c.GlobalBool("debug")
	if debug {
		client.EnablecURLDebug()
	}
	if !c.GlobalBool("no-sync") {
		s.debug(debug, "start to sync cluster using endpoints(%s)\n", strings.Join(connected.Endpoints(), ","))
		if err := s.sync(c, connected); err != nil {
			return nil, err
		}
		s.debug(debug, "got endpoints(%s) after sync\n", strings.Join(connected.Endpoints(), ","))
	}
	s.debug(debug, "Cluster-Endpoints: %s\n", strings.Join(connected.Endpoints(), ", "))
	return connected, nil
}

func (s *session) debug(wanted bool, format string, args ...any) {
	if wanted {
		fmt.Fprintf(s.Err, format, args...)
	}
}

// sync fails only when there is no way on.
func (s *session) sync(c *cli.Context, connected client.Client) error {
	ctx, cancel := s.total(c)
	defer cancel()
	err := connected.Sync(ctx)
	switch {
	case errors.Is(err, client.ErrNoEndpoints):
		fmt.Fprintf(s.Err, "etcd cluster has no published client endpoints.\nTry '--no-sync' if you want to access non-published client endpoints(%s).\n", strings.Join(connected.Endpoints(), ","))
		return s.failed(c, exitServerError, err)
	case unreachable(err):
		return s.failed(c, exitBadConnection, err)
	default:
		return nil
	}
}

// unreachable tells whether nobody could be reached.
func unreachable(err error) bool {
	var cluster *client.ClusterError
	if errors.As(err, &cluster) {
		for _, each := range cluster.Errors {
			if !unreachable(each) {
				return false
			}
		}
		return true
	}
	var operation *net.OpError
	if errors.As(err, &operation) && (operation.Op == "dial" || operation.Op == "read") {
		return true
	}
	var network net.Error
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &network) && network.Timeout()
}

// keys is connect for commands on keys.
func (s *session) keys(c *cli.Context) (client.KeysAPI, error) {
	connected, err := s.connect(c)
	if err != nil {
		return nil, err
	}
	return client.NewKeysAPI(connected), nil
}

// authAPI is connect for the commands on users and roles, whose debug output
// tells the endpoints twice.
func (s *session) authAPI(c *cli.Context) (client.Client, error) {
	connected, err := s.connect(c)
	if err == nil {
		s.debug(c.GlobalBool("debug"), "Cluster-Endpoints: %s\n", strings.Join(connected.Endpoints(), ", "))
	}
	return connected, err
}

// bounded runs a request of a command that is no watch.
func bounded[T any](s *session, c *cli.Context, request func(context.Context) (T, error)) (T, error) {
	ctx, cancel := s.total(c)
	defer cancel()
	return request(ctx)
}

// Package kvserver wires a member together: it opens the parts, starts them in
// order, and stops them in reverse.
package kvserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"

	"muster/kvserver/clientport"
	"muster/kvserver/corruption"
	"muster/kvserver/etcdapi"
	"muster/kvserver/etcdsnap"
	"muster/kvserver/gateway"
	"muster/kvserver/httpapi"
	"muster/kvserver/lease"
	"muster/kvserver/metrics"
	"muster/kvserver/peerport"
	"muster/kvserver/replica"
	"muster/kvserver/sockets"
	"muster/kvserver/token"
	"muster/kvserver/v2api"
	"muster/kvserver/watch"
)

// stopTimeout is how long requests under way may take while the member stops.
const stopTimeout = 2 * time.Second

// ErrRemoved is why a member stops, or does not start, that was removed from
// its cluster.
var ErrRemoved = peerport.ErrRemoved

// Server is a running member.
type Server struct {
	config  Config
	replica *replica.Replica
	keeper  *lease.Keeper
	watches *watch.Registry
	grpc    *grpc.Server
	gateway *gateway.Gateway // nil if it is off
	v2      *v2api.API       // nil if it is off
	clients []*clientport.Port
	probes  []*http.Server
	metrics *memberMetrics
	sockets *sockets.Sockets
	failed  chan error
	serving sync.WaitGroup
	stop    context.CancelFunc // ends what Close does not end otherwise
}

// Start is StartContext for a start that nobody interrupts.
func Start(config Config) (*Server, error) {
	return StartContext(context.Background(), config)
}

// StartContext runs a member. It returns once the member listens; see Ready.
// One that joins a running cluster waits until it is added there, or ctx ends;
// after the start ctx has no meaning.
func StartContext(start context.Context, config Config) (*Server, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	if err := config.discover(start); err != nil {
		return nil, err
	}
	replicaConfig, err := config.replica()
	if err != nil {
		return nil, err
	}
	origin, err := config.origin(start)
	if err != nil {
		return nil, err
	}
	defer origin.close()
	origin.apply(&replicaConfig)
	clientTLS, err := config.clientTLS()
	if err != nil {
		return nil, err
	}
	known, err := replica.LoadIdentity(config.DataDir)
	if err != nil {
		return nil, err
	}
	if config.InitialClusterState == stateExisting {
		if replicaConfig, err = replica.Discover(start, replicaConfig); err != nil {
			return nil, err
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{config: config, failed: make(chan error, 1), stop: stop}
	s.sockets = sockets.New(sockets.Options{ReusePort: config.SocketReusePort, Inherited: config.Inherited})
	replicaConfig.Sockets = s.sockets.Listen
	s.metrics = newMetrics(config)
	replicaConfig.Metrics = s.metrics.replica
	var leases *lease.Service
	var hashes *corruption.Service
	replicaConfig.PeerServices = append(replicaConfig.PeerServices, func(registrar grpc.ServiceRegistrar) {
		leases = lease.NewService(registrar)
		hashes = corruption.NewService(registrar)
	})
	if s.replica, err = replica.Start(replicaConfig); err != nil {
		stop()
		return nil, err
	}
	if err := s.keepLeases(ctx, leases); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.compareMembers(ctx, hashes, known != nil && known.Founded); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.compactAutomatically(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.serve("the expiry of version 2's keys", func() error { s.expireV2(ctx); return nil })
	if err := s.listen(ctx, clientTLS); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// keepLeases starts timing the leases, for this member's clients and, while it
// leads, for everybody's.
func (s *Server) keepLeases(ctx context.Context, leases *lease.Service) error {
	keeper, err := lease.NewKeeper(lease.Config{
		Replica: s.replica, Leases: s.replica.Machine().Leases(),
		Extension: s.config.ElectionTimeout, Metrics: s.metrics.leases, Logger: s.config.Logger,
	})
	if err != nil {
		return fmt.Errorf("read the leases: %w", err)
	}
	s.keeper = keeper
	leases.Answer(keeper)
	s.serve("leases", func() error { keeper.Run(ctx); return nil })
	return nil
}

func (s *Server) listen(ctx context.Context, clientTLS *tls.Config) error {
	store := s.replica.Machine()
	access, err := s.access()
	if err != nil {
		return err
	}
	s.watches = watch.Start(store, watch.Options{})
	s.grpc = etcdapi.NewServer(ctx, etcdapi.Config{
		Replica: s.replica, Store: store, Leases: s.keeper, Watches: s.watches,
		Exporter: etcdsnap.NewExporter(s.config.DataDir),
		Limits:   s.config.limits(), Access: access, Credentials: clientport.Credentials(),
		Metrics: s.metrics.rpc, Logger: s.config.Logger, SlowRequest: s.config.WarningUnaryRequestDuration,
	})
	s.registerState()
	web := httpapi.Config{
		Replica: s.replica, Store: store, Learner: s.learner,
		Version:  store.Membership().Version,
		Timeout:  s.config.requestTimeout(),
		Gatherer: s.metrics.registry, Health: s.metrics.health, Logger: s.config.Logger,
		Profiles: s.config.EnablePprof, Admission: s.admission(),
	}
	if s.config.EnableGRPCGateway {
		if s.gateway, err = gateway.New(s.config.Logger); err != nil {
			return err
		}
		web.Gateway = s.gateway
		s.serve("the JSON gateway", func() error { return s.grpc.Serve(s.gateway.Listener()) })
	}
	if s.config.EnableV2 {
		s.v2 = v2api.New(v2api.Config{
			Replica: s.replica, Store: store, Name: s.config.Name, Timeout: s.config.requestTimeout(),
			ClientCertAuth: s.config.ClientTLS.RequireClientCert, BcryptCost: s.config.BcryptCost,
			Metrics: s.metrics.replica, Counts: metrics.NewV2(s.metrics.registry), Logger: s.config.Logger,
		})
		web.V2 = s.v2
	}
	return s.listenClients(clientTLS, web)
}

// access prepares for clients that say who they are.
func (s *Server) access() (etcdapi.Access, error) {
	tokens, err := token.New(s.config.AuthToken, token.Config{
		TTL: s.config.AuthTokenTTL,
		CatchUp: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, s.config.requestTimeout())
			defer cancel()
			return s.replica.Linearize(ctx)
		},
	})
	if err != nil {
		return etcdapi.Access{}, fmt.Errorf("--auth-token: %w", err)
	}
	s.replica.Machine().ObserveTokens(tokens.Observe)
	return etcdapi.Access{Tokens: tokens, ClientCertAuth: s.config.ClientTLS.RequireClientCert, BcryptCost: s.config.BcryptCost}, nil
}

// admission decides about HTTP requests of clients.
func (s *Server) admission() httpapi.Admission {
	users := s.replica.Machine()
	return httpapi.Admission{
		Origins: s.config.CORS, Hosts: s.config.HostWhitelist, Logger: s.config.Logger,
		NamesUsers: func() bool {
			return s.config.ClientTLS.RequireClientCert && s.config.EnableGRPCGateway && users.Auth().Enabled()
		},
	}
}

func (s *Server) serve(what string, run func() error) {
	s.serving.Add(1)
	go func() {
		defer s.serving.Done()
		if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) {
			select {
			case s.failed <- fmt.Errorf("serve %s: %w", what, err):
			default:
			}
		}
	}()
}

func (s *Server) learner() bool {
	for _, member := range s.replica.Machine().Members() {
		if member.ID == s.replica.Member() {
			return member.Learner
		}
	}
	return false
}

// Ready is closed once the member has joined its cluster.
func (s *Server) Ready() <-chan struct{} { return s.replica.Ready() }

// ClientAddrs are the addresses that clients are served at, in the order of
// ListenClientURLs.
func (s *Server) ClientAddrs() []net.Addr {
	addresses := make([]net.Addr, len(s.clients))
	for i, port := range s.clients {
		addresses[i] = port.Addr()
	}
	return addresses
}

// Replica is the member's place in the cluster.
func (s *Server) Replica() *replica.Replica { return s.replica }

// Wait returns nil when ctx ends, or the error that forces the member to stop.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	case err := <-s.replica.Failed():
		return err
	}
}

// Close stops the member; requests under way get a moment to finish.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	s.stop()
	if s.watches != nil {
		s.watches.Close() // a watch has no end to wait for
	}
	if s.v2 != nil {
		s.v2.Close()
	}
	var errs []error
	for _, port := range s.clients {
		errs = append(errs, port.Close(ctx))
	}
	for _, server := range s.probes {
		errs = append(errs, server.Close())
	}
	if s.grpc != nil {
		stopped := make(chan struct{})
		go func() { s.grpc.GracefulStop(); close(stopped) }()
		select {
		case <-stopped:
		case <-ctx.Done():
			s.grpc.Stop()
		}
	}
	if s.gateway != nil {
		errs = append(errs, s.gateway.Close())
	}
	s.serving.Wait()
	return errors.Join(append(errs, s.replica.Close())...)
}

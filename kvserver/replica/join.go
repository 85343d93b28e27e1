package replica

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"muster/kvserver/membership"
	"muster/kvserver/peerport"
	"muster/kvserver/replica/peerpb"
)

const (
	// joinInterval is how often a running cluster is asked whether it knows the
	// new member, and joinReminder how often the log says what it waits for.
	joinInterval = 500 * time.Millisecond
	joinReminder = 10 * time.Second
	// askTimeout bounds one question to a member.
	askTimeout = 3 * time.Second
)

// errNotYet is returned while a member may still be added.
var errNotYet = errors.New("not a member yet")

// Discover prepares config for a member that joins a running cluster with an
// empty data directory. It waits until the cluster has the member on its list,
// and takes the ids from there. The other members of config.Cluster, which are
// asked, must be those of the running cluster. With data in the directory
// there is nothing to discover.
func Discover(ctx context.Context, config Config) (Config, error) {
	known, err := LoadIdentity(config.Dir)
	if err != nil || known != nil {
		return config, err
	}
	var said time.Time
	for {
		joining, err := discover(ctx, config)
		if !errors.Is(err, errNotYet) {
			return joining, err
		}
		if time.Since(said) > joinReminder {
			said = time.Now()
			config.Logger.Warn("waiting to join the cluster: add this member with `etcdctl member add "+config.Self.Name+" --peer-urls="+strings.Join(config.Self.PeerURLs, ",")+"`, if that has not been done", "reason", err)
		}
		timer := time.NewTimer(joinInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return config, fmt.Errorf("stopped while waiting to join the cluster: %w", err)
		}
	}
}

// discover asks once. A member that is behind may not know of the new one, so
// the first good answer counts.
func discover(ctx context.Context, config Config) (Config, error) {
	var reasons []error
	var final error
	for _, peer := range config.Cluster.Peers {
		if peer.Name == config.Self.Name {
			continue
		}
		response, err := askMembers(ctx, config.ClientTLS, peer.PeerURLs)
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		joining, err := adopt(ctx, config, response)
		switch {
		case err == nil:
			return joining, nil
		case errors.Is(err, membership.ErrNotListed):
			reasons = append(reasons, fmt.Errorf("%s: %w", peer.Name, err))
		default:
			final = err
		}
	}
	if final != nil {
		return config, final
	}
	if len(reasons) == 0 {
		return config, errors.New("--initial-cluster-state existing: --initial-cluster names no other member to ask; give it every member of the running cluster")
	}
	return config, fmt.Errorf("%w: %w", errNotYet, errors.Join(reasons...))
}

func adopt(ctx context.Context, config Config, response *peerpb.MembersResponse) (Config, error) {
	running := make([]membership.Peer, 0, len(response.GetMembers()))
	for _, member := range response.GetMembers() {
		running = append(running, membership.Peer{ID: member.GetId(), Name: member.GetName(), PeerURLs: member.GetPeerUrls()})
	}
	cluster, self, err := config.Cluster.Adopt(ctx, config.Self.Name, response.GetCluster(), running)
	if err != nil {
		return config, err
	}
	for _, member := range response.GetMembers() {
		if member.GetId() == self.ID {
			if err := judgeStarted(member, config.Dir); err != nil {
				return config, err
			}
		}
	}
	config.Cluster, config.Self, config.Join = cluster, self, true
	return config, nil
}

// judgeStarted refuses a member without data that has had some before: it
// would forget its votes and what it acknowledged.
func judgeStarted(member *peerpb.MemberInfo, dir string) error {
	if len(member.GetClientUrls()) == 0 {
		return nil
	}
	id := ID(member.GetId())
	return fmt.Errorf("%w: restore the directory %s, or remove member %s (`etcdctl member remove %s`), add it as a new one (`etcdctl member add`), and start it with --initial-cluster-state existing", ErrWiped, dir, id, id)
}

// askMembers asks whoever listens at one of the peer URLs for the member list.
func askMembers(ctx context.Context, clientTLS *tls.Config, peerURLs []string) (*peerpb.MembersResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///join",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the peer port has done TLS
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialInTurn(ctx, peerURLs, func(ctx context.Context, address string) (net.Conn, error) {
				return peerport.Knock(ctx, clientTLS, address)
			})
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	response, err := peerpb.NewJoiningClient(conn).Members(ctx, &peerpb.MembersRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the member at %s: %s", strings.Join(peerURLs, ", "), status.Convert(err).Message())
	}
	return response, nil
}

func sameURLs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// joiningService answers those who do not know the cluster yet.
type joiningService struct {
	peerpb.UnimplementedJoiningServer
	replica *Replica
}

// Members implements peerpb.JoiningServer.
func (s *joiningService) Members(context.Context, *peerpb.MembersRequest) (*peerpb.MembersResponse, error) {
	m := s.replica.machine
	return &peerpb.MembersResponse{Cluster: s.replica.Cluster(), Members: infosOf(m.Members()), Removed: m.Membership().Removed()}, nil
}

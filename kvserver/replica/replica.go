// Package replica keeps a state machine equal on every member by
// hashicorp/raft, and adds what raft leaves to its user: batching, forwarding
// to the leader, linearizable reads, snapshots without copies, and protection
// against the library's known hazards. DESIGN.md beside this file says why
// each part is as it is.
package replica

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/etcd/pkg/v3/idutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/metrics"
	"muster/kvserver/peerport"
	"muster/kvserver/replica/peerpb"
)

// Outcome is what applying a request produced.
type Outcome = machine.Outcome

var (
	// ErrTooManyRequests is returned when too much waits for the log already.
	ErrTooManyRequests = errors.New("too many requests wait for the raft log")
	// ErrTimeout is returned when a request was not applied here in time. A
	// write may still take effect: its outcome is unknown.
	ErrTimeout = errors.New("request timed out")
	// ErrLeaderLost is the outcome of a request whose leader was lost while it
	// was under way. A write may still have taken effect.
	ErrLeaderLost = errors.New("the leader was lost while the request was under way")
	// ErrNotLeading is returned when a request was not appended because this
	// member does not lead the term it was for.
	ErrNotLeading = errors.New("this member does not lead the term")
	// ErrNoOtherLeader is returned when no leader is known, or this member is it.
	ErrNoOtherLeader = errors.New("there is no other member to ask as the leader")
	// ErrStopped is returned once the member is stopping. A write may still
	// take effect.
	ErrStopped = errors.New("the member is stopping")
	// ErrWiped is returned at start when the cluster already knows this member
	// but its data directory is empty.
	ErrWiped = errors.New("this member took part in the cluster before, and its data directory is empty now")
)

// Config describes one member. All fields but the TLS ones are required.
type Config struct {
	// Dir is the data directory; it is made with mode 0700 when missing.
	Dir string
	// LogDir is where the raft log of a new member goes; empty is in Dir.
	LogDir string
	// files holds the raft log; nil is the operating system's.
	files types.VFS
	// Cluster and Self are the founding members and this one among them.
	Cluster membership.Cluster
	Self    membership.Peer
	// Restore is what the cluster begins with; nil is nothing.
	Restore *Restore
	// Join is set by Discover for a member that joins a running cluster.
	Join bool
	// ForceNewCluster makes this member, which must have data, the only one.
	ForceNewCluster bool
	// StrictReconfig refuses changes of the members that would leave too few
	// that have started or answer.
	StrictReconfig bool
	// MaxLearners is how many learners a member may be added to.
	MaxLearners int
	// ClientURLs are announced to the cluster.
	ClientURLs []string
	// PeerListen are host:port addresses.
	PeerListen           []string
	ServerTLS, ClientTLS *tls.Config
	// CheckAddress judges where a peer's certificate is used from; see peerport.
	CheckAddress func(context.Context, *x509.Certificate, net.Addr) error
	// Sockets opens the peer port's sockets; nil is net.Listen.
	Sockets func(network, address string) (net.Listener, error)
	// ElectionTimeout is how long a member waits for a leader's sign of life,
	// and how long a log write may hang before a leader gives way. At least
	// 50 ms.
	ElectionTimeout time.Duration
	// HastenElection has a lone voter stand for election at once, and a new
	// cluster elect as soon as all its founding members are there, instead of
	// after an election timeout.
	HastenElection bool
	// SnapshotEntries and SnapshotBytes are how much the log grows before a
	// snapshot lets it be cut.
	SnapshotEntries, SnapshotBytes uint64
	// TrailingEntries bounds the log kept below a snapshot for members that are
	// a little behind; 0 is 5000.
	TrailingEntries uint64
	// PeerServices are registered on the peer port, beside the members' own
	// protocol.
	PeerServices []func(grpc.ServiceRegistrar)
	// SlowApply is how long a batch of requests may take to be applied before
	// that is logged and counted; 0 is 100 ms.
	SlowApply time.Duration
	// Metrics is what is counted; nil counts for nobody.
	Metrics *metrics.Replica
	Logger  *slog.Logger
}

// Restore is a state for a cluster to begin with, which must be the same on
// every founding member.
type Restore struct {
	// Snapshot says which state it is; not empty.
	Snapshot string
	// Build makes it in dir, which does not exist, for machine.Install. It is
	// called while the member is founded, after a crash perhaps once more.
	Build func(ctx context.Context, dir string) error
}

// Replica is a running member.
type Replica struct {
	*local
	*engine
	*submitter

	server, joining *grpc.Server
	guard           *guard
	reader          *reader
	pusher          *pusher
	listener        *listener
	members         *reconfigurer

	closing sync.Once
	closed  error
	ready   chan struct{}
}

// removalGrace is how long a removed member goes on, so that the client who
// asked for it gets an answer; etcd's number.
const removalGrace = time.Second

// Start opens the data directory, founds the cluster when the directory is
// new, and takes part in it. It returns before a leader is known; see Ready.
func Start(config Config) (*Replica, error) {
	if config.Metrics == nil {
		config.Metrics = metrics.NewReplica(nil)
	}
	if config.TrailingEntries == 0 {
		config.TrailingEntries = trailingEntries
	}
	if config.SlowApply == 0 {
		config.SlowApply = 100 * time.Millisecond
	}
	own := &local{config: config, logger: config.Logger, failed: make(chan error, 1), waiters: newWaiters()}
	own.ctx, own.stop = context.WithCancel(context.Background())
	own.progress = &progress{stopped: own.ctx.Done()}
	guard := &guard{local: own}
	r := &Replica{
		local:  own,
		engine: &engine{local: own, replace: make(chan struct{}, 1), membersChanged: guard.membersChanged},
		guard:  guard,
		ready:  make(chan struct{}),
	}
	guard.servers = func() ([]raft.Server, error) { return serversOf(r.currentRaft()) }
	if err := r.open(); err != nil {
		r.stop()
		r.stopServers()
		return nil, errors.Join(err, own.close())
	}
	r.launch()
	return r, nil
}

// open does everything that can fail.
func (r *Replica) open() error {
	if err := os.MkdirAll(r.config.Dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	identity, err := identify(r.config)
	if err != nil {
		return err
	}
	r.identity = identity
	r.leadership = newLeadership(r.Member())
	r.leadership.onNew = r.config.Metrics.LeaderChanges.Inc
	if r.machine, err = machine.Open(filepath.Join(r.config.Dir, "kv"), machine.Options{Logger: r.logger, OnFatal: r.fail, Operations: r.config.Metrics.Operations}); err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	if r.identity.Founded && len(r.machine.Members()) == 0 {
		return lost(r.config.Dir, "store")
	}
	logDir, err := openLogDir(r.config.Dir, r.config.LogDir)
	if err != nil {
		return err
	}
	if r.log, err = openLog(logDir, r.config.files, hashicorpLogger("log", r.logger), r.fail); err != nil {
		return err
	}
	r.log.onWrite = func(bytes int, took time.Duration) {
		r.config.Metrics.FsyncSeconds.Observe(took.Seconds())
		r.config.Metrics.LogBytes.Add(float64(bytes))
	}
	if r.snapshots, err = openSnapshots(filepath.Join(r.config.Dir, "snapshots"), r.machine, r.logger); err != nil {
		return err
	}
	r.snapshots.onReceive = func(took time.Duration) { r.config.Metrics.SnapshotSeconds.Observe(took.Seconds()) }
	if err := r.snapshots.finish(); err != nil {
		return err
	}
	if r.port, err = peerport.Listen(r.config.PeerListen, peerport.Config{
		Cluster: uint64(r.identity.Cluster), Member: r.Member(),
		ServerTLS: r.config.ServerTLS, ClientTLS: r.config.ClientTLS, CheckAddress: r.config.CheckAddress,
		Authorize: r.guard.authorize, Removed: r.guard.isRemoved, OnRemoved: r.guard.leave, Traffic: r.config.Metrics.Peers.Traffic, Sockets: r.config.Sockets, Logger: r.logger,
	}); err != nil {
		return err
	}
	r.transport = newTransport(r.port, r.Member(), r.config.Metrics, hashicorpLogger("raft-net", r.logger), r.stalled, r.log.awaitDurable)
	r.transport.stopped, r.transport.current = r.ctx.Done(), r.isCurrent
	r.peers = newPeers(r.port)
	if r.guard.isRemoved(r.Member()) {
		return r.guard.removedError()
	}
	// Before the founding, so that those who found with this member are told
	// that it is as new as they are.
	r.joining = grpc.NewServer(grpc.MaxSendMsgSize(maxPeerMessage))
	peerpb.RegisterJoiningServer(r.joining, &joiningService{replica: r})
	r.serve(r.joining, peerport.Join)
	founder := &founder{r.ctx, r.config, &r.identity, r.machine, r.log, r.snapshots, r.logger}
	if err := founder.found(); err != nil {
		return err
	}
	if r.config.ForceNewCluster {
		if err := (&forcer{r.local}).force(); err != nil {
			return err
		}
	}
	applied, _ := r.machine.Applied()
	r.progress.advance(applied)
	r.wire()
	return r.startRaft()
}

// wire connects the parts that work in the background.
func (r *Replica) wire() {
	r.pusher = &pusher{
		self: r.Member(), transport: once{r.transport}, leadership: r.leadership, locate: r.locate, others: r.others,
		ctx: r.ctx, pending: map[uint64]uint64{}, heard: map[uint64]uint64{},
	}
	r.transport.told = r.pusher.told
	r.listener = newListener(func() uint64 { return r.currentRaft().CommitIndex() }, r.transport.incoming)
	proposer := newProposer(&proposer{
		self: r.Member(), raft: r.currentRaft, leadership: r.leadership,
		forwarder: &forwarder{leadership: r.leadership, peers: r.peers, locate: r.locate, hear: r.listener.hear},
		announce:  r.pusher.announce, metrics: r.config.Metrics,
	})
	r.submitter = &submitter{
		local: r.local, proposer: proposer,
		ids: idutil.NewGenerator(uint16(r.Member()&0xffff), time.Now()), //nolint:gosec // the low bits are wanted
	}
	r.members = &reconfigurer{
		self: r.Member(), strict: r.config.StrictReconfig, learners: r.config.MaxLearners,
		raft: r.currentRaft, machine: r.machine, leadership: r.leadership, leading: r.Leading,
		progress: r.progress, peers: r.peers, pusher: r.pusher,
		patience: r.config.ElectionTimeout, logger: r.logger, turn: make(chan struct{}, 1),
	}
	r.reader = newReader(&reader{
		self: r.Member(), raft: r.currentRaft, leadership: r.leadership, peers: r.peers,
		voters: r.voters, push: r.pusher.push, roundTimeout: r.config.ElectionTimeout, stopped: r.ctx.Done(),
		rounds: r.config.Metrics.ReadRounds,
	})
	r.server = grpc.NewServer(grpc.MaxRecvMsgSize(maxPeerMessage), grpc.MaxSendMsgSize(maxPeerMessage),
		grpc.StaticStreamWindowSize(peerWindow), grpc.StaticConnWindowSize(peerWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: peerPing / 2, PermitWithoutStream: true}))
	peerpb.RegisterPeerServer(r.server, &peerService{replica: r})
	for _, register := range r.config.PeerServices {
		register(r.server)
	}
}

// launch starts the background work.
func (r *Replica) launch() {
	prober := &prober{self: r.Member(), members: r.machine.Members, peers: r.peers, metrics: &r.config.Metrics.Peers}
	upkeep := &upkeep{r.engine}
	announcer := &announcer{r}
	convener := &convener{r.engine, r.peers}
	for _, task := range []func(context.Context){
		r.proposer.run, r.reader.run, r.listener.run, r.members.admitVoters, announcer.run, r.replaceOnDemand, prober.run, convener.run,
		upkeep.keepSnapshots, upkeep.scrub, upkeep.watchLog, r.guard.askAround,
	} {
		r.do(task)
	}
	r.serve(r.server, peerport.RPC)
}

// Reconfigure changes the members and returns what they are then, once this
// member knows it. The error is one of the reasons of this package why a change
// is refused, ErrTimeout or ErrLeaderLost when the outcome is unknown, or
// ErrStopped.
func (r *Replica) Reconfigure(ctx context.Context, change Change) (Changed, error) {
	return r.members.do(ctx, change)
}

// MoveLeader gives this member's lead to another one and returns once that
// leads. The error is ErrNotLeading, ErrBadTransferee or ErrTransferTimeout.
func (r *Replica) MoveLeader(ctx context.Context, to uint64) error {
	return r.members.move(ctx, to)
}

// Propose replicates the request and returns its outcome once it is applied on
// this member. It fills in the ID of the request's header. An error leaves the outcome
// unknown, except ErrTooManyRequests.
func (r *Replica) Propose(ctx context.Context, request *pb.InternalRaftRequest) (Outcome, error) {
	return r.submit(ctx, 0, request)
}

// ProposeLeading is Propose for what only the leader of the term may ask: the
// request is appended while this member leads the term, or not at all. The
// error is ErrNotLeading when it was certainly not appended.
func (r *Replica) ProposeLeading(ctx context.Context, term uint64, request *pb.InternalRaftRequest) (Outcome, error) {
	return r.submit(ctx, term, request)
}

// Leading returns the term this member leads, once it has applied an entry of
// that term; ok is false when it does not lead. It is this member's own view:
// Linearize proves it.
func (r *Replica) Leading() (term uint64, ok bool) {
	term = r.leadership.led()
	return term, r.leadership.current() == r.Member() && r.currentRaft().CurrentTerm() == term
}

// LeaderConn returns a connection to the leader's peer port, for the services
// of Config.PeerServices. The error can be ErrNoOtherLeader.
func (r *Replica) LeaderConn(ctx context.Context) (grpc.ClientConnInterface, error) {
	leader := r.leadership.current()
	if leader == 0 || leader == r.Member() {
		return nil, ErrNoOtherLeader
	}
	return r.MemberConn(ctx, leader)
}

// MemberConn returns a connection to the peer port of another member, for the
// services of Config.PeerServices.
func (r *Replica) MemberConn(ctx context.Context, member uint64) (grpc.ClientConnInterface, error) {
	at, err := r.locate(member)
	if err != nil {
		return nil, err
	}
	return r.peers.readyConn(ctx, member, at.peerURLs)
}

// Linearize returns once this member has applied every write that any member
// acknowledged before the call: a read of the state machine is then
// linearizable. It waits until the member is ready: a client that was answered
// once finds this member's name on the member list, as it does with etcd, which
// serves nobody before.
func (r *Replica) Linearize(ctx context.Context) error {
	select {
	case <-r.ready:
		return r.linearize(ctx)
	case <-ctx.Done():
		return timeoutOf(ctx)
	case <-r.ctx.Done():
		return ErrStopped
	}
}

func (r *Replica) linearize(ctx context.Context) error {
	began := time.Now()
	index, err := r.reader.index(ctx)
	if time.Since(began) > metrics.SlowRead {
		r.config.Metrics.SlowReads.Inc()
	}
	if err != nil {
		r.config.Metrics.FailedReads.Inc()
	}
	if err == nil {
		err = r.progress.wait(ctx, index)
	}
	if err != nil && ctx.Err() != nil {
		return timeoutOf(ctx)
	}
	return err
}

func timeoutOf(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return ErrTimeout
}

// NextID returns a number that is unique in the cluster.
func (r *Replica) NextID() uint64 { return r.ids.Next() }

// Machine is the state machine; reading it directly is serializable only.
func (r *Replica) Machine() *machine.Machine { return r.machine }

// Ready is closed once this member has announced itself to a leader and has
// caught up with everything committed before that.
func (r *Replica) Ready() <-chan struct{} { return r.ready }

// Failed yields the error that forces this member to stop. Nothing is
// acknowledged after it.
func (r *Replica) Failed() <-chan error { return r.failed }

// Close hands leadership on when this member leads, and stops. After a failed
// log write it stops answering but leaves the files open, since raft never
// returns from that; the process has to end.
func (r *Replica) Close() error {
	r.closing.Do(func() {
		r.closed = r.shutDown()
		r.stopServers()
		if errors.Is(r.closed, errLogFailed) {
			r.closed = errors.Join(r.closed, r.peers.close(), r.transport.shut(), r.port.Close())
			return
		}
		r.tasks.Wait()
		r.pusher.close()
		r.closed = errors.Join(r.closed, r.local.close())
	})
	return r.closed
}

func (r *Replica) stopServers() {
	for _, server := range []*grpc.Server{r.server, r.joining} {
		if server != nil {
			server.Stop()
		}
	}
}

// LogEntries is how many entries of the raft log are kept.
func (r *Replica) LogEntries() uint64 { return r.log.length() }

// Status is a member's view of the cluster at one moment.
type Status struct {
	Term uint64
	// Leader is 0 while none is known.
	Leader uint64
	// Committed and Applied are raft log indexes.
	Committed, Applied uint64
}

// Status returns this member's present view.
func (r *Replica) Status() Status {
	instance := r.currentRaft()
	applied, _ := r.machine.Applied()
	return Status{
		Term:      instance.CurrentTerm(),
		Leader:    r.leadership.current(),
		Committed: instance.CommitIndex(),
		Applied:   applied,
	}
}

package replica

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"muster/kvserver/metrics"
	"muster/kvserver/peerport"
)

// errStalled is what followers' replication sees on a leader whose disk hangs.
var errStalled = errors.New("the local raft log write is stalled; not acting as leader")

// transport is raft's network transport with six changes.
//
// SetHeartbeatHandler is not forwarded: the handler would run on the
// transport's goroutine and change term and state under raft's main goroutine,
// which lets committed logs diverge when a member stalls
// (hashicorp/raft#695). Heartbeats take the ordinary way instead and may queue
// behind a disk write.
//
// While the local log write hangs, nothing is sent as a leader: raft's
// heartbeats do not depend on the disk, so a leader that can no longer commit
// would otherwise hold its place forever.
//
// A member calls itself by its id, not by the address that it listens on. That
// may be the same for all, as 0.0.0.0:2380 is, and raft takes candidates with
// the same address for one: it would vote for both of them.
//
// What a leader sends to a member that is down is sent again until it arrives
// or is out of date. raft itself waits twice as long after every failure, and
// would leave a member that comes back, or joins, alone for ten seconds.
//
// A follower's answer is shown to raft only when what it answers for is synced
// here, too; see lateSync.
//
// This member may say something to its own raft; see listener.
type transport struct {
	*raft.NetworkTransport
	self    raft.ServerID
	stalled func() bool
	durable func(index uint64) error // returns once the local log has synced up to there
	metrics *metrics.Replica
	// current tells whether what this member sends as the leader of the term
	// may still be of use to the member at the address.
	current func(term uint64, id raft.ServerID, address raft.ServerAddress) bool
	stopped <-chan struct{}
	// told, unless nil, is what a member is told of commits.
	told     func(member, index uint64)
	incoming chan raft.RPC
	closed   chan struct{}
	shutting sync.Once
}

// resendInterval is how often a member that is down is tried.
const resendInterval = 200 * time.Millisecond

func newTransport(port *peerport.Port, self uint64, counts *metrics.Replica, logger hclog.Logger, stalled func() bool, durable func(uint64) error) *transport {
	layer := &streamLayer{Listener: port.Listener(peerport.Raft), port: port}
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:  layer,
			MaxPool: 4,
			Timeout: 10 * time.Second,
			Logger:  logger,
		}),
		self:     serverID(self),
		stalled:  stalled,
		durable:  durable,
		metrics:  counts,
		current:  func(uint64, raft.ServerID, raft.ServerAddress) bool { return false },
		incoming: make(chan raft.RPC),
		closed:   make(chan struct{}),
	}
	go t.receive()
	return t
}

// receive passes on what other members send.
func (t *transport) receive() {
	for {
		select {
		case rpc := <-t.NetworkTransport.Consumer():
			if _, isAppend := rpc.Command.(*raft.AppendEntriesRequest); isAppend {
				t.metrics.Appends.Received.Add(1)
			}
			select {
			case t.incoming <- rpc:
			case <-t.closed:
				return
			}
		case <-t.closed:
			return
		}
	}
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.incoming }

// LocalAddr implements raft.Transport; see the type.
func (t *transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.self) }

// EncodePeer implements raft.Transport; see the type.
func (t *transport) EncodePeer(id raft.ServerID, _ raft.ServerAddress) []byte { return []byte(id) }

// SetHeartbeatHandler implements raft.Transport; see the type.
func (t *transport) SetHeartbeatHandler(handle func(raft.RPC)) {
	if !heartbeatsThroughMainLoop {
		t.NetworkTransport.SetHeartbeatHandler(handle)
	}
}

// Close does nothing, so that a raft instance can be replaced by another one
// on the same transport; shut closes it.
func (t *transport) Close() error { return nil }

func (t *transport) shut() error {
	t.shutting.Do(func() { close(t.closed) })
	return t.NetworkTransport.Close()
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	// Those without a place in the log are signs of life, which raft sends
	// beside the entries and tries often enough.
	sign := args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
	for {
		err := t.appendOnce(id, target, args, resp)
		if err == nil || sign || !t.current(args.Term, id, target) {
			return err
		}
		timer := time.NewTimer(resendInterval)
		select {
		case <-timer.C:
		case <-t.stopped:
			timer.Stop()
			return err
		}
	}
}

func (t *transport) appendOnce(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if t.stalled() {
		if len(args.Entries) == 0 {
			t.metrics.HeartbeatFailures.Inc()
		}
		return errStalled
	}
	t.metrics.Appends.Sent.Add(1)
	err := t.NetworkTransport.AppendEntries(id, route(id, target), args, resp)
	if member, unnamed := memberID(id); err != nil && unnamed == nil {
		t.metrics.Peers.Failed(member)
	}
	if err != nil {
		return err
	}
	if resp.Success {
		t.tell(id, args)
	}
	return awaitEntries(args, t.durable)
}

// tell notes that a member was sent what is committed.
func (t *transport) tell(id raft.ServerID, args *raft.AppendEntriesRequest) {
	if member, err := memberID(id); err == nil && t.told != nil {
		t.told(member, args.LeaderCommitIndex)
	}
}

// once is the transport for what is of use at once or not at all.
type once struct{ *transport }

// AppendEntries implements raft.Transport.
func (o once) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return o.appendOnce(id, target, args, resp)
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	pipeline, err := t.NetworkTransport.AppendEntriesPipeline(id, route(id, target))
	if err != nil {
		return nil, err
	}
	return holdPipeline(pipeline, t.stalled, t.durable, func(args *raft.AppendEntriesRequest) {
		t.metrics.Appends.Sent.Add(1)
		t.tell(id, args)
	}), nil
}

// InstallSnapshot implements raft.Transport.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if t.stalled() {
		return errStalled
	}
	member, err := memberID(id)
	if err != nil {
		return err
	}
	done := t.metrics.Peers.SendingSnapshot(member)
	err = t.NetworkTransport.InstallSnapshot(id, route(id, target), args, resp, data)
	done(err)
	return err
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, route(id, target), args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, route(id, target), args, resp)
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, route(id, target), args, resp)
}

// streamLayer dials raft connections through the peer port.
type streamLayer struct {
	net.Listener
	port *peerport.Port
}

func (s *streamLayer) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	member, at, err := parseRoute(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return dialInTurn(ctx, at.peerURLs, func(ctx context.Context, address string) (net.Conn, error) {
		return s.port.Dial(ctx, peerport.Raft, address, member)
	})
}

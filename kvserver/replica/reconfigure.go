package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/replica/peerpb"
)

// Action is what a Change does.
type Action int

// The actions.
const (
	AddMember Action = iota + 1
	PromoteMember
	RemoveMember
	UpdateMember
	// admitMember lets a voter vote that was added and has caught up.
	admitMember
)

func (a Action) String() string {
	switch a {
	case AddMember:
		return "add"
	case PromoteMember:
		return "promote"
	case RemoveMember:
		return "remove"
	case UpdateMember:
		return "update"
	case admitMember:
		return "let vote"
	default:
		return "unknown"
	}
}

// Change is one change of the members.
type Change struct {
	Action Action
	// Member is whom it is about; 0 for one that is added.
	Member uint64
	// PeerURLs of a member that is updated, or of one that is added, as
	// membership.CheckPeerURLs returns them.
	PeerURLs []string
	// Learner is whether an added member is one.
	Learner bool
}

// Changed is what became of a Change.
type Changed struct {
	// Member is whom it was about.
	Member uint64
	// Members after the change, by id.
	Members []machine.Member

	index uint64
}

// reconfigurer changes the members. Everything is decided by the leader, one
// change after the other: each is judged by the configuration that it replaces,
// and raft refuses it when there is a newer one.
type reconfigurer struct {
	self       uint64
	strict     bool // judge by who has started and who answers
	learners   int  // how many are allowed
	raft       func() *raft.Raft
	machine    *machine.Machine
	leadership *leadership
	leading    func() (term uint64, ok bool)
	progress   *progress
	peers      *peers
	pusher     *pusher
	patience   time.Duration // for one answer of another member
	logger     *slog.Logger

	turn chan struct{} // holds one while a change is under way here
}

// votingLag is how many entries behind a voter may be that begins to vote.
const votingLag = 256

// do has the leader carry out the change and waits until it is applied here.
func (c *reconfigurer) do(ctx context.Context, change Change) (Changed, error) {
	for {
		var changed Changed
		var err error
		switch leader := c.leadership.current(); leader {
		case 0:
			err = errNotLeader
		case c.self:
			changed, err = c.lead(ctx, change)
		default:
			changed, err = c.ask(ctx, leader, change)
		}
		if err == nil {
			return changed, c.follow(ctx, change, changed)
		}
		if !errors.Is(err, errNotLeader) {
			return changed, err
		}
		c.leadership.changeOr(ctx, idleRetry)
		if ctx.Err() != nil {
			return changed, timeoutOf(ctx)
		}
	}
}

// follow waits until this member has applied what the leader has. One that is
// removed itself may never hear of it.
func (c *reconfigurer) follow(ctx context.Context, change Change, changed Changed) error {
	waiting := ctx
	own := change.Action == RemoveMember && change.Member == c.self
	if own {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, c.patience)
		defer cancel()
	}
	err := c.progress.wait(waiting, changed.index)
	switch {
	case err == nil || own:
		return nil
	case ctx.Err() != nil:
		return timeoutOf(ctx)
	}
	return err
}

// ask has the leader do it. An error other than errNotLeader, or one of the
// reasons, leaves the outcome unknown.
func (c *reconfigurer) ask(ctx context.Context, leader uint64, change Change) (Changed, error) {
	at, err := locate(c.raft(), leader)
	if err != nil {
		return Changed{}, errNotLeader //nolint:nilerr // not known yet
	}
	calling, cancel := c.leadership.while(ctx, leader)
	defer cancel()
	client, err := c.peers.ready(calling, leader, at.peerURLs)
	if err != nil {
		return Changed{}, errNotLeader //nolint:nilerr // nothing was sent
	}
	response, err := client.Reconfigure(calling, &peerpb.ReconfigureRequest{
		Change: peerpb.ReconfigureRequest_Change(change.Action), Member: change.Member, //nolint:gosec // one of the actions
		PeerUrls: change.PeerURLs, Learner: change.Learner, Origin: c.self,
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return Changed{}, timeoutOf(ctx)
	case err != nil:
		return Changed{}, fmt.Errorf("%w: %w", ErrLeaderLost, err)
	case response.GetRefusal() != peerpb.ReconfigureResponse_NONE:
		return Changed{}, refusalError(response.GetRefusal())
	}
	return Changed{Member: response.GetMember(), Members: membersOfInfos(response.GetMembers()), index: response.GetIndex()}, nil
}

// lead carries out a change on the leader. errNotLeader means that nothing was
// changed.
func (c *reconfigurer) lead(ctx context.Context, change Change) (Changed, error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return Changed{}, timeoutOf(ctx)
	}
	defer func() { <-c.turn }()
	for {
		if _, leading := c.leading(); !leading {
			return Changed{}, errNotLeader
		}
		// The index first: a newer list with an older index is refused by raft.
		version := c.machine.Membership().Index()
		server, err := c.judge(ctx, &change)
		if err != nil {
			return Changed{}, err
		}
		if change.Action == RemoveMember && change.Member == c.self && c.handOver() {
			return Changed{}, errNotLeader // the next leader removes this one
		}
		index, err := c.propose(ctx, change, server, version)
		if errors.Is(err, errSuperseded) {
			c.leadership.changeOr(ctx, idleRetry)
			if ctx.Err() == nil {
				continue
			}
			err = timeoutOf(ctx)
		}
		if err != nil {
			return Changed{}, err
		}
		if err := c.progress.wait(ctx, index); err != nil {
			return Changed{}, timeoutOf(ctx)
		}
		c.logger.Info("changed the members", "change", change.Action.String(), "member", ID(change.Member), "index", index)
		if at, err := placeOf(server.Address); err == nil && change.Action == RemoveMember && change.Member != c.self {
			c.pusher.farewell(change.Member, at, index)
		}
		return Changed{Member: change.Member, Members: c.machine.Members(), index: index}, nil
	}
}

// errSuperseded is returned when another change came first.
var errSuperseded = errors.New("the members have changed meanwhile")

// propose puts the change into the log and waits until it is committed. server
// is what the configuration is to say, or has said, of the member.
func (c *reconfigurer) propose(ctx context.Context, change Change, server raft.Server, version uint64) (uint64, error) {
	instance := c.raft()
	var future raft.IndexFuture
	switch {
	case change.Action == RemoveMember:
		future = instance.RemoveServer(server.ID, version, c.patience)
	case server.Suffrage == raft.Voter:
		future = instance.AddVoter(server.ID, server.Address, version, c.patience)
	default:
		future = instance.AddNonvoter(server.ID, server.Address, version, c.patience)
	}
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return 0, timeoutOf(ctx)
	}
	switch {
	case err == nil:
		return future.Index(), nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return 0, errNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout), strings.HasPrefix(err.Error(), "configuration changed since"):
		return 0, errSuperseded
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return 0, fmt.Errorf("%w: %w", ErrLeaderLost, err)
	default: // the configuration would have no voter
		return 0, fmt.Errorf("%w: %w", ErrNotEnoughStarted, err)
	}
}

// handOver gives the lead to another member, and tells whether it has.
func (c *reconfigurer) handOver() bool {
	return c.raft().LeadershipTransfer().Error() == nil
}

// admitVoters lets those vote, while this member leads, that were added as
// voters and have caught up.
func (c *reconfigurer) admitVoters(ctx context.Context) {
	for tick(ctx, upkeepInterval) {
		if _, leading := c.leading(); !leading {
			continue
		}
		servers, err := serversOf(c.raft())
		if err != nil {
			continue
		}
		for _, server := range servers {
			member, err := memberID(server.ID)
			if err != nil || !waitsToVote(server) {
				continue
			}
			if far, ok := c.farOf(ctx, server); !ok || far.applied+votingLag < c.raft().CommitIndex() {
				continue
			}
			attempt, cancel := context.WithTimeout(ctx, forwardTimeout)
			if _, err := c.lead(attempt, Change{Action: admitMember, Member: member}); err != nil && ctx.Err() == nil {
				c.logger.Info("an added member cannot vote yet", "member", ID(member), "error", err)
			}
			cancel()
		}
	}
}

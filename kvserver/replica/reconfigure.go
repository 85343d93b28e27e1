package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/replica/peerpb"
)

// Why a change of the members is refused. The cases are etcd's.
var (
	// ErrMemberExists is returned when the added member's id is a member's.
	ErrMemberExists = errors.New("the member exists")
	// ErrPeerURLExists is returned when a peer URL is another member's.
	ErrPeerURLExists = errors.New("the peer URL is another member's")
	// ErrMemberNotFound is returned when the member does not exist.
	ErrMemberNotFound = machine.ErrMemberNotFound
	// ErrNotLearner is returned when the member to promote is no learner.
	ErrNotLearner = errors.New("the member is no learner")
	// ErrLearnerNotReady is returned when the learner to promote is behind.
	ErrLearnerNotReady = errors.New("the learner is behind the leader")
	// ErrTooManyLearners is returned when there are as many learners as allowed.
	ErrTooManyLearners = errors.New("there are too many learners")
	// ErrNotEnoughStarted is returned when too few members would have been
	// started for a quorum after the change.
	ErrNotEnoughStarted = errors.New("too few members have started")
	// ErrUnhealthy is returned when the leader does not reach as many members
	// as the change needs.
	ErrUnhealthy = errors.New("too few members answer")
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

// readyPercent is how much of the leader's log a learner has to have; etcd's
// number.
const readyPercent = 0.9

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

// judge decides about a change as etcd does, and returns what raft's
// configuration is to say of the member. It completes the id of a new one.
func (c *reconfigurer) judge(ctx context.Context, change *Change) (raft.Server, error) {
	members := c.machine.Members()
	servers, err := serversOf(c.raft())
	if err != nil {
		return raft.Server{}, err
	}
	switch change.Action {
	case AddMember:
		return c.judgeAdded(ctx, change, members)
	case RemoveMember:
		if err := c.judgeRemoved(ctx, change.Member, members); err != nil {
			return raft.Server{}, err
		}
	case PromoteMember:
		if err := c.judgePromoted(ctx, change.Member, members, servers); err != nil {
			return raft.Server{}, err
		}
	case UpdateMember, admitMember:
	default:
		return raft.Server{}, fmt.Errorf("there is no change number %d", change.Action)
	}
	server, found := find(servers, change.Member)
	if !found {
		return server, ErrMemberNotFound
	}
	at, err := placeOf(server.Address)
	if err != nil {
		return server, err
	}
	switch change.Action {
	case UpdateMember:
		if _, err := membership.CheckPeerURLs(change.PeerURLs); err != nil {
			return server, err
		}
		if urlTaken(members, change.Member, change.PeerURLs) {
			return server, ErrPeerURLExists
		}
		at.peerURLs = change.PeerURLs
	case PromoteMember:
		at.learner, server.Suffrage = false, raft.Voter
	case admitMember:
		if !waitsToVote(server) {
			return server, ErrMemberNotFound // it was removed meanwhile
		}
		server.Suffrage = raft.Voter
	}
	server.Address = at.address()
	return server, nil
}

func (c *reconfigurer) judgeAdded(ctx context.Context, change *Change, members []machine.Member) (raft.Server, error) {
	voting := voters(members)
	if c.strict {
		if !change.Learner && !enoughToAdd(voting) {
			return raft.Server{}, ErrNotEnoughStarted
		}
		if len(voting) > 1 && c.answering(ctx, voting) < quorum(len(voting)+1) {
			return raft.Server{}, ErrUnhealthy
		}
	}
	// The ids of former members stay theirs.
	now := time.Now()
	change.Member = membership.AddedMemberID(change.PeerURLs, now)
	for slices.Contains(c.machine.Membership().Removed(), change.Member) {
		now = now.Add(time.Second)
		change.Member = membership.AddedMemberID(change.PeerURLs, now)
	}
	switch {
	case slices.ContainsFunc(members, func(m machine.Member) bool { return m.ID == change.Member }):
		return raft.Server{}, ErrMemberExists
	case urlTaken(members, change.Member, change.PeerURLs):
		return raft.Server{}, ErrPeerURLExists
	case change.Learner && len(members)-len(voting) >= c.learners:
		return raft.Server{}, ErrTooManyLearners
	}
	return raft.Server{
		Suffrage: raft.Nonvoter, ID: serverID(change.Member),
		Address: place{learner: change.Learner, peerURLs: change.PeerURLs}.address(),
	}, nil
}

func (c *reconfigurer) judgeRemoved(ctx context.Context, id uint64, members []machine.Member) error {
	voting := voters(members)
	if !c.strict || slices.ContainsFunc(members, func(m machine.Member) bool { return m.ID == id && m.Learner }) {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(voting), func(m machine.Member) bool { return m.ID == id })
	if started(rest) < quorum(len(rest)) {
		return ErrNotEnoughStarted
	}
	if len(rest) == len(voting) {
		return nil // no such member
	}
	leaving := slices.DeleteFunc(voting, func(m machine.Member) bool { return m.ID != id })
	if c.answering(ctx, leaving) == 0 {
		return nil // nobody counts on it
	}
	if c.answering(ctx, rest) < quorum(len(rest)) {
		return ErrUnhealthy
	}
	return nil
}

// judgePromoted finds the errors in the order in which etcd does.
func (c *reconfigurer) judgePromoted(ctx context.Context, id uint64, members []machine.Member, servers []raft.Server) error {
	i := slices.IndexFunc(members, func(m machine.Member) bool { return m.ID == id })
	if i < 0 {
		return ErrMemberNotFound
	}
	server, _ := find(servers, id)
	if far, ok := c.farOf(ctx, server); !ok || float64(far.logged) < readyPercent*float64(c.raft().LastIndex()) {
		return ErrLearnerNotReady
	}
	if voting := voters(members); c.strict && started(voting)+1 < quorum(len(voting)+1) {
		return ErrNotEnoughStarted
	}
	if !members[i].Learner {
		return ErrNotLearner
	}
	return nil
}

// answering counts those of the members that answer now, this one included.
func (c *reconfigurer) answering(ctx context.Context, members []machine.Member) int {
	answers := make(chan bool, len(members))
	for _, member := range members {
		if member.ID == c.self {
			answers <- true
			continue
		}
		go func() {
			_, ok := c.farOf(ctx, raft.Server{ID: serverID(member.ID), Address: place{peerURLs: member.PeerURLs}.address()})
			answers <- ok
		}()
	}
	n := 0
	for range members {
		if <-answers {
			n++
		}
	}
	return n
}

// far is how far a member is: what its log has, and what is applied of it.
type far struct{ logged, applied uint64 }

// farOf asks a member how far it is; ok is false when it does not answer.
func (c *reconfigurer) farOf(ctx context.Context, server raft.Server) (_ far, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	member, err := memberID(server.ID)
	if err != nil {
		return far{}, false
	}
	if member == c.self {
		applied, _ := c.machine.Applied()
		return far{logged: c.raft().LastIndex(), applied: applied}, true
	}
	at, err := placeOf(server.Address)
	if err != nil {
		return far{}, false
	}
	client, err := c.peers.ready(ctx, member, at.peerURLs)
	if err != nil {
		return far{}, false
	}
	response, err := client.Term(ctx, &peerpb.TermRequest{})
	return far{response.GetLogged(), response.GetApplied()}, err == nil
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

func voters(members []machine.Member) []machine.Member {
	return slices.DeleteFunc(slices.Clone(members), func(m machine.Member) bool { return m.Learner })
}

// started counts the members that have been started once: they have a name.
func started(members []machine.Member) int {
	n := 0
	for _, member := range members {
		if member.Name != "" {
			n++
		}
	}
	return n
}

func quorum(members int) int { return members/2 + 1 }

// enoughToAdd is etcd's rule: with the new member, which counts as not
// started, there is still a quorum, or there is one member only.
func enoughToAdd(voting []machine.Member) bool {
	n := started(voting)
	return n == 1 && len(voting) == 1 || n >= quorum(len(voting)+1)
}

func urlTaken(members []machine.Member, by uint64, peerURLs []string) bool {
	return slices.ContainsFunc(members, func(m machine.Member) bool {
		return m.ID != by && slices.ContainsFunc(m.PeerURLs, func(u string) bool { return slices.Contains(peerURLs, u) })
	})
}

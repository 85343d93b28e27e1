package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// readyPercent is how much of the leader's log a learner has to have; etcd's
// number.
const readyPercent = 0.9

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

package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"muster/kvserver/machine"
	"muster/kvserver/peerport"
	"muster/kvserver/replica/peerpb"
)

func (r *Replica) isRemoved(member uint64) bool {
	_, found := slices.BinarySearch(r.machine.Membership().Removed(), member)
	return found
}

func (r *Replica) removedError() error { return removedError(r.config.Dir, r.identity.Member) }

func removedError(dir string, member ID) error {
	return fmt.Errorf("%w: member %s does not start again with the data in %s; to use this machine in the cluster, remove that directory, add a new member with `etcdctl member add`, and start it with --initial-cluster-state existing", peerport.ErrRemoved, member, dir)
}

// membersChanged follows the member list: those who were removed are cut off,
// and this member stops when it is one of them.
func (r *Replica) membersChanged() {
	if !r.identity.Founded && len(r.machine.Members()) > 0 {
		// From here on there is something to lose.
		r.mark(func(i *Identity) { i.Founded = true })
	}
	if r.isRemoved(r.Member()) {
		r.leave()
	}
	removed := r.machine.Membership().Removed()
	if len(removed) == r.cutOff {
		return
	}
	r.cutOff = len(removed)
	// A moment later: one of them may have asked for it and wait for the answer.
	time.AfterFunc(removalGrace, func() {
		for _, member := range removed {
			r.port.Expel(member)
			r.peers.forget(member)
		}
	})
}

// mark changes what the data directory says of itself.
func (r *Replica) mark(change func(*Identity)) {
	r.marking.Lock()
	defer r.marking.Unlock()
	change(&r.identity)
	if err := r.identity.save(r.config.Dir); err != nil {
		r.fail(err)
	}
}

// leave stops this member, which is none any more, after a moment.
func (r *Replica) leave() {
	r.removal.Do(func() {
		err := r.removedError()
		r.logger.Error("stopping", "error", err)
		r.mark(func(i *Identity) { i.Removed = true })
		time.AfterFunc(removalGrace, func() { r.fail(err) })
	})
}

// askWhetherRemoved asks the other members for a sign of life while there is
// no leader: one who was removed while it was down is told so by whoever it
// connects to.
func (r *Replica) askWhetherRemoved(ctx context.Context) {
	for tick(ctx, 2*r.config.ElectionTimeout) {
		if r.leadership.current() != 0 {
			continue
		}
		for _, member := range r.machine.Members() {
			if member.ID == r.Member() {
				continue
			}
			if client, err := r.peers.client(member.ID, member.PeerURLs); err == nil {
				attempt, cancel := context.WithTimeout(ctx, r.config.ElectionTimeout)
				_, _ = client.Term(attempt, &peerpb.TermRequest{}) // to connect is what matters
				cancel()
			}
		}
	}
}

// knownMembers are the members, or while this member does not know them those
// it is to found the cluster with, or to join.
func (r *Replica) knownMembers() []machine.Member {
	if members := r.machine.Members(); len(members) > 0 {
		return members
	}
	var members []machine.Member
	for _, peer := range r.config.Cluster.Peers {
		members = append(members, machine.Member{ID: peer.ID, Name: peer.Name, PeerURLs: peer.PeerURLs})
	}
	return members
}

func (r *Replica) hasOtherVoters() bool {
	voters, err := r.voters()
	if err != nil {
		return false
	}
	_, self := voters[r.Member()]
	return len(voters) > 1 && self
}

package replica

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/peerport"
	"muster/kvserver/replica/peerpb"
)

// guard knows who belongs to the cluster: it admits members on the peer port,
// cuts off who was removed, and ends this member when it is one of those.
type guard struct {
	*local
	removal sync.Once
	servers func() ([]raft.Server, error) // raft's latest configuration
	// told is what other members have said the members are, while this one knew
	// no leader.
	told   atomic.Pointer[[]machine.Member]
	cutOff int // how many removed members are, or will soon be
}

func (g *guard) isRemoved(member uint64) bool {
	_, found := slices.BinarySearch(g.machine.Membership().Removed(), member)
	return found
}

func (g *guard) removedError() error { return removedError(g.config.Dir, g.identity.Member) }

func removedError(dir string, member ID) error {
	return fmt.Errorf("%w: member %s does not start again with the data in %s; to use this machine in the cluster, remove that directory, add a new member with `etcdctl member add`, and start it with --initial-cluster-state existing", peerport.ErrRemoved, member, dir)
}

// membersChanged follows the member list: those who were removed are cut off,
// and this member stops when it is one of them.
func (g *guard) membersChanged() {
	if !g.identity.Founded && len(g.machine.Members()) > 0 {
		// From here on there is something to lose.
		g.mark(func(i *Identity) { i.Founded = true })
	}
	if g.isRemoved(g.Member()) {
		g.leave()
	}
	removed := g.machine.Membership().Removed()
	if len(removed) == g.cutOff {
		return
	}
	g.cutOff = len(removed)
	// A moment later: one of them may have asked for it and wait for the answer.
	time.AfterFunc(removalGrace, func() {
		for _, member := range removed {
			g.port.Expel(member)
			g.peers.forget(member)
		}
	})
}

// leave stops this member, which is none any more, after a moment.
func (g *guard) leave() {
	g.removal.Do(func() {
		err := g.removedError()
		g.logger.Error("stopping", "error", err)
		g.mark(func(i *Identity) { i.Removed = true })
		time.AfterFunc(removalGrace, func() { g.fail(err) })
	})
}

// askAround asks the other members for a sign of life while there is no leader:
// one who was removed while it was down is told so by whoever it connects to,
// and one who does not know who has joined meanwhile, the leader perhaps, is
// told that.
func (g *guard) askAround(ctx context.Context) {
	for tick(ctx, 2*g.config.ElectionTimeout) {
		if g.leadership.current() != 0 {
			continue
		}
		var told []machine.Member
		for _, member := range g.machine.Members() {
			if member.ID == g.Member() {
				continue
			}
			attempt, cancel := context.WithTimeout(ctx, g.config.ElectionTimeout)
			if client, err := g.peers.client(member.ID, member.PeerURLs); err == nil {
				_, _ = client.Term(attempt, &peerpb.TermRequest{}) // to connect is what matters
			}
			if response, err := askMembers(attempt, g.config.ClientTLS, member.PeerURLs); err == nil && response.GetCluster() == g.Cluster() {
				told = append(told, membersOfInfos(response.GetMembers())...)
			}
			cancel()
		}
		g.told.Store(&told)
	}
}

// knownMembers are the members, or while this member does not know them those
// it is to found the cluster with, or to join. After a start the state machine
// may be behind the log, and the log behind the cluster. What is in either counts,
// and without a leader what others tell: the leader might be the one that is not
// known.
func (g *guard) knownMembers() []machine.Member {
	known := slices.Clone(g.machine.Members())
	if len(known) == 0 {
		for _, peer := range g.config.Cluster.Peers {
			known = append(known, machine.Member{ID: peer.ID, Name: peer.Name, PeerURLs: peer.PeerURLs})
		}
	}
	if servers, err := g.servers(); err == nil {
		if members, err := membersOf(raft.Configuration{Servers: servers}); err == nil {
			known = append(known, members...)
		}
	}
	if told := g.told.Load(); told != nil && g.leadership.current() == 0 {
		known = append(known, *told...)
	}
	return known
}

// authorize admits the certificates of members: those usable by a server, in
// the name of a member or for the host of one of its peer URLs.
func (g *guard) authorize(certificate *x509.Certificate) error {
	serves := false
	for _, usage := range certificate.ExtKeyUsage {
		serves = serves || usage == x509.ExtKeyUsageServerAuth || usage == x509.ExtKeyUsageAny
	}
	if !serves {
		return fmt.Errorf("the certificate of %q is a client's, not a peer's", certificate.Subject.CommonName)
	}
	for _, member := range g.knownMembers() {
		if member.Name != "" && member.Name == certificate.Subject.CommonName {
			return nil
		}
		for _, peerURL := range member.PeerURLs {
			if certificate.VerifyHostname(hostOf(peerURL)) == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("the certificate of %q belongs to no member of this cluster", certificate.Subject.CommonName)
}

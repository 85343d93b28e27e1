package replica

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/replica/peerpb"
)

// foundersPause is how long the first of the founding members waits between
// two looks at whether the others can vote.
const foundersPause = 20 * time.Millisecond

// hasten has this member stand for election now rather than after an election
// timeout. raft looks again whether it must wait when the time to wait becomes
// shorter; who has heard from a leader meanwhile goes on waiting.
func (e *engine) hasten(instance *raft.Raft) error {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	usual := instance.ReloadableConfig()
	shorter := usual
	shorter.HeartbeatTimeout = usual.HeartbeatTimeout / 2 // not below the leader's lease
	return errors.Join(instance.ReloadConfig(shorter), instance.ReloadConfig(usual))
}

// isAlone is whether this member is the only voter: then there is nobody whose
// sign of life it could wait for.
func (e *engine) isAlone(instance *raft.Raft) (bool, error) {
	servers, err := serversOf(instance)
	if err != nil {
		return false, err
	}
	for _, server := range servers {
		if server.Suffrage == raft.Voter && server.ID != serverID(e.Member()) {
			return false, nil
		}
	}
	return true, nil
}

// convener gives a new cluster its first leader as soon as all its founding
// members are there: nobody has led yet, so there is nobody whose sign of life
// an election would have to wait for.
type convener struct {
	*engine
	peers *peers
}

// run has the founding member with the lowest ID stand for election once every
// other one can vote. Without them the members elect as they always do.
func (c *convener) run(ctx context.Context) {
	if !c.config.HastenElection || !c.convenes() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.ElectionTimeout)
	defer cancel()
	for _, peer := range c.config.Cluster.Peers {
		if peer.ID != c.Member() && !c.awaitVoter(ctx, peer.ID, peer.PeerURLs) {
			return
		}
	}
	if c.leadership.current() != 0 {
		return
	}
	if err := c.hasten(c.currentRaft()); err != nil {
		c.logger.Info("the first election waits for the election timeout", "error", err)
	}
}

// convenes is whether this is the first of the founding members, in a cluster
// that nobody has led.
func (c *convener) convenes() bool {
	if c.identity.Joined || c.currentRaft().CurrentTerm() != foundingTerm {
		return false
	}
	for _, peer := range c.config.Cluster.Peers {
		if peer.ID < c.Member() {
			return false
		}
	}
	return len(c.config.Cluster.Peers) > 1
}

// awaitVoter returns true once the member answers, false when ctx has ended.
func (c *convener) awaitVoter(ctx context.Context, member uint64, peerURLs []string) bool {
	for {
		client, err := c.peers.ready(ctx, member, peerURLs)
		if err == nil {
			_, err = client.Term(ctx, &peerpb.TermRequest{})
		}
		if err == nil {
			return true
		}
		if !tick(ctx, foundersPause) {
			return false
		}
	}
}

package replica

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
)

// A leader that hears of a newer one stamps no entry with the newer term: the
// newer leader stamps its own entries with it, at the same indexes, and nobody
// could tell them apart (hashicorp/raft#695).
func TestDeposedLeaderStampsNothing(t *testing.T) {
	c := startCluster(t, 3, func(config *Config) { config.ElectionTimeout = 3 * time.Second })
	i := c.leader()
	leader, other := c.members[i], c.members[(i+1)%3]
	term := leader.Status().Term
	heartbeat := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(serverID(other.Member())), Addr: []byte(other.transport.LocalAddr())},
		Term:      term + 1,
	}
	target := place{peerURLs: leader.config.Self.PeerURLs}.address()
	if err := other.transport.AppendEntries(serverID(leader.Member()), target, heartbeat, &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	// Straight into raft: the proposer would ask who leads first.
	if err := leader.currentRaft().Apply(machine.EncodeBatch(leader.Member(), nil), 0).Error(); err == nil {
		t.Error("a deposed leader accepted an entry")
	}
	last, err := leader.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for index := last; index > foundingIndex; index-- {
		var entry raft.Log
		if err := leader.log.GetLog(index, &entry); err != nil {
			t.Fatal(err)
		}
		if proposer, ok := machine.BatchProposer(entry.Data); ok && proposer == leader.Member() && entry.Term > term {
			t.Errorf("entry %d was stamped with term %d by the leader of term %d", index, entry.Term, term)
		}
	}
}

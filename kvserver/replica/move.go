package replica

import (
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
)

var (
	// ErrBadTransferee is returned when the lead is to go to nobody who votes.
	ErrBadTransferee = errors.New("the lead cannot go to this member")
	// ErrTransferTimeout is returned when the lead was not taken over in time.
	ErrTransferTimeout = errors.New("the lead was not taken over in time")
)

// move gives this member's lead to another one. raft takes no writes while it
// transfers, so it begins only when the other member answers.
func (c *reconfigurer) move(ctx context.Context, to uint64) error {
	if c.leadership.current() != c.self {
		return ErrNotLeading
	}
	members := c.machine.Members()
	if i := slices.IndexFunc(members, func(m machine.Member) bool { return m.ID == to }); i < 0 || members[i].Learner {
		return ErrBadTransferee
	}
	for c.leadership.current() != to {
		if c.leadership.current() == c.self {
			c.transfer(ctx, to)
		}
		if c.leadership.current() != to {
			c.leadership.changeOr(ctx, idleRetry)
		}
		if ctx.Err() != nil {
			return ErrTransferTimeout
		}
	}
	return nil
}

func (c *reconfigurer) transfer(ctx context.Context, to uint64) {
	servers, err := serversOf(c.raft())
	if err != nil {
		return
	}
	server, found := find(servers, to)
	if !found || server.Suffrage != raft.Voter {
		return // it will vote once it has caught up
	}
	if _, answers := c.farOf(ctx, server); !answers {
		return
	}
	future := c.raft().LeadershipTransferToServer(server.ID, server.Address)
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		if err != nil {
			c.logger.Info("the lead could not be handed over", "to", ID(to), "error", err)
		}
	case <-ctx.Done():
	}
}

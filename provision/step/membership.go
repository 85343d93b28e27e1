package step

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/desired"
	"muster/provision/plan"
)

// PruneMembers removes members that are not in the inventory and do not answer:
// they count for the majority that everything else needs.
func PruneMembers(ctx context.Context, r *Run) error {
	dead, err := r.roster.members.Prune(r.wanted())
	if err != nil || dead == nil {
		return err
	}
	return r.move(ctx, plan.Members.Prune)
}

// ChangeMembers adds the hosts of the inventory that are not members, one at a
// time: each joins as a learner, catches up and gets its vote before the next
// begins. Then the members that are not in the inventory are removed, one at a
// time. It goes on from whatever state an earlier run has left.
func ChangeMembers(ctx context.Context, r *Run) error {
	return r.move(ctx, plan.Members.Next)
}

// move makes moves until there is none left. What is next is decided anew each
// time, from what the members say then.
func (r *Run) move(ctx context.Context, next func(plan.Members, []desired.Member) (*plan.Move, error)) error {
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	for {
		var now roster
		var move *plan.Move
		err := c.until(ctx, "", func(ctx context.Context) error {
			if now = c.ask(ctx, c.joined()); len(now.members) == 0 {
				return errors.New("no member answers")
			}
			move, err = next(now.members, r.wanted())
			return err
		})
		if err != nil || move == nil {
			return err
		}
		if err := c.make(ctx, now, *move); err != nil {
			return err
		}
	}
}

// joined are the hosts whose member may answer.
func (r *Run) joined() []*Host {
	return r.only(func(h *Host) bool { return !h.joins })
}

func (c *conversation) make(ctx context.Context, now roster, move plan.Move) error {
	i := slices.IndexFunc(c.Hosts, func(h *Host) bool { return h.Name == move.Name })
	if move.Action == plan.Remove {
		return c.remove(ctx, now, move)
	}
	h := c.Hosts[i]
	var err error
	switch move.Action {
	case plan.Add:
		err = c.add(ctx, h, move)
	case plan.Start:
		err = c.join(ctx, h, now)
	case plan.Promote:
		err = c.promote(ctx, h, move)
	case plan.Update:
		err = c.update(ctx, move)
	}
	if err != nil {
		return &hostError{h.Name, err}
	}
	return nil
}

// do has one change of the members made, and repeats that until the list shows
// it: an answer can get lost, and a change can be refused for the moment.
func (c *conversation) do(ctx context.Context, what, sentence string, done func(plan.Members) bool, change func(context.Context, *clientv3.Client) error) error {
	tried := false
	err := c.until(ctx, what, func(ctx context.Context) error {
		now := c.ask(ctx, c.joined())
		if len(now.members) == 0 {
			return errors.New("no member answers")
		}
		if done(now.members) {
			return nil
		}
		client, err := c.speaker(now)
		if err != nil {
			return err
		}
		tried = true
		if err := change(ctx, client); err != nil {
			return err
		}
		if now = c.ask(ctx, c.joined()); !done(now.members) {
			return errors.New("the member list does not show it yet")
		}
		return nil
	})
	if err == nil && tried {
		c.change(c.Hosts[0].step, sentence)
	}
	return err
}

// speaker is a client of a member that can change the members: the leader, when
// it is on a host of the inventory.
func (c *conversation) speaker(now roster) (*clientv3.Client, error) {
	var from *Host
	for _, h := range c.Hosts {
		v, ok := now.views[h.Name]
		if ok && v.Leader != 0 && !v.Learner && (from == nil || v.MemberID == v.Leader) {
			from = h
		}
	}
	if from == nil {
		return nil, errors.New("no voting member of the inventory answers")
	}
	return c.client(from, from.Want.Member.ClientURL)
}

func (c *conversation) add(ctx context.Context, h *Host, move plan.Move) error {
	listed := func(m plan.Members) bool { _, ok := m.Find(h.Want.Member); return ok }
	return c.do(ctx, "add the member "+h.Name, fmt.Sprintf("added %s as a learner, at %s", h.Name, move.PeerURL), listed, func(ctx context.Context, client *clientv3.Client) error {
		_, err := client.MemberAddAsLearner(ctx, []string{move.PeerURL})
		return err
	})
}

// join installs the unit of a member that was added, now that it is known whom
// it joins, and starts it.
func (c *conversation) join(ctx context.Context, h *Host, now roster) error {
	if h.joins {
		c.bootstraps[h.Name] = now.members.Joining(c.wanted())
		if err := c.outfit(); err != nil {
			return err
		}
		h.joins = false
		err := InstallUnit(ctx, h)
		switch {
		case err != nil:
		case !h.Facts.Unit.Running():
			err = startMember(ctx, h)
		case h.restart:
			err = restartMember(ctx, h)
		}
		if err != nil {
			h.joins = true
			return err
		}
	}
	if err := awaitReady(ctx, h); err != nil {
		return err
	}
	return c.until(ctx, "wait for the name of the member on "+h.Name, func(ctx context.Context) error {
		if l, ok := c.ask(ctx, c.joined()).members.Find(h.Want.Member); !ok || l.Name == "" {
			return errors.New("the member list does not show it yet")
		}
		return nil
	})
}

func (c *conversation) promote(ctx context.Context, h *Host, move plan.Move) error {
	votes := func(m plan.Members) bool {
		l, ok := m.Find(h.Want.Member)
		return ok && !l.Learner
	}
	err := c.do(ctx, "promote the learner "+h.Name, h.Name+" has caught up and got its vote", votes, func(ctx context.Context, client *clientv3.Client) error {
		_, err := client.MemberPromote(ctx, move.ID)
		return err
	})
	if err != nil {
		return err
	}
	return awaitReady(ctx, h)
}

func (c *conversation) update(ctx context.Context, move plan.Move) error {
	moved := func(m plan.Members) bool {
		return slices.ContainsFunc(m, func(l plan.Listed) bool { return l.ID == move.ID && slices.Contains(l.PeerURLs, move.PeerURL) })
	}
	return c.do(ctx, "announce the new peer URL of "+move.Name, fmt.Sprintf("announced %s at its new peer URL %s", move.Name, move.PeerURL), moved, func(ctx context.Context, client *clientv3.Client) error {
		_, err := client.MemberUpdate(ctx, move.ID, []string{move.PeerURL})
		return err
	})
}

// remove takes a member out of the cluster. Its host is not in the inventory:
// what is installed there stays, and is named.
func (c *conversation) remove(ctx context.Context, now roster, move plan.Move) error {
	if err := c.saveFirst(ctx); err != nil {
		return err
	}
	if now.leader == move.ID {
		if err := c.takeLead(ctx, now, move); err != nil {
			c.Log.Debug("move the lead", "from", move.Name, "error", err)
		}
	}
	gone := func(m plan.Members) bool {
		return !slices.ContainsFunc(m, func(l plan.Listed) bool { return l.ID == move.ID })
	}
	err := c.do(ctx, "remove the member "+move.Name, fmt.Sprintf("removed the member %s (%x at %s)", move.Name, move.ID, move.PeerURL), gone, func(ctx context.Context, client *clientv3.Client) error {
		_, err := client.MemberRemove(ctx, move.ID)
		if errors.Is(err, rpctypes.ErrMemberNotFound) {
			return nil
		}
		return err
	})
	if err == nil && !move.Replaced {
		c.report(Note, c.Hosts[0].step, "", fmt.Sprintf("%s at %s is no member any more; its host is not in the inventory and was left alone: unless it is gone, it still has %s, the programs in /usr/local/bin, /etc/muster and its data directory (muster reset with an inventory of that host removes them)", move.Name, move.PeerURL, c.Hosts[0].unit().Title()))
	}
	return err
}

// takeLead moves the lead from a member that is to be removed to one of the
// inventory.
func (c *conversation) takeLead(ctx context.Context, now roster, move plan.Move) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var leader plan.Listed
	for _, l := range now.members {
		if l.ID == move.ID {
			leader = l
		}
	}
	for _, h := range c.Hosts {
		l, ok := now.members.Find(h.Want.Member)
		if !ok || l.Learner || !l.Alive || len(leader.ClientURLs) == 0 {
			continue
		}
		client, err := c.client(h, leader.ClientURLs[0])
		if err != nil {
			return err
		}
		_, err = client.MoveLeader(ctx, l.ID)
		return err
	}
	return errors.New("no member of the inventory could lead")
}

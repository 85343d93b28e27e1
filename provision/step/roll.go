package step

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"muster/provision/plan"
	"muster/provision/remote"
	"muster/provision/runner"
	"muster/provision/snapshot"
)

// Rolling leaves out the hosts whose member runs well and has to be restarted:
// RollMembers does that, one host after the other.
func Rolling(do func(context.Context, *Host) error) func(context.Context, *Host) error {
	return func(ctx context.Context, h *Host) error {
		if h.rolls {
			return nil
		}
		return do(ctx, h)
	}
}

// RollMembers brings what is to be installed to the members that run well, one
// at a time: install, restart, ready, and only then the next. Each goes while
// the others are a majority without it, the leader last, and not before another
// member leads. The first is the canary: when it does not come back with what
// is new, it gets back what it had. Members that are not ready cannot be harmed,
// and were given everything already: they are restarted first.
func RollMembers(ctx context.Context, r *Run) error {
	if err := r.restartSick(ctx); err != nil {
		return err
	}
	due := r.only(func(h *Host) bool { return h.rolls })
	if len(due) == 0 {
		return nil
	}
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	if err := r.saveFirst(ctx); err != nil {
		return err
	}
	for i, h := range c.leaderLast(ctx, due) {
		if err := c.roll(ctx, h, i == 0); err != nil {
			if i > 0 {
				err = &stoppedError{error: err, done: i, left: len(due) - i}
			}
			return &hostError{h.Name, err}
		}
		h.rolls = false
	}
	return nil
}

// restartSick restarts the members that were given everything already, because
// they did not run well: those that have recovered meanwhile one at a time, the
// others together.
func (r *Run) restartSick(ctx context.Context) error {
	due := r.only(func(h *Host) bool { return h.restart && !h.rolls && !h.joins })
	if len(due) == 0 {
		return nil
	}
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	now := c.ask(ctx, c.joined())
	var sick, well []*Host
	for _, h := range due {
		if now.views[h.Name].Leader != 0 {
			well = append(well, h)
		} else {
			sick = append(sick, h)
		}
	}
	if err := restartTogether(ctx, sick); err != nil {
		return err
	}
	if len(well) > 0 {
		if err := r.saveFirst(ctx); err != nil {
			return err
		}
	}
	for _, h := range well {
		if err := restartOne(ctx, r, h); err != nil {
			return err
		}
	}
	return nil
}

// stoppedError is a roll that ended half-way.
type stoppedError struct {
	error
	done, left int
}

func (e *stoppedError) Unwrap() error { return e.error }
func (e *stoppedError) Hint() string {
	return fmt.Sprintf("the roll stopped here: %d members are changed and run, %d are not; the others hold the quorum. See muster status and the member's journal, correct the cause and run the same command again", e.done, e.left)
}

// snapshotsKept is how many of the snapshots that precede changes stay.
const snapshotsKept = 14

// snapshotDir is where a snapshot goes before members are disturbed: beside the
// certificates, apart from those that the operator asks for.
func (r *Run) snapshotDir() string {
	return filepath.Join(filepath.Dir(filepath.Clean(r.Cluster.PKI.Dir)), r.Cluster.Name+"-backups", "before-"+r.Operation)
}

// saveFirst saves a snapshot before the first step of the run that disturbs a
// member.
func (r *Run) saveFirst(ctx context.Context) error {
	if r.saved {
		return nil
	}
	_, err := TakeSnapshot(ctx, r, snapshot.Place{Dir: r.snapshotDir(), Keep: snapshotsKept})
	if err != nil {
		return fmt.Errorf("save a snapshot before a member is disturbed: %w", err)
	}
	r.saved = true
	return nil
}

// leaderLast orders hosts as the inventory does, but for the leader's.
func (c *conversation) leaderLast(ctx context.Context, hosts []*Host) []*Host {
	now := c.ask(ctx, c.joined())
	rank := func(h *Host) int {
		if v := now.views[h.Name]; v.Leader != 0 && v.Leader == v.MemberID {
			return 1
		}
		return 0
	}
	order := slices.Clone(hosts)
	slices.SortStableFunc(order, func(a, b *Host) int { return rank(a) - rank(b) })
	return order
}

func (c *conversation) roll(ctx context.Context, h *Host, canary bool) error {
	now, err := c.relieve(ctx, h)
	if err != nil {
		return err
	}
	if err := c.announce(ctx, h, now); err != nil {
		return err
	}
	if canary {
		if err := h.keepOld(ctx); err != nil {
			return err
		}
	}
	err = install(ctx, h)
	if err == nil {
		err = restartMember(ctx, h)
	}
	if err == nil {
		err = awaitReady(ctx, h)
	}
	switch {
	case err == nil && canary:
		return h.forgetOld(ctx)
	case err == nil || !canary || ctx.Err() != nil || errors.Is(err, remote.ErrConnectionLost):
		return err
	}
	return h.rollBack(ctx, err)
}

func install(ctx context.Context, h *Host) error {
	for _, do := range []func(context.Context, *Host) error{InstallPrograms, InstallFiles, InstallUnit} {
		if err := do(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// relieve waits until the cluster goes on without the host's member, and lets
// another member lead.
func (c *conversation) relieve(ctx context.Context, h *Host) (now roster, err error) {
	err = c.until(ctx, "restart the member on "+h.Name, func(ctx context.Context) error {
		now = c.ask(ctx, c.joined())
		if len(now.members) == 0 {
			return errors.New("no member answers")
		}
		return now.members.MayStop(now.id(h), "restarting the member on "+h.Name)
	})
	if err == nil && now.leader == now.id(h) {
		c.moveLeader(ctx, h, now)
	}
	return now, err
}

// announce tells the others of a peer URL that changes, because the member
// comes back at the new one.
func (c *conversation) announce(ctx context.Context, h *Host, now roster) error {
	l, ok := now.members.Find(h.Want.Member)
	if ok && !slices.Contains(l.PeerURLs, h.Want.Member.PeerURL) {
		return c.update(ctx, plan.Move{Action: plan.Update, ID: l.ID, Name: h.Name, PeerURL: h.Want.Member.PeerURL})
	}
	return nil
}

// moveLeader lets another voting member lead. When none can, the member gives
// the lead up as it stops.
func (c *conversation) moveLeader(ctx context.Context, h *Host, now roster) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, l := range now.members {
		if l.ID == now.leader || l.Learner || !l.Alive {
			continue
		}
		client, err := c.client(h, h.Want.Member.ClientURL)
		if err == nil {
			_, err = client.MoveLeader(ctx, l.ID)
		}
		if err == nil {
			c.report(Note, h.step, h.Name, "moved the lead to "+l.Name)
			return
		}
		c.Log.Debug("move the lead", "from", h.Name, "to", l.Name, "error", err)
	}
	if len(now.members) > 1 {
		h.warn("no other member took the lead over; the member gives it up as it stops")
	}
}

// restartOne restarts a member once the cluster goes on without it.
func restartOne(ctx context.Context, r *Run, h *Host) error {
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := c.relieve(ctx, h); err != nil {
		return &hostError{h.Name, err}
	}
	if err := restartMember(ctx, h); err != nil {
		return &hostError{h.Name, err}
	}
	if err := awaitReady(ctx, h); err != nil {
		return &hostError{h.Name, err}
	}
	return nil
}

// restartTogether restarts members that are not ready, then waits for them:
// they may need each other to become so.
func restartTogether(ctx context.Context, hosts []*Host) error {
	for _, do := range []func(context.Context, *Host) error{restartMember, awaitReady} {
		for _, h := range hosts {
			if err := do(ctx, h); err != nil {
				return &hostError{h.Name, err}
			}
		}
	}
	return nil
}

// restartMember stops the member, waits until it has, and has it started
// again: whatever answers from then on is the new process.
func restartMember(ctx context.Context, h *Host) error {
	unit := h.unit().Title()
	err := h.changeByScript(ctx, "restarted "+unit, remote.Command{
		Label:     "restart " + unit,
		Functions: runner.Functions(h.Want), Script: `unit_stop && rm -f ` + h.Want.Paths.RestartMark + ` && unit_start`,
	})
	h.restart = h.restart && err != nil
	if err != nil {
		return err
	}
	h.countRestarts(ctx)
	return nil
}

// countRestarts remembers how often the member was restarted by whoever runs it,
// which is no fault of what comes after.
func (h *Host) countRestarts(ctx context.Context) {
	if now, err := unitFact(ctx, h); err == nil {
		h.Facts.Unit.Restarts = now.Restarts
	}
}

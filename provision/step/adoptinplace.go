package step

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"muster/provision/observed"
	"muster/provision/remote"
)

// TakeOver lets the new members go on with the data of the old ones, one at a
// time and while the others are a majority without it; who is down first, the
// leader last. A member that does not come up goes back to what ran it before.
func (a *Adopt) TakeOver(ctx context.Context, r *Run) error {
	due := r.only(func(h *Host) bool { return !h.Facts.Adoption.Done })
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
	order := c.leaderLast(ctx, due)
	now := c.ask(ctx, r.Hosts)
	slices.SortStableFunc(order, func(x, y *Host) int { return down(now, y) - down(now, x) })
	for i, h := range order {
		if err := a.takeOver(ctx, c, h); err != nil {
			if i > 0 {
				err = &stoppedError{error: err, done: i, left: len(order) - i}
			}
			return &hostError{h.Name, err}
		}
	}
	return nil
}

func down(now roster, h *Host) int {
	if now.views[h.Name].Leader == 0 {
		return 1
	}
	return 0
}

func (a *Adopt) takeOver(ctx context.Context, c *conversation, h *Host) error {
	if _, err := c.relieve(ctx, h); err != nil {
		return err
	}
	adoption := a.adoption(h)
	if err := writeAdoption(ctx, h, adoption, "recorded how the old etcd is started in "+h.Want.Paths.Adoption); err != nil {
		return err
	}
	err := h.succeed(ctx, adoption)
	if err == nil {
		adoption.Done = true
		return writeAdoption(ctx, h, adoption, "recorded that the member has gone on")
	}
	if ctx.Err() != nil || errors.Is(err, remote.ErrConnectionLost) {
		return err
	}
	return h.giveBack(ctx, err)
}

// succeed stops the old member and starts the new one with its data.
func (h *Host) succeed(ctx context.Context, old observed.Adoption) error {
	if err := h.stopOld(ctx, old); err != nil {
		return err
	}
	if err := h.giveData(ctx, old.DataDir, h.Want.Account.User+":"+h.Want.Account.Group); err != nil {
		return err
	}
	if err := InstallUnit(ctx, h); err != nil {
		return err
	}
	if err := startMember(ctx, h); err != nil {
		return err
	}
	return awaitReady(ctx, h)
}

// GivenBackError is a host whose new member did not come up, so that the old
// one was started again.
type GivenBackError struct {
	Host  string
	Cause error
	// Journal is what the new member said, oldest line first.
	Journal []string
}

func (e *GivenBackError) Error() string {
	return fmt.Sprintf("%v; %s has its old etcd back, which was started again", e.Cause, e.Host)
}

func (e *GivenBackError) Unwrap() error { return e.Cause }

// Hint says what to do about it.
func (e *GivenBackError) Hint() string {
	return "nothing is lost; correct the flags or the program in the inventory and run muster adopt again"
}

// giveBack starts the old member again, with the data that it had.
func (h *Host) giveBack(ctx context.Context, cause error) error {
	failure := &GivenBackError{Host: h.Name, Cause: cause, Journal: h.journal(ctx)}
	if err := h.undo(ctx); err != nil {
		return errors.Join(failure, err)
	}
	return errors.Join(failure, h.forgetAdoption(ctx))
}

func writeAdoption(ctx context.Context, h *Host, want observed.Adoption, sentence string) error {
	if want == h.Facts.Adoption {
		return nil
	}
	line, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("%s: record the adoption: %w", h.Name, err)
	}
	err = h.Change(ctx, sentence, func(ctx context.Context) error {
		return h.Remote.WriteFile(ctx, remote.File{Path: h.Want.Paths.Adoption, Mode: 0o644, Owner: "root", Group: "root"}, append(line, '\n'))
	})
	if err == nil {
		h.Facts.Adoption = want
	}
	return err
}

// awaitOld waits until the old members that were started again have a leader.
func (a *Adopt) awaitOld(ctx context.Context, c *conversation) error {
	return c.until(ctx, "wait for the old members", func(ctx context.Context) error {
		now := c.ask(ctx, c.Hosts)
		var missing []string
		for _, h := range c.Hosts {
			if now.views[h.Name].Leader == 0 {
				missing = append(missing, h.Name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%s do not answer", strings.Join(missing, ", "))
		}
		return nil
	})
}

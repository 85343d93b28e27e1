package step

import (
	"context"

	"muster/provision/observed"
	"muster/provision/remote"
)

// StartMembers starts every member that does not run, all at once, but for
// those that join: a new member is ready only when a majority of them is there. The server founds a
// cluster only in an empty data directory; Preflight has made sure that this
// is wanted.
func StartMembers(ctx context.Context, r *Run) error {
	return r.forAll(func(h *Host) *Error {
		if h.joins || h.Facts.Unit.Running() {
			return nil
		}
		if err := startMember(ctx, h); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

func startMember(ctx context.Context, h *Host) error {
	unit := h.unit().Name
	err := h.changeByScript(ctx, "started "+unit, remote.Command{
		Label:  "start " + unit,
		Script: `systemctl reset-failed "$1" 2>/dev/null; rm -f ` + observed.RestartMark + `; systemctl start --no-block "$1"`,
		Args:   []string{unit},
	})
	h.restart = h.restart && err != nil
	h.Facts.Unit.Restarts = 0 // reset-failed sets it back
	return err
}

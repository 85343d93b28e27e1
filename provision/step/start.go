package step

import (
	"context"

	"muster/provision/remote"
	"muster/provision/runner"
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
	unit := h.unit().Title()
	err := h.changeByScript(ctx, "started "+unit, remote.Command{
		Label:     "start " + unit,
		Functions: runner.Functions(h.Want), Script: `rm -f ` + h.Want.Paths.RestartMark + `; unit_start`,
	})
	h.restart = h.restart && err != nil
	if err != nil {
		return err
	}
	if h.unit().IsPod() { // the kubelet goes on counting
		h.countRestarts(ctx)
	} else {
		h.Facts.Unit.Restarts = 0
	}
	return nil
}

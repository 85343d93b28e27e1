package step

import (
	"context"

	"muster/provision/observed"
	"muster/provision/remote"
)

// StartMembers starts every member that does not run, all at once: a new
// member is ready only when a majority of them is there. The server founds a
// cluster only in an empty data directory; Preflight has made sure that this
// is wanted.
func StartMembers(ctx context.Context, r *Run) error {
	return r.forAll(func(h *Host) *Error {
		if h.Facts.Unit.Running() {
			return nil
		}
		unit := h.unit().Name
		err := h.changeByScript(ctx, "started "+unit, remote.Command{
			Label:  "start " + unit,
			Script: `systemctl reset-failed "$1" 2>/dev/null; rm -f ` + observed.RestartMark + `; systemctl start --no-block "$1"`,
			Args:   []string{unit},
		})
		if err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		h.restart = false
		return nil
	})
}

package step

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"muster/provision/remote"
	"muster/provision/runner"
)

// keepScript keeps the files that are about to be replaced, each beside the new
// one. What an earlier run kept and did not come to use is older than what is
// there now, unless that run was cut off before the restart ($1).
const keepScript = `set -eu
umask 077
pending=$1
shift
for path in "$@"; do
	old=${path%/*}/.muster-old-${path##*/}
	[ "$pending" = pending ] && [ -e "$old" ] && continue
	rm -f "$old"
	[ -e "$path" ] || continue
	cat "$path" >"$old.new"
	mv -fT "$old.new" "$old"
	sync "$old"
done`

// bringBackScript puts back what was kept; it says what. Its arguments are
// triples of path, owner and mode.
const bringBackScript = `set -eu
while [ -n "${1-}" ]; do
	old=${1%/*}/.muster-old-${1##*/}
	if [ -e "$old" ] && [ "$(sha256sum <"$old")" = "$(sha256sum <"$1")" ]; then
		rm -f "$old"
	elif [ -e "$old" ]; then
		chown "$2" "$old"
		chmod "$3" "$old"
		mv -fT "$old" "$1"
		echo "$1"
	fi
	shift 3
done
unit_reload`

const forgetScript = `for path in "$@"; do
	rm -f "${path%/*}/.muster-old-${path##*/}"
done`

// keepOld keeps what the running member uses until the new has proved itself.
func (h *Host) keepOld(ctx context.Context) error {
	pending := "done"
	if h.Facts.RestartPending {
		pending = "pending"
	}
	_, err := h.Remote.Run(ctx, remote.Command{
		Label: "keep what is replaced", Script: keepScript, Args: append([]string{pending}, h.unit().RestartOn...),
	})
	return err
}

func (h *Host) forgetOld(ctx context.Context) error {
	_, err := h.Remote.Run(ctx, remote.Command{Label: "forget what was replaced", Script: forgetScript, Args: h.unit().RestartOn})
	return err
}

// RolledBackError is a canary that did not come back with what is new.
type RolledBackError struct {
	Host  string
	Cause error
	// Journal is what the member said meanwhile, oldest line first.
	Journal []string
	// Restored are the paths that are as before; Healthy says that the member
	// runs with them.
	Restored []string
	Healthy  bool
}

func (e *RolledBackError) Error() string {
	state := "it has back what it had before, and runs"
	switch {
	case len(e.Restored) == 0:
		state = "there was nothing to give back"
	case !e.Healthy:
		state = "it was given back what it had before, and does not run with that either"
	}
	return fmt.Sprintf("%v; %s was the first to be changed: %s, and no other member was touched", e.Cause, e.Host, state)
}

func (e *RolledBackError) Unwrap() error { return e.Cause }

// Hint says what to do about it.
func (e *RolledBackError) Hint() string {
	if e.Healthy {
		return "the cluster runs as before; correct the flags or the program in the inventory and run the same command again"
	}
	return "see muster status and the member's journal; the other members run as before"
}

// rollBack gives the canary back what it had, and returns why it had to.
func (h *Host) rollBack(ctx context.Context, cause error) error {
	failure := &RolledBackError{Host: h.Name, Cause: cause, Journal: h.journal(ctx)}
	args := []string{}
	for _, path := range h.unit().RestartOn {
		if have, ok := h.Facts.Files[path]; ok {
			args = append(args, path, have.Owner+":"+have.Group, fmt.Sprintf("%04o", have.Mode))
		}
	}
	result, err := h.Remote.Run(ctx, remote.Command{Label: "bring back what was replaced", Functions: runner.Functions(h.Want), Script: bringBackScript, Args: args})
	if err != nil {
		return errors.Join(failure, err)
	}
	failure.Restored = strings.Fields(result.Stdout)
	if len(failure.Restored) == 0 {
		return failure
	}
	for _, path := range failure.Restored {
		h.run.report(Changed, h.step, h.Name, "brought back the old "+path)
		h.run.changes.Add(1)
	}
	if err := restartMember(ctx, h); err != nil {
		return errors.Join(failure, err)
	}
	failure.Healthy = awaitReady(ctx, h) == nil
	return failure
}

// journalLines is how much of a member's journal tells why it failed.
const journalLines = "20"

func (h *Host) journal(ctx context.Context) []string {
	result, err := h.Remote.Run(ctx, remote.Command{
		Label: "read the journal", Functions: runner.Functions(h.Want), Script: `unit_log "$1"`, Args: []string{journalLines},
	})
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(result.Stdout), "\n")
}

package step

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/provision/observed"
	"muster/provision/remote"
)

// Guarded takes steps during which writes are refused. When one fails, the old
// members serve again.
func (a *Adopt) Guarded(steps ...Step) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		r.sealed = true
		err := r.do(ctx, steps)
		proved := len(r.only(func(h *Host) bool { return h.Facts.Adoption.Done })) > 0
		if err == nil || ctx.Err() != nil || proved {
			return err
		}
		r.report(Note, "undo", "", "the old members are started again")
		if undone := a.Undo(ctx, r); undone != nil {
			return errors.Join(err, fmt.Errorf("go back to the old members: %w; muster adopt --undo tries again", undone))
		}
		var failed Errors
		if !errors.As(err, &failed) {
			failed = Errors{{Step: "move", Host: hostOf(err), Err: err}}
		}
		for _, e := range failed {
			e.Err = &UndoneError{e.Err}
		}
		return failed
	}
}

// UndoneError is a move that failed and was undone.
type UndoneError struct{ error }

func (e *UndoneError) Unwrap() error { return e.error }

// Hint says what to do about it.
func (e *UndoneError) Hint() string {
	return "the old members serve again, with everything they had; correct the cause and run muster adopt again"
}

// Undo starts the old members again and has them take writes. Once new members
// have taken writes, these go with them: see returnAll.
func (a *Adopt) Undo(ctx context.Context, r *Run) error {
	done := r.only(func(h *Host) bool { return h.Facts.Adoption.Done })
	if len(done) > 0 && !a.InPlace(r) {
		return a.returnAll(ctx, r)
	}
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	begun := r.only(func(h *Host) bool { return h.Facts.Adoption.Begun() })
	if err := onEach(r, begun, func(h *Host) error { return h.undo(ctx) }); err != nil {
		return err
	}
	if err := a.awaitOld(ctx, c); err != nil {
		return err
	}
	if !a.InPlace(r) {
		if err := c.setSeal(ctx, pb.AlarmRequest_DEACTIVATE); err != nil {
			return fmt.Errorf("have the old members take writes: %w", err)
		}
		r.sealed = false
		r.change("undo", "the old members take writes again")
	}
	return onEach(r, begun, func(h *Host) error { return h.forgetAdoption(ctx) })
}

// onEach is forAll on some hosts.
func onEach(r *Run, hosts []*Host, do func(*Host) error) error {
	wanted := map[*Host]bool{}
	for _, h := range hosts {
		wanted[h] = true
	}
	return r.forAll(func(h *Host) *Error {
		if !wanted[h] {
			return nil
		}
		if err := do(h); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

// undo has the old member started again in place of the new one.
func (h *Host) undo(ctx context.Context) error {
	old := h.Facts.Adoption
	if err := h.stopNew(ctx); err != nil {
		return err
	}
	if old.InPlace && old.Owner != "" {
		if err := h.giveData(ctx, old.DataDir, old.Owner); err != nil {
			return err
		}
	}
	if err := h.bringDataBack(ctx); err != nil {
		return err
	}
	return h.startOld(ctx, old)
}

// dataBackScript moves the directory $2 back to $1, and what is there to $3; see
// asideScript.
const dataBackScript = `set -eu
dir=$1 old=$2 new=$3
inside=$dir/${old##*/} beside=$dir/${new##*/}
if [ -d "$old" ]; then
	if [ -d "$dir" ]; then
		mv -fT "$dir" "$new"
	fi
	mv -fT "$old" "$dir"
elif [ -d "$inside" ]; then
	mkdir -p "$beside"
	chmod 0700 "$beside"
	for entry in "$dir"/* "$dir"/.[!.]*; do
		case $entry in
		"$inside" | */lost+found | *` + asideMark + `*) continue ;;
		esac
		[ -e "$entry" ] || continue
		mv -f "$entry" "$beside/"
	done
	for entry in "$inside"/* "$inside"/.[!.]*; do
		[ -e "$entry" ] || continue
		mv -f "$entry" "$dir/"
	done
	rmdir "$inside"
fi
if [ -d "$dir" ]; then
	sync "$dir"
fi
`

// bringDataBack gives the old member its data back where the new one had the same
// directory.
func (h *Host) bringDataBack(ctx context.Context) error {
	dir, aside := h.Facts.Adoption.DataDir, h.Facts.Restoring.Aside
	if dir != h.Want.Member.DataDir || aside == "" {
		return nil
	}
	return h.changeByScript(ctx, "moved the data of the old member back to "+dir, remote.Command{
		Label: "move the old data back", Script: dataBackScript, Args: []string{dir, aside, dir + asideMark + time.Now().UTC().Format(asideTime)},
	})
}

// asideTime is how a time is written in the name of data that was put aside.
const asideTime = "20060102T150405.000Z"

// forgetAdoption removes what says that the host is being taken over, or is a
// member of a cluster of ours. What the new member had for data is moved aside.
func (h *Host) forgetAdoption(ctx context.Context) error {
	if dir := h.Want.Member.DataDir; !h.Facts.Adoption.InPlace && h.Facts.Adoption.DataDir != dir {
		aside := dir + asideMark + time.Now().UTC().Format(asideTime)
		if _, err := h.Remote.Run(ctx, remote.Command{Label: "move the new member's data aside", Script: asideScript, Args: []string{dir, aside}}); err != nil {
			return err
		}
	}
	err := h.changeByScript(ctx, "removed "+h.Want.Paths.Adoption, remote.Command{
		Label: "forget the adoption", Script: `rm -f -- "$@"`, Args: []string{h.Want.Paths.Environment, h.Want.Paths.Restoring, h.Want.Paths.Record, placed(h), h.Want.Paths.Adoption},
	})
	if err == nil {
		h.Facts.Adoption, h.Facts.Restoring, h.Facts.Record = observed.Adoption{}, observed.Restoring{}, observed.Record{}
	}
	return err
}

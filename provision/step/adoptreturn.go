package step

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"muster/provision/observed"
	"muster/provision/remote"
	"muster/provision/snapshot"
)

// returnAll gives a cluster whose data was moved back to the members it was taken
// over from, with every write that the new ones have taken: the same move, the
// other way round. Each host records how far it has come, so that a run that was
// killed is repeated.
func (a *Adopt) returnAll(ctx context.Context, r *Run) error {
	returned := slices.ContainsFunc(r.Hosts, func(h *Host) bool { return h.Facts.Adoption.Returned })
	forgotten := func(h *Host) bool { return returned && h.Facts.Adoption == (observed.Adoption{}) }
	if i := slices.IndexFunc(r.Hosts, func(h *Host) bool { return !h.Facts.Adoption.Done && !forgotten(h) }); i >= 0 {
		return &hostError{r.Hosts[i].Name, fmt.Errorf("%s was not taken over, and others were: run muster adopt to its end first", r.Hosts[i].Name)}
	}
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	if err := a.returning(ctx, r, c); err != nil {
		return err
	}
	r.sealed = true
	remembers := func(do func(context.Context, *Host) error) func(context.Context, *Host) error {
		return func(ctx context.Context, h *Host) error {
			if forgotten(h) {
				return nil
			}
			return do(ctx, h)
		}
	}
	awaited := func(do func(context.Context, *Host) error) func(context.Context, *Host) error {
		return func(ctx context.Context, h *Host) error {
			if forgotten(h) || h.Facts.Adoption.Returned {
				return nil
			}
			return do(ctx, h)
		}
	}
	return r.do(ctx, []Step{
		EachHost("snapshot", awaited(a.toMove.Upload)),
		EachHost("note", awaited(a.noteReturn)),
		Together("stop", a.stopAllNew),
		EachHost("give back", awaited(a.giveDataBack)),
		EachHost("start", remembers(func(ctx context.Context, h *Host) error { return h.startOld(ctx, h.Facts.Adoption) })),
		Together("await", func(ctx context.Context, _ *Run) error { return a.awaitOld(ctx, c) }),
		Together("compare", a.compareReturned),
		Together("unseal", func(ctx context.Context, r *Run) error { return a.unseal(ctx, r, c, "old") }),
		EachHost("forget", remembers(func(ctx context.Context, h *Host) error { return h.forgetAdoption(ctx) })),
	})
}

// returning finds the snapshot that goes back: that of an earlier run which has
// begun to, or a new one, for which writes are refused from here on.
func (a *Adopt) returning(ctx context.Context, r *Run, c *conversation) error {
	for _, h := range r.Hosts {
		sum := h.Facts.Adoption.Returning
		if sum == "" {
			continue
		}
		path := filepath.Join(r.moveDir(), sum+".db")
		contents, err := snapshot.Check(ctx, path)
		if err != nil {
			return &localError{fmt.Errorf("giving the members back was interrupted, and its snapshot is needed: %w; bring the file back", err)}
		}
		return a.moves(path, contents)
	}
	path, contents, err := a.sealAndSave(ctx, r, c)
	if err != nil {
		return err
	}
	return a.moves(path, contents)
}

func (a *Adopt) noteReturn(ctx context.Context, h *Host) error {
	adoption := h.Facts.Adoption
	adoption.Returning = a.toMove.Contents.SHA256
	return writeAdoption(ctx, h, adoption, "recorded the snapshot that the old member goes on with")
}

// stopAllNew stops the new members, all at once: none leads on.
func (a *Adopt) stopAllNew(ctx context.Context, r *Run) error {
	return onEach(r, r.only(func(h *Host) bool { return h.Facts.Adoption.Done && !h.Facts.Adoption.Returned }), func(h *Host) error { return h.stopNew(ctx) })
}

// replaceDataScript puts the directory $2 in the place of $1, which becomes $3. A
// file system of its own cannot be renamed: there the content moves.
const replaceDataScript = asideFunction + `put_aside "$1" "$3"
dir=$1
mkdir -p "$dir"
for entry in "$2"/* "$2"/.[!.]*; do
	[ -e "$entry" ] || continue
	mv -f "$entry" "$dir/"
done
rmdir "$2"
chown "$4" "$dir"
chmod 0700 "$dir"
sync "$dir"
`

// giveDataBack gives the old member the data of the snapshot. What it had when it
// was taken over, or the new member has where that is in the same directory, is
// put aside.
func (a *Adopt) giveDataBack(ctx context.Context, h *Host) error {
	adoption := h.Facts.Adoption
	var members []string
	for _, other := range h.run.Hosts {
		members = append(members, other.oldName()+"="+other.Want.Member.PeerURL)
	}
	dir, owner := adoption.DataDir, adoption.Owner
	unpacked := dir + ".restoring"
	older, err := older(adoption.Version)
	if err != nil {
		return fmt.Errorf("%s: the version of the old member: %w", h.Name, err)
	}
	if err := a.toMove.unpack(ctx, h, unpacked, owner, h.oldName(), strings.Join(members, ","), older); err != nil {
		return err
	}
	aside := dir + asideMark + time.Now().UTC().Format(asideTime)
	if err := h.changeByScript(ctx, fmt.Sprintf("gave the old member its data in %s; what was there is %s", dir, aside), remote.Command{
		Label: "give the data back", Script: replaceDataScript, Args: []string{dir, unpacked, aside, owner},
	}); err != nil {
		return err
	}
	adoption.Returned = true
	return writeAdoption(ctx, h, adoption, "recorded that the old member has its data")
}

// oldName is the name of the host's old member.
func (h *Host) oldName() string {
	if name := h.Facts.Adoption.Member; name != "" {
		return name
	}
	return h.Name
}

// compareReturned proves, while writes are still refused, that every old member
// has what the snapshot has.
func (a *Adopt) compareReturned(ctx context.Context, r *Run) error {
	if sealed, err := anySealed(ctx, r); err == nil && !sealed {
		return nil // an earlier run has, and writes are taken since
	}
	return a.compare(ctx, r, "the old members are at revision %d and have %d keys, as the new ones had")
}

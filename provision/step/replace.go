package step

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"muster/provision/observed"
	"muster/provision/remote"
	"muster/provision/runner"
)

// errNoQuorum is the error of a replacement that the cluster cannot agree on.
var errNoQuorum = errors.New("no member answers that could remove the old one: without a majority no member can be replaced. Bring the others up first (muster status), or found the cluster anew from a snapshot (muster restore)")

// markReplaced finds what is to be replaced of the host that the run names: the
// member on the list, whose data is gone or of no use, and the data. It finds
// nothing when the member answers, or is already the new one.
func (r *Run) markReplaced() error {
	i := slices.IndexFunc(r.Hosts, func(h *Host) bool { return h.Name == r.Replaces })
	if i < 0 {
		return nil
	}
	if len(r.roster.members) == 0 {
		return errNoQuorum
	}
	h := r.Hosts[i]
	l, listed := r.roster.members.Find(h.Want.Member)
	record := h.Facts.Record
	hasData := h.Facts.Data == observed.DataFilled
	switch {
	case listed && l.Alive:
		h.warn(fmt.Sprintf("%s answers as the member %x; there is nothing to replace", h.Name, l.ID))
	case listed && len(l.ClientURLs) > 0 && (!hasData || record.MemberID == fmt.Sprintf("%x", l.ID)):
		h.replaced, r.replacedID = true, l.ID
		for j := range r.roster.members {
			r.roster.members[j].Replaced = r.roster.members[j].ID == l.ID
		}
	case hasData && record.MemberID != "" || !hasData && record.ClusterID != "":
		h.replaced = true // the member is gone from the list already
	}
	return nil
}

// replacedScript stops the member and moves the data directory $1 to $2.
const replacedScript = `set -eu
unit_stop 2>/dev/null || :
if [ -d "$1" ] && [ ! -e "$2" ]; then
	mv -fT "$1" "$2"
fi`

// PutReplacedAside prepares the host of a member that was replaced for the new
// one: what it remembers of the old one is forgotten, and the data is moved
// aside. Nothing is deleted.
func PutReplacedAside(ctx context.Context, h *Host) error {
	if !h.replaced {
		return nil
	}
	if h.Facts.Data == observed.DataFilled {
		err := h.changeByScript(ctx, fmt.Sprintf("moved the data in %s aside, as %s", h.Want.Member.DataDir, path.Base(h.aside())), remote.Command{
			Label: "move the data aside", Functions: runner.Functions(h.Want), Script: replacedScript, Args: []string{h.Want.Member.DataDir, h.aside()},
		})
		if err != nil {
			return err
		}
		h.Facts.Data = observed.DataAbsent
		delete(h.Facts.Files, h.Want.Member.DataDir)
		if err := MakeDataDirectory(ctx, h); err != nil {
			return err
		}
	} else if h.Facts.Unit.Running() { // and ends again and again
		_, err := h.Remote.Run(ctx, remote.Command{Label: "stop " + h.unit().Title(), Functions: runner.Functions(h.Want), Script: "unit_stop"})
		if err != nil {
			return err
		}
	}
	h.Facts.Unit.Active = "inactive"
	record := h.Facts.Record
	record.ClusterID, record.MemberID = "", ""
	return writeRecord(ctx, h, record, "took the cluster and member ID from "+h.Want.Paths.Record)
}

// aside is where the data of the member that was replaced goes.
func (h *Host) aside() string {
	return h.Want.Member.DataDir + ".replaced-" + h.Facts.Record.MemberID
}

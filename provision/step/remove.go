package step

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"muster/provision/observed"
	"muster/provision/plan"
	"muster/provision/remote"
	"muster/provision/runner"
)

// removalOf lists what Reset would remove from the host, one line each, from
// the facts. It is empty when the host has nothing of ours.
func removalOf(h *Host, withData bool) []string {
	var lines []string
	if h.Facts.Unit.Loaded {
		lines = append(lines, "stop and disable "+h.unit().Title())
	}
	lines = append(lines, plan.BackupLeftovers(h.Want.Paths, h.Facts)...)
	lines = append(lines, ours(h)...)
	for _, image := range h.Facts.Images {
		lines = append(lines, "the image "+image)
	}
	if withData && hasData(h) {
		lines = append(lines, h.Want.Member.DataDir+" AND ALL DATA IN IT")
	}
	if withData && h.Facts.Record != (observed.Record{}) {
		lines = append(lines, h.Want.Paths.Record)
	}
	if withData && h.Facts.OwnUser {
		lines = append(lines, "the user "+h.Want.Account.User)
	}
	return lines
}

func hasData(h *Host) bool {
	return h.Facts.Data == observed.DataFilled || h.Facts.Data == observed.DataEmpty
}

// ours are the files and links of ours that exist, without the record and the
// data.
func ours(h *Host) []string {
	var paths []string
	for _, f := range h.Want.Files {
		if _, exists := h.Facts.Files[f.Path]; exists {
			paths = append(paths, f.Path)
		}
	}
	for _, l := range h.Want.Links {
		if h.Facts.Files[l.Path].Target == l.Target {
			paths = append(paths, l.Path)
		}
	}
	for _, b := range h.Want.Binaries {
		if _, exists := h.Facts.Files[b.Path]; exists {
			paths = append(paths, b.Path)
		}
	}
	return paths
}

// CheckRemoval refuses to touch hosts on which something else than the
// cluster of the inventory may be installed.
func CheckRemoval(withData bool) func(context.Context, *Run) error {
	return func(_ context.Context, r *Run) error {
		var found PreflightError
		for _, h := range r.Hosts {
			add := func(format string, args ...any) {
				found.Problems = append(found.Problems, Problem{h.Name, fmt.Sprintf(format, args...)})
			}
			if p := h.Remote.Privilege(); p.Problem != "" {
				add("%s cannot become root without a password (%s); allow it, or log in as root", p.User, p.Problem)
			}
			record := h.Facts.Record
			switch {
			case record != (observed.Record{}) && record.Cluster != h.run.Cluster.Name:
				add("this host belongs to cluster %q, not to %q; use that cluster's inventory", record.Cluster, h.run.Cluster.Name)
			case record == (observed.Record{}) && withData && h.Facts.Data == observed.DataFilled:
				add("%s holds data and nothing says that it is this cluster's; remove it by hand if it may go", h.Want.Member.DataDir)
			case withData && record != (observed.Record{}) && record.DataDir != h.Want.Member.DataDir:
				add("the member's data is in %s and the inventory says %s; write dataDir: %[1]s", record.DataDir, h.Want.Member.DataDir)
			case withData && h.Facts.Data == observed.DataLink:
				add("%s is a symbolic link; name the real directory as dataDir", h.Want.Member.DataDir)
			}
		}
		for _, a := range r.APIServers {
			if a.controller == nil && !a.OnlyCalls {
				examination{Host: a, found: &found}.privilege()
			}
		}
		if len(found.Problems) > 0 {
			return &found
		}
		return nil
	}
}

// ErrDeclined is returned when the operator does not confirm.
var ErrDeclined = errors.New("nothing was removed")

// Confirm shows what is to be removed and goes on only if that is accepted.
func Confirm(withData bool, ask func(map[string][]string) (bool, error)) func(context.Context, *Run) error {
	return func(_ context.Context, r *Run) error {
		removal := map[string][]string{}
		for _, h := range r.Hosts {
			if lines := removalOf(h, withData); len(lines) > 0 {
				removal[h.Name] = lines
			}
		}
		for _, a := range r.APIServers {
			if paths := deliveredTo(a); len(paths) > 0 {
				removal[a.Name] = append(removal[a.Name], paths...)
			}
		}
		if len(removal) == 0 {
			return nil
		}
		ok, err := ask(removal)
		if err != nil {
			return &localError{err}
		}
		if !ok {
			return ErrDeclined
		}
		return nil
	}
}

// StopMember stops the member and keeps it from starting at boot.
func StopMember(ctx context.Context, h *Host) error {
	unit := h.unit().Title()
	if !h.Facts.Unit.Loaded {
		return nil
	}
	return h.changeByScript(ctx, "stopped and disabled "+unit, remote.Command{
		Label:     "stop " + unit,
		Functions: runner.Functions(h.Want), Script: `unit_stop && unit_disable`,
	})
}

// RemoveFiles removes the files, links and programs that apply installs, and
// the directories that are empty then.
func RemoveFiles(ctx context.Context, h *Host) error {
	if err := removeImages(ctx, h); err != nil {
		return err
	}
	paths := ours(h)
	if len(paths) == 0 {
		return nil
	}
	h.run.Log.Debug("remove", "host", h.Name, "paths", paths)
	if err := h.changeByScript(ctx, fmt.Sprintf("removed the programs, the unit and the certificates (%d files)", len(paths)), remote.Command{
		Label:     "remove the installed files",
		Functions: runner.Functions(h.Want), Script: `rm -f -- "$@" && unit_reload && rm -f ` + h.Want.Paths.RestartMark,
		Args: paths,
	}); err != nil {
		return err
	}
	return removeEmptyDirectories(ctx, h)
}

func removeImages(ctx context.Context, h *Host) error {
	if len(h.Facts.Images) == 0 {
		return nil
	}
	return h.changeByScript(ctx, "removed "+strings.Join(h.Facts.Images, " and "), remote.Command{
		Label: "remove the images", Functions: runner.ImageFunctions, Script: "image_tidy ''",
	})
}

func removeEmptyDirectories(ctx context.Context, h *Host) error {
	for _, d := range slices.Backward(h.Want.Directories) {
		if d.Data || d.Shared {
			continue
		}
		_, err := h.Remote.Run(ctx, remote.Command{
			Label:  "remove " + d.Path + " if it is empty",
			Script: `if [ -d "$1" ] && [ -z "$(ls -A "$1")" ]; then rmdir "$1"; fi`,
			Args:   []string{d.Path},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// RemoveData removes the member's data, the record that protects it, and the
// account that owned it if that was made for it.
func RemoveData(ctx context.Context, h *Host) error {
	dir := path.Clean(h.Want.Member.DataDir)
	if hasData(h) {
		if err := h.changeByScript(ctx, "removed the data in "+dir, remote.Command{
			Label: "remove the data", Script: `rm -rf -- "$1"`, Args: []string{dir},
		}); err != nil {
			return err
		}
	}
	if h.Facts.Record != (observed.Record{}) {
		if err := h.changeByScript(ctx, "removed "+h.Want.Paths.Record, remote.Command{
			Label: "remove the record", Script: `rm -f -- "$1"`, Args: []string{h.Want.Paths.Record},
		}); err != nil {
			return err
		}
	}
	if err := removeEmptyDirectories(ctx, h); err != nil {
		return err
	}
	return removeAccount(ctx, h)
}

func removeAccount(ctx context.Context, h *Host) error {
	a := h.Want.Account
	if !h.Facts.OwnUser { // there is none, or it was there before
		return nil
	}
	// userdel removes the user's own group on some systems and leaves it on
	// others.
	return h.changeByScript(ctx, "removed the user "+a.User, remote.Command{
		Label:  "remove the user " + a.User,
		Script: `userdel "$1" && if getent group "$2" >/dev/null; then groupdel "$2"; fi`,
		Args:   []string{a.User, a.Group},
	})
}

package step

import (
	"context"
	"fmt"
	"slices"

	"muster/provision/desired"
	"muster/provision/observed"
	"muster/provision/remote"
)

// MakeDirectories makes the directories, and gives those that exist the owner
// and mode they should have. It never looks inside.
func MakeDirectories(ctx context.Context, h *Host) error {
	return makeDirectories(ctx, h, h.Want.Directories)
}

// MakeDataDirectory is MakeDirectories for the data directory alone.
func MakeDataDirectory(ctx context.Context, h *Host) error {
	others := func(d desired.Directory) bool { return !d.Data }
	return makeDirectories(ctx, h, slices.DeleteFunc(slices.Clone(h.Want.Directories), others))
}

func makeDirectories(ctx context.Context, h *Host, wanted []desired.Directory) error {
	for _, d := range wanted {
		have, exists := h.Facts.Files[d.Path]
		sentence := "made " + d.Path
		if exists {
			if d.Shared && (have.Type == "directory" || have.Type == observed.SymbolicLink) {
				continue
			}
			if have.Type == "directory" && have.Mode == d.Mode.Perm() && have.Owner == d.Owner && have.Group == d.Group {
				continue
			}
			sentence = fmt.Sprintf("gave %s the mode %04o and the owner %s:%s", d.Path, d.Mode.Perm(), d.Owner, d.Group)
		}
		err := h.changeByScript(ctx, sentence, remote.Command{
			Label:  "make " + d.Path,
			Script: `install -d -m "$2" -o "$3" -g "$4" "$1"`,
			Args:   []string{d.Path, fmt.Sprintf("%04o", d.Mode.Perm()), d.Owner, d.Group},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

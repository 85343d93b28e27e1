package step

import (
	"context"

	"muster/provision/desired"
	"muster/provision/remote"
)

// MakeAccount makes the group and the system user that the server runs as.
func MakeAccount(ctx context.Context, h *Host) error {
	a := h.Want.Account
	if !h.Facts.HasGroup {
		err := h.changeByScript(ctx, "made the group "+a.Group, remote.Command{
			Label: "make the group " + a.Group, Script: `groupadd --system "$1"`, Args: []string{a.Group},
		})
		if err != nil {
			return err
		}
	}
	if h.Facts.HasUser {
		return nil
	}
	return h.changeByScript(ctx, "made the user "+a.User, remote.Command{
		Label:  "make the user " + a.User,
		Script: `useradd --system --gid "$2" --home-dir "$3" --no-create-home --shell "$4" --comment "$5" "$1"`,
		Args:   []string{a.User, a.Group, a.Home, a.Shell, desired.AccountComment},
	})
}

package step

import (
	"context"
	"fmt"

	"muster/provision/desired"
	"muster/provision/plan"
	"muster/provision/remote"
)

// InstallBackup has the host save snapshots by itself, if the inventory says so,
// and else sees to it that it does not. Snapshots that were saved stay.
func InstallBackup(ctx context.Context, h *Host) error {
	want := h.Want.Backup
	if want == nil {
		return RemoveBackup(ctx, h)
	}
	if err := makeDirectories(ctx, h, []desired.Directory{want.Directory}); err != nil {
		return err
	}
	stale := plan.BackupStale(h.Want.Paths, want, h.Facts)
	for _, f := range want.Files {
		if _, err := h.installUnitFile(ctx, f); err != nil {
			return err
		}
	}
	if !stale {
		return nil
	}
	return h.changeByScript(ctx, "started "+h.Want.Paths.BackupTimer, remote.Command{
		Label:  "start " + h.Want.Paths.BackupTimer,
		Script: `systemctl daemon-reload && systemctl enable "$1" && systemctl restart "$1"`, Args: []string{h.Want.Paths.BackupTimer},
	})
}

// RemoveBackup stops and removes the units of the host's backups, if it has any.
func RemoveBackup(ctx context.Context, h *Host) error {
	if len(plan.BackupLeftovers(h.Want.Paths, h.Facts)) == 0 {
		return nil
	}
	return h.changeByScript(ctx, fmt.Sprintf("stopped and removed %s; what it has saved stays", h.Want.Paths.BackupTimer), remote.Command{
		Label: "remove " + h.Want.Paths.BackupTimer,
		Script: `timer=$1
shift
if [ -e "/etc/systemd/system/$timer" ]; then
	systemctl stop "$timer"
	systemctl disable "$timer"
fi
rm -f -- "$@"
systemctl daemon-reload`,
		Args: append([]string{h.Want.Paths.BackupTimer}, h.Want.Paths.BackupUnits()...),
	})
}

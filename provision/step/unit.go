package step

import (
	"context"

	"muster/provision/remote"
	"muster/provision/runner"
)

// InstallUnit places the unit file once systemd has found nothing wrong with
// it, and lets systemd start the member at boot. The manifest of a static pod is
// placed where the kubelet does not look yet. It runs after everything the
// unit needs is in place: a host that reboots half-way starts nothing that is
// not whole.
//
// A member that joins waits for its unit until it is known whom it joins.
func InstallUnit(ctx context.Context, h *Host) error {
	if h.joins {
		return nil
	}
	unit := h.unit()
	reload := h.Facts.Unit.NeedsReload
	for _, f := range h.Want.Files {
		if f.Path != unit.Path {
			continue
		}
		changed, err := h.installUnitFile(ctx, f)
		if err != nil {
			return err
		}
		reload = reload || changed
	}
	enable := unit.Enabled && !h.Facts.Unit.Enabled
	if reload && !enable && !unit.IsPod() { // enabling reloads
		if _, err := h.Remote.Run(ctx, remote.Command{Label: "reload " + unit.Title(), Functions: runner.Functions(h.Want), Script: "unit_reload"}); err != nil {
			return err
		}
	}
	if enable {
		return h.changeByScript(ctx, "enabled "+unit.Name, remote.Command{
			Label: "enable " + unit.Name, Functions: runner.Functions(h.Want), Script: "unit_enable",
		})
	}
	return nil
}

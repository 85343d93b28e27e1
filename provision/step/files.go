package step

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"muster/provision/desired"
	"muster/provision/remote"
)

// InstallFiles places the certificates and the other files, without the
// units.
func InstallFiles(ctx context.Context, h *Host) error {
	for _, f := range h.Want.Files {
		if f.Path == h.unit().Path {
			continue
		}
		if _, err := h.installFile(ctx, f, ""); err != nil {
			return err
		}
	}
	return Remember(ctx, h)
}

// installFile places one file if the host's differs, and says whether its
// content did.
func (h *Host) installFile(ctx context.Context, f desired.File, check string) (changed bool, err error) {
	have := h.Facts.Files[f.Path]
	file := remote.File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Group: f.Group, Check: check}
	sum := sha256.Sum256(f.Content)
	if have.SHA256 == hex.EncodeToString(sum[:]) {
		return false, h.setAttributes(ctx, file, have)
	}
	if err := h.willRestart(ctx, f.Path); err != nil {
		return false, err
	}
	return true, h.Change(ctx, "wrote "+f.Path, func(ctx context.Context) error {
		return h.Remote.WriteFile(ctx, file, f.Content)
	})
}

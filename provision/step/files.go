package step

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"muster/provision/desired"
	"muster/provision/remote"
)

// InstallFiles places the certificates and the other files, without the
// units. Those that differ are replaced together: no member finds a
// certificate beside the key of another one.
func InstallFiles(ctx context.Context, h *Host) error {
	var files []remote.File
	var contents [][]byte
	var sentences []string
	for _, f := range h.Want.Files {
		if f.Path == h.unit().Path {
			continue
		}
		differs, err := h.prepareFile(ctx, f)
		if err != nil {
			return err
		}
		if differs {
			files, contents, sentences = append(files, remoteFile(f)), append(contents, f.Content), append(sentences, "wrote "+f.Path)
		}
	}
	if len(files) > 0 {
		err := h.changeTogether(ctx, sentences, func(ctx context.Context) error {
			return h.Remote.WriteTogether(ctx, files, contents)
		})
		if err != nil {
			return err
		}
	}
	return Remember(ctx, h)
}

// installUnitFile places a unit if the host's differs and systemd finds nothing
// wrong with the new one, and says whether it did.
func (h *Host) installUnitFile(ctx context.Context, f desired.File) (changed bool, err error) {
	differs, err := h.prepareFile(ctx, f)
	if err != nil || !differs {
		return false, err
	}
	file := remoteFile(f)
	if !h.unit().IsPod() {
		file.Check = `systemd-analyze verify --man=no "$new"`
	}
	return true, h.Change(ctx, "wrote "+f.Path, func(ctx context.Context) error {
		return h.Remote.WriteFile(ctx, file, f.Content)
	})
}

// prepareFile says whether the content of the host's file differs. If it does,
// it notes that a restart is due; if not, it corrects mode and owner.
func (h *Host) prepareFile(ctx context.Context, f desired.File) (differs bool, err error) {
	have := h.Facts.Files[f.Path]
	sum := sha256.Sum256(f.Content)
	if f.Kept || have.SHA256 == hex.EncodeToString(sum[:]) {
		return false, h.setAttributes(ctx, remoteFile(f), have)
	}
	return true, h.willRestart(ctx, f.Path)
}

func remoteFile(f desired.File) remote.File {
	return remote.File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Group: f.Group}
}

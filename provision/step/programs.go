package step

import (
	"context"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sync/errgroup"

	"muster/provision/desired"
	"muster/provision/observed"
	"muster/provision/remote"
	"muster/provision/runner"
)

// InstallPrograms uploads the programs that differ, and links the names they
// also go by.
func InstallPrograms(ctx context.Context, h *Host) error {
	var missing []upload
	for _, b := range h.Want.Binaries {
		p, err := h.program(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		file := remote.File{Path: b.Path, Mode: b.Mode, Owner: b.Owner, Group: b.Group}
		if have := h.Facts.Files[b.Path]; have.SHA256 == p.SHA256() {
			err = h.setAttributes(ctx, file, have)
		} else {
			missing = append(missing, upload{file, p})
			if have.SHA256 != "" {
				err = h.beforeUpgrade(ctx)
			}
			if err == nil {
				err = h.willRestart(ctx, b.Path)
			}
		}
		if err != nil {
			return err
		}
	}
	if err := uploadAll(ctx, h, missing); err != nil {
		return err
	}
	for _, l := range h.Want.Links {
		if err := link(ctx, h, l); err != nil {
			return err
		}
	}
	return importImage(ctx, h)
}

// importImage has the container runtime read the image that was uploaded.
func importImage(ctx context.Context, h *Host) error {
	image := h.Want.Image
	if image == "" || slices.Contains(h.Facts.Images, image) {
		return nil
	}
	i := slices.IndexFunc(h.Want.Binaries, func(b desired.Binary) bool { return b.Program == desired.ImageProgram })
	err := h.changeByScript(ctx, "imported the image "+image, remote.Command{
		Label: "import the image", Functions: runner.ImageFunctions, Script: `image_import "$1" "$2"`, Args: []string{h.Want.Binaries[i].Path, image},
	})
	if err == nil {
		h.Facts.Images = append(h.Facts.Images, image)
	}
	return err
}

// TidyImages has the container runtime forget the images that the member ran
// from before.
func TidyImages(ctx context.Context, h *Host) error {
	image := h.Want.Image
	if image == "" || !slices.ContainsFunc(h.Facts.Images, func(have string) bool { return have != image }) {
		return nil
	}
	return h.changeByScript(ctx, "removed the images of the member but for "+image, remote.Command{
		Label: "remove old images", Functions: runner.ImageFunctions, Script: `image_tidy "$1"`, Args: []string{image},
	})
}

// program is what to install on a host of this architecture.
func (h *Host) program(ctx context.Context, b desired.Binary) (*remote.Payload, error) {
	if b.Program == desired.ImageProgram {
		_, image, err := h.run.Programs.Image(ctx, b.Source, goArch(h.Facts.Machine))
		return image, err
	}
	return h.run.Programs.Find(ctx, b.Program, b.Source, goArch(h.Facts.Machine))
}

type upload struct {
	file    remote.File
	program *remote.Payload
}

// uploadAll uploads programs side by side.
func uploadAll(ctx context.Context, h *Host, uploads []upload) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, u := range uploads {
		group.Go(func() error {
			sentence := fmt.Sprintf("installed %s (%.1f MiB)", u.file.Path, float64(u.program.Size())/(1<<20))
			return h.Change(ctx, sentence, func(ctx context.Context) error {
				return h.Remote.Upload(ctx, u.file, u.program, h.progress(path.Base(u.file.Path)))
			})
		})
	}
	return group.Wait()
}

// link makes a link, unless something that is not ours has the name.
func link(ctx context.Context, h *Host, l desired.Link) error {
	have, exists := h.Facts.Files[l.Path]
	switch {
	case exists && have.Target == l.Target:
		return nil
	case exists:
		h.warn(fmt.Sprintf("%s exists and is not muster's; left alone", l.Path))
		return nil
	}
	return h.changeByScript(ctx, fmt.Sprintf("linked %s to %s", l.Path, l.Target), remote.Command{
		Label: "link " + l.Path, Script: `ln -sfn "$2" "$1"`, Args: []string{l.Path, l.Target},
	})
}

// setAttributes corrects mode and owner of a file whose content is right.
func (h *Host) setAttributes(ctx context.Context, f remote.File, have observed.FileFact) error {
	if have.Mode == f.Mode.Perm() && have.Owner == f.Owner && have.Group == f.Group {
		return nil
	}
	return h.changeByScript(ctx, fmt.Sprintf("gave %s the mode %04o and the owner %s:%s", f.Path, f.Mode.Perm(), f.Owner, f.Group), remote.Command{
		Label:  "set the attributes of " + f.Path,
		Script: `chown "$3" "$1" && chmod "$2" "$1"`,
		Args:   []string{f.Path, fmt.Sprintf("%04o", f.Mode.Perm()), f.Owner + ":" + f.Group},
	})
}

// willRestart notes on the host, before a file is changed, that the running
// member has to be restarted because of it.
func (h *Host) willRestart(ctx context.Context, path string) error {
	if h.restart || !h.Facts.Unit.Running() || !slices.Contains(h.unit().RestartOn, path) {
		return nil
	}
	_, err := h.Remote.Run(ctx, remote.Command{
		Label: "note that a restart is due", Script: `: > "$1"`, Args: []string{h.Want.Paths.RestartMark},
	})
	h.restart = err == nil
	return err
}

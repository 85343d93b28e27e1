package provision

import (
	"context"
	"fmt"
	"io"

	"go.etcd.io/etcd/api/v3/version"

	"muster/provision/image"
)

// ImageName is the name that the image of one architecture has on the hosts of a
// stacked cluster. The source is the path of the server that the inventory gives.
func ImageName(ctx context.Context, o Options, source, architecture string) (string, error) {
	programs, err := newPrograms(o.withDefaults()).imagePrograms(ctx, source, architecture)
	if err != nil {
		return "", err
	}
	return image.Name(version.Version, programs), nil
}

// Image writes the container image of the server and its tools for the
// architectures, Go's names of them, as a tar archive in the OCI image layout.
// It returns the image's name, which follows from its content, and its digest.
func Image(ctx context.Context, o Options, w io.Writer, architectures []string) (name, digest string, err error) {
	found := newPrograms(o.withDefaults())
	var platforms []image.Programs
	for _, architecture := range architectures {
		programs, err := found.imagePrograms(ctx, "", architecture)
		if err != nil {
			return "", "", err
		}
		platforms = append(platforms, programs)
	}
	name = image.Name(version.Version, platforms...)
	if digest, err = image.Write(w, name, platforms...); err != nil {
		return "", "", fmt.Errorf("make the image %s: %w", name, err)
	}
	return name, digest, nil
}

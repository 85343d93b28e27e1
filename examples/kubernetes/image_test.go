package kubernetes

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// writeImage makes an archive for a container runtime to import: an image of
// that name with the programs, whose paths in the image lead to their files
// here. A path that leads to another one of the image is a symbolic link.
func writeImage(archive, tag string, programs map[string]string, cmd ...string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for file, from := range programs {
		if _, ok := programs[from]; ok {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: file, Linkname: path.Join("/", from), Mode: 0o777})
		} else {
			err = addProgram(w, file, from)
		}
		if err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil })
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Env: []string{"PATH=/usr/local/bin:/bin"}, Cmd: cmd}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	return tarball.WriteToFile(archive, ref, image)
}

func addProgram(w *tar.Writer, file, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("put %s into an image: %w", file, err)
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o755, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

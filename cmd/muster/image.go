package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"muster/provision"
)

func newImageCommand(a *app) *cobra.Command {
	var architectures []string
	var binaryDir string
	cmd := &cobra.Command{
		Use:   "image FILE",
		Short: "write the server's container image to a file",
		Long: `image writes the container image of the server as a tar archive in the OCI image
layout. It holds etcd, which is musterd, etcdctl, etcdutl and sh, and nothing
else. Its name follows from its content: the same programs give the same bytes
and the same name. There is no registry; a host's container runtime imports it:

  ctr --namespace k8s.io images import FILE`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.image(cmd.Context(), args[0], provision.Options{BinaryDir: binaryDir, Reporter: a.newReporter(nil)}, architectures)
		},
	}
	cmd.Flags().StringSliceVar(&architectures, "arch", imageArchitectures(), "architectures to write it for")
	cmd.Flags().StringVar(&binaryDir, "binary-dir", "", "directory of musterd-linux-ARCH and musterctl-linux-ARCH to put into it")
	return cmd
}

// imageArchitectures are those that there are programs for.
func imageArchitectures() []string { return []string{"amd64", "arm64"} }

func (a *app) image(ctx context.Context, path string, o provision.Options, architectures []string) error {
	for _, architecture := range architectures {
		if !slices.Contains(imageArchitectures(), architecture) {
			return &usageError{fmt.Errorf("--arch is %q", architecture), "write amd64, arm64 or both with a comma between"}
		}
	}
	var name, digest string
	err := writeWhole(path, func(w io.Writer) (err error) {
		name, digest, err = provision.Image(ctx, o, w, architectures)
		return err
	})
	if err != nil {
		return err
	}
	if a.wantsJSON() {
		return json.NewEncoder(a.out).Encode(map[string]string{"path": path, "name": name, "digest": digest})
	}
	_, err = fmt.Fprintf(a.out, "%s\n  name    %s\n  digest  %s\n", path, name, digest)
	return err
}

// writeWhole has a file written: it appears under its name when it is complete.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	if err := write(file); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := errors.Join(file.Chmod(0o644), file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(file.Name(), path)
}

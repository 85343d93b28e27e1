package practice

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// imagesDir is where the container runtime of a practice host keeps images, one
// directory for each, with what the image holds below rootfs.
const imagesDir = "/var/lib/containerd/practice"

// errNoImage is returned for an image that was not imported: there is no
// registry to ask.
var errNoImage = errors.New("ErrImagePull")

// localDomain is of images that only an import brings.
const localDomain = "muster.local/"

func imageDir(name string) string {
	return path.Join(imagesDir, strings.NewReplacer("/", "_", ":", "_").Replace(name))
}

// imageRoot is the root directory of a container of the image on the host.
func (v *view) imageRoot(name string) (string, error) {
	if !strings.HasPrefix(name, localDomain) {
		return "/", nil
	}
	root := path.Join(imageDir(name), "rootfs")
	place, err := v.real(root)
	if err == nil {
		_, err = os.Stat(place)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s", errNoImage, name)
	}
	return root, nil
}

// ctrTool plays containerd's own client, for images.
func ctrTool(c *call) error {
	words := c.args
	if len(words) > 1 && words[0] == "-n" {
		words = words[2:]
	}
	if len(words) > 4 && words[0] == "run" && words[1] == "--rm" {
		root, err := c.files.imageRoot(words[2])
		if err != nil {
			return err
		}
		program, ok := c.program(c.dir, path.Join(root, "usr/local/bin", words[4]))
		if !ok {
			return c.fail(1, "%s is not in the image", words[4])
		}
		c.args = words[5:]
		return c.runProgram(program)
	}
	if len(words) < 2 || words[0] != "images" {
		return c.fail(exitUsage, "practice host: only images are known")
	}
	command, args := words[1], slices.DeleteFunc(words[2:], func(w string) bool { return strings.HasPrefix(w, "-") })
	switch {
	case command == "ls":
		return c.listImages()
	case command == "import" && len(args) == 1:
		return c.importImages(args[0])
	case command == "label" && len(args) == 2:
		_, err := c.files.imageRoot(args[0])
		return err
	case command == "rm" && len(args) == 1:
		return c.files.remove(imageDir(args[0]), true)
	}
	return c.fail(exitUsage, "practice host: images %s is not known so", command)
}

func (c *call) listImages() error {
	dir, err := c.files.real(imagesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*", "name"))
	if err != nil {
		return err
	}
	for _, file := range names {
		name, err := os.ReadFile(file) //nolint:gosec // in the host's own directory
		if err != nil {
			return err
		}
		fmt.Fprintln(c.out, string(name))
	}
	return nil
}

// importImages reads the images of an OCI layout in a tar archive.
func (c *call) importImages(archive string) error {
	f, err := c.files.open(c.path(archive))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	dir, err := os.MkdirTemp("", "practice-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	if err := untar(f, dir, func(string) bool { return true }); err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range manifest.Manifests {
		name := d.Annotations["io.containerd.image.name"]
		nested, err := index.ImageIndex(d.Digest)
		if err != nil {
			return err
		}
		if err := c.unpack(name, nested); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	return nil
}

// unpack unpacks what a kubelet would run of the image's one platform.
func (c *call) unpack(name string, index v1.ImageIndex) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) != 1 {
		return fmt.Errorf("practice host: %d platforms are in it, and one is expected", len(manifest.Manifests))
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return err
	}
	root, err := c.files.makeDirectory(path.Join(imageDir(name), "rootfs"))
	if err != nil {
		return err
	}
	content := mutate.Extract(image)
	defer content.Close() //nolint:errcheck // it was only read
	if err := untar(content, root, func(file string) bool { return strings.HasPrefix(file, "usr/") }); err != nil {
		return err
	}
	return c.files.put(path.Join(imageDir(name), "name"), name)
}

// untar writes the directories and files of an archive below a directory.
func untar(r io.Reader, dir string, wanted func(name string) bool) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) || !wanted(h.Name) {
			continue
		}
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755) //nolint:gosec // programs are no secret
		case tar.TypeReg:
			err = writeTo(name, in)
		}
		if err != nil {
			return err
		}
	}
}

func writeTo(name string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // programs are no secret
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755) //nolint:gosec // likewise
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r) //nolint:gosec // the archive is our own
	return errors.Join(err, f.Close())
}

// podLog returns what writes the lines of a container into the next file of a
// directory, the way a container runtime does for the kubelet.
func (v *view) podLog(dir string) (func(line string), error) {
	place, err := v.makeDirectory(dir)
	if err != nil {
		return nil, err
	}
	next := 0
	for {
		if _, err := os.Stat(filepath.Join(place, strconv.Itoa(next)+".log")); err != nil {
			break
		}
		next++
	}
	name := filepath.Join(place, strconv.Itoa(next)+".log")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return nil, err
	}
	return func(line string) {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // in the host's own directory
		if err != nil {
			return // lost, as on a full disk
		}
		_, _ = fmt.Fprintf(f, "%s stderr F %s\n", time.Now().UTC().Format(time.RFC3339Nano), line)
		_ = f.Close()
	}, nil
}

// psTool plays ps -C NAME -o pid=,args=, of what the units run.
func psTool(c *call) error {
	f := c.flags()
	name := f.StringP("command", "C", "", "")
	format := f.StringP("format", "o", "", "")
	if err := c.parse(f); err != nil {
		return err
	}
	if *name == "" || *format != "pid=,args=" {
		return c.fail(exitUsage, "practice host: only -C NAME -o pid=,args= is known")
	}
	found := false
	c.host.units.locked(func() {
		for _, u := range c.host.units.units {
			if u.pid != 0 && u.service != nil && path.Base(u.service.Exec[0]) == *name {
				found = true
				fmt.Fprintf(c.out, "%7d %s\n", u.pid, strings.Join(u.service.Exec, " "))
			}
		}
	})
	if !found {
		return exitStatus(1)
	}
	return nil
}

// killTool plays kill PID, for what the units run. A pod's process stays away when
// there is no kubelet to start it again.
func killTool(c *call) error {
	if len(c.args) != 1 {
		return c.fail(exitUsage, "practice host: only kill PID is known")
	}
	pid, err := strconv.Atoi(c.args[0])
	if err != nil {
		return c.fail(exitUsage, "%s is no process", c.args[0])
	}
	found := ""
	c.host.units.locked(func() {
		for name, u := range c.host.units.units {
			if u.pid == pid {
				found = name
			}
		}
	})
	switch {
	case found == "":
		return c.fail(1, "(%d) - No such process", pid)
	case strings.HasPrefix(found, podPrefix) && !c.host.runsKubelet():
		return c.host.removePod(c.ctx, found)
	}
	return c.host.units.kill(found, syscall.SIGTERM)
}

// makeDirectory makes a directory of root's and returns its place on this
// machine.
func (v *view) makeDirectory(name string) (string, error) {
	if err := v.ownDirectory(name, 0o755, owner{}); err != nil {
		return "", err
	}
	return v.real(name)
}

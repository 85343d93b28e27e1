// Package image makes the container image of the server, for hosts whose
// kubelet runs it: etcd, etcdctl, etcdutl and sh, and nothing else. There is no
// registry: the image is a file that is imported into the container runtime.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Repository is the name of the image without its tag. The domain is reserved
// by RFC 6762 for the local network: nobody can be asked for it.
const Repository = "muster.local/etcd"

// namedByContainerd is the annotation from which containerd, and so ctr and
// nerdctl, take the name of an imported image.
const namedByContainerd = "io.containerd.image.name"

// Programs is what the image of one platform holds.
type Programs struct {
	Architecture string // Go's name for it, such as amd64
	Server       []byte // musterd or etcd
	Client       []byte // musterctl
}

// Name is the image's full name. It follows from the programs: other programs
// are another image.
func Name(version string, platforms ...Programs) string {
	hash := sha256.New()
	for _, p := range sorted(platforms) {
		for _, part := range [][]byte{[]byte(p.Architecture), p.Server, p.Client} {
			sum := sha256.Sum256(part)
			hash.Write(sum[:])
		}
	}
	return fmt.Sprintf("%s:%s-%s", Repository, version, hex.EncodeToString(hash.Sum(nil))[:12])
}

func sorted(platforms []Programs) []Programs {
	return slices.SortedFunc(slices.Values(platforms), func(a, b Programs) int { return cmp.Compare(a.Architecture, b.Architecture) })
}

// Write writes the image, with one manifest for each platform, as a tar archive
// in the OCI image layout, and returns its digest. The same programs give the
// same bytes.
func Write(w io.Writer, name string, platforms ...Programs) (digest string, err error) {
	var index v1.ImageIndex = empty.Index
	for _, p := range sorted(platforms) {
		one, err := build(p)
		if err != nil {
			return "", fmt.Errorf("make the image for linux/%s: %w", p.Architecture, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: p.Architecture}},
		})
	}
	index = mutate.IndexMediaType(index, types.OCIImageIndex)
	hash, err := index.Digest()
	if err != nil {
		return "", fmt.Errorf("make the image: %w", err)
	}
	dir, err := os.MkdirTemp("", "muster-image-")
	if err != nil {
		return "", fmt.Errorf("make the image: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return "", fmt.Errorf("write the image: %w", err)
	}
	_, tag, _ := strings.Cut(name, ":")
	err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		namedByContainerd: name, "org.opencontainers.image.ref.name": tag,
	}))
	if err != nil {
		return "", fmt.Errorf("write the image: %w", err)
	}
	if err := archive(w, dir); err != nil {
		return "", fmt.Errorf("write the image: %w", err)
	}
	return hash.String(), nil
}

// build makes the image of one platform, with everything in one layer.
func build(p Programs) (v1.Image, error) {
	content, err := layer(p)
	if err != nil {
		return nil, err
	}
	files, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	with, err := mutate.Append(base, mutate.Addendum{Layer: files, History: v1.History{CreatedBy: "muster"}})
	if err != nil {
		return nil, err
	}
	file, err := with.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", p.Architecture, v1.Time{Time: time.Unix(0, 0).UTC()}
	file.Config = v1.Config{
		Env: []string{
			"PATH=/usr/local/bin:/bin",
			// Where kubeadm's pod has its certificates: "etcdctl get /" in the pod
			// needs no flags.
			"MUSTERCTL_CERTIFICATES=/etc/kubernetes/pki/etcd",
		},
		Cmd: []string{"/usr/local/bin/etcd"},
	}
	return mutate.ConfigFile(with, file)
}

// layer is the file system of the image.
func layer(p Programs) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	var failed error
	add := func(h tar.Header, content []byte) {
		h.Size, h.ModTime, h.Format = int64(len(content)), time.Unix(0, 0), tar.FormatPAX
		if failed == nil {
			failed = w.WriteHeader(&h)
		}
		if failed == nil {
			_, failed = w.Write(content)
		}
	}
	dir := func(name string, mode int64) { add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil) }
	file := func(name string, mode int64, content []byte) {
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
	}
	link := func(name, target string) {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
	}
	dir("bin/", 0o755)
	link("bin/sh", "/usr/local/bin/etcdctl")
	dir("etc/", 0o755)
	file("etc/group", 0o644, []byte("root:x:0:\nnonroot:x:65532:\n"))
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n"))
	dir("tmp/", 0o1777)
	dir("usr/", 0o755)
	dir("usr/local/", 0o755)
	dir("usr/local/bin/", 0o755)
	file("usr/local/bin/etcd", 0o755, p.Server)
	file("usr/local/bin/etcdctl", 0o755, p.Client)
	link("usr/local/bin/etcdutl", "etcdctl")
	dir("var/", 0o755)
	dir("var/lib/", 0o755)
	if failed == nil {
		failed = w.Close()
	}
	return out.Bytes(), failed
}

// archive writes a directory, without anything of the machine and the moment.
func archive(w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if entry.IsDir() {
			return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
		}
		content, err := os.ReadFile(path) //nolint:gosec // in our own temporary directory
		if err != nil {
			return err
		}
		if err := out.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}); err != nil {
			return err
		}
		_, err = out.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	return out.Close()
}

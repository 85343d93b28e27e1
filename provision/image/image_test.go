package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var (
	amd64 = Programs{Architecture: "amd64", Server: []byte("server"), Client: []byte("client")}
	arm64 = Programs{Architecture: "arm64", Server: []byte("another server"), Client: []byte("another client")}
)

// The archive is a valid OCI layout with one image for each platform, which
// holds the programs under the names that people and manifests call.
func TestWrite(t *testing.T) {
	var out bytes.Buffer
	name := Name("3.7.3", arm64, amd64)
	digest, err := Write(&out, name, arm64, amd64)
	if err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(unpack(t, out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Errorf("the image is not valid: %v", err)
	}
	outer, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(outer.Manifests) != 1 || outer.Manifests[0].Annotations["io.containerd.image.name"] != name || outer.Manifests[0].Digest.String() != digest {
		t.Fatalf("the layout names %+v, want %s with the digest %s", outer.Manifests, name, digest)
	}
	images, err := index.ImageIndex(outer.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := images.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Programs{amd64, arm64} {
		at := manifest.Manifests[i]
		if at.Platform.Architecture != want.Architecture || at.Platform.OS != "linux" {
			t.Errorf("manifest %d is for %v, want linux/%s", i, at.Platform, want.Architecture)
		}
		one, err := images.Image(at.Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := one.Layers()
		if err != nil {
			t.Fatal(err)
		}
		if len(layers) != 1 {
			t.Fatalf("%d layers", len(layers))
		}
		files, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		wanted := map[string]string{
			"bin/": "", "bin/sh": "-> /usr/local/bin/etcdctl", "tmp/": "", "etc/": "", "var/": "", "var/lib/": "",
			"etc/passwd": "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n",
			"etc/group":  "root:x:0:\nnonroot:x:65532:\n",
			"usr/":       "", "usr/local/": "", "usr/local/bin/": "",
			"usr/local/bin/etcd": string(want.Server), "usr/local/bin/etcdctl": string(want.Client), "usr/local/bin/etcdutl": "-> etcdctl",
		}
		if diff := cmp.Diff(wanted, contents(t, files)); diff != "" {
			t.Errorf("the file system for %s (-want +got):\n%s", want.Architecture, diff)
		}
	}
}

// The same programs give the same bytes and the same name, others another one.
func TestReproducible(t *testing.T) {
	write := func(platforms ...Programs) (string, []byte) {
		var out bytes.Buffer
		name := Name("3.7.3", platforms...)
		if _, err := Write(&out, name, platforms...); err != nil {
			t.Fatal(err)
		}
		return name, out.Bytes()
	}
	name, first := write(amd64, arm64)
	again, second := write(arm64, amd64)
	if name != again || !bytes.Equal(first, second) {
		t.Errorf("%s and %s, %d and %d bytes, differ", name, again, len(first), len(second))
	}
	if !strings.HasPrefix(name, "muster.local/etcd:3.7.3-") {
		t.Errorf("the name is %s", name)
	}
	if other, _ := write(amd64); other == name {
		t.Error("an image for fewer platforms has the same name")
	}
	changed := amd64
	changed.Server = []byte("a newer server")
	if other, _ := write(changed, arm64); other == name {
		t.Error("an image with another server has the same name")
	}
}

func unpack(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range contents(t, io.NopCloser(bytes.NewReader(archive))) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// contents reads a tar archive; a link is "-> target".
func contents(t *testing.T, archive io.ReadCloser) map[string]string {
	t.Helper()
	defer archive.Close()
	files := map[string]string{}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			content = []byte("-> " + h.Linkname)
		}
		files[h.Name] = string(content)
	}
}

package replica

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPackAndUnpack(t *testing.T) {
	from := t.TempDir()
	content := map[string]string{
		"CURRENT": "x", "empty": "", "exact": strings.Repeat("b", tarBlock), "over": strings.Repeat("c", tarBlock+1),
		filepath.Join("sub", "deep", "file"): strings.Repeat("d", 100_000),
		strings.Repeat("n", 99):              "long name",
	}
	for name, text := range content {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(from, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(from, name), text)
	}
	stream, size, err := packDirectory(from)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if n, err := io.Copy(&packed, stream); err != nil || n != size {
		t.Fatalf("%d bytes came, %d were announced (%v)", n, size, err)
	}
	into := filepath.Join(t.TempDir(), "into")
	u := newUnpacker(into)
	if _, err := io.Copy(u, bytes.NewReader(packed.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range content {
		got, err := os.ReadFile(filepath.Join(into, name))
		if err != nil || string(got) != text {
			t.Errorf("%s holds %d bytes (%v), want %d", name, len(got), err, len(text))
		}
	}

	t.Run("truncated", func(t *testing.T) {
		for _, length := range []int{1, tarBlock, tarBlock + 10, packed.Len() / 2} {
			u := newUnpacker(filepath.Join(t.TempDir(), "into"))
			_, _ = io.Copy(u, bytes.NewReader(packed.Bytes()[:length])) // the verdict is Close's
			u.abort()
		}
		u := newUnpacker(filepath.Join(t.TempDir(), "into"))
		if _, err := io.Copy(u, bytes.NewReader(packed.Bytes()[:packed.Len()/2])); err != nil {
			t.Fatal(err)
		}
		if err := u.Close(); err == nil {
			t.Error("half an archive is accepted")
		}
	})
}

func TestUnpackRefusesWhatIsNotAStore(t *testing.T) {
	for name, header := range map[string]tar.Header{
		"parent":    {Name: "../outside", Typeflag: tar.TypeReg},
		"hidden up": {Name: "a/../../outside", Typeflag: tar.TypeReg},
		"absolute":  {Name: "/etc/outside", Typeflag: tar.TypeReg},
		"symlink":   {Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
		"hard link": {Name: "link", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
		"device":    {Name: "null", Typeflag: tar.TypeChar},
		"directory": {Name: "dir/", Typeflag: tar.TypeDir},
		"empty":     {Name: "", Typeflag: tar.TypeReg},
	} {
		t.Run(name, func(t *testing.T) {
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			if err := w.WriteHeader(&header); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			if err := unpack(&archive, filepath.Join(root, "a", "b")); err == nil {
				t.Error("accepted")
			}
			if _, err := os.Lstat(filepath.Join(root, "outside")); err == nil {
				t.Error("a file was written outside the directory")
			}
		})
	}
}

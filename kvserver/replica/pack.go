package replica

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	tarBlock   = 512
	tarTrailer = 2 * tarBlock
)

// packDirectory streams the regular files of dir as a tar archive and returns
// its exact size, which raft wants to know before it sends the first byte. The
// files must not change meanwhile.
func packDirectory(dir string) (io.ReadCloser, int64, error) {
	var names []string
	size := int64(tarTrailer)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		names = append(names, name)
		size += tarBlock + (info.Size()+tarBlock-1)/tarBlock*tarBlock
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the checkpoint %s: %w", dir, err)
	}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(pack(writer, dir, names)) }()
	return reader, size, nil
}

func pack(w io.Writer, dir string, names []string) error {
	archive := tar.NewWriter(w)
	for _, name := range names {
		if err := packFile(archive, dir, name); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	return archive.Close()
}

func packFile(archive *tar.Writer, dir, name string) error {
	file, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: 0o600, Size: info.Size()}
	if info.Size() >= 8<<30 {
		header.Format = tar.FormatGNU // sizes above 8 GiB, still in one header block
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}

// unpacker writes a tar stream into a directory; Close returns after every
// file, and the directory itself, is synced.
type unpacker struct {
	*io.PipeWriter
	done chan error
}

func newUnpacker(dir string) *unpacker {
	reader, writer := io.Pipe()
	u := &unpacker{writer, make(chan error, 1)}
	go func() {
		err := unpack(reader, dir)
		reader.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		u.done <- err
	}()
	return u
}

func (u *unpacker) Close() error {
	if err := u.PipeWriter.Close(); err != nil {
		return err
	}
	return <-u.done
}

func (u *unpacker) abort() {
	_ = u.CloseWithError(io.ErrUnexpectedEOF)
	<-u.done //nolint:errcheck // what was unpacked is thrown away
}

func unpack(r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	directories := map[string]bool{dir: true}
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := filepath.FromSlash(header.Name)
		if !filepath.IsLocal(name) || header.Typeflag != tar.TypeReg || strings.ContainsRune(name, 0) {
			return fmt.Errorf("the stream holds %q, which is not a plain file inside the store", header.Name)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		directories[filepath.Dir(path)] = true
		if err := writeStreamSync(path, archive); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	// The trailer's padding must be read for the sender's byte count.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	for directory := range directories {
		if err := syncDirectory(directory); err != nil {
			return err
		}
	}
	return syncDirectory(filepath.Dir(dir))
}

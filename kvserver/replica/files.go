package replica

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// writeFileSync replaces path as a whole: a crash leaves the old content or
// the new one.
func writeFileSync(path string, data []byte) error {
	temporary := path + ".tmp"
	if err := writeStreamSync(temporary, bytes.NewReader(data)); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func writeStreamSync(path string, r io.Reader) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := io.Copy(file, r); err != nil {
		return err
	}
	return file.Sync()
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

package etcdsnap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// sector is what the size of every database is a multiple of, by which etcd
// tells whether a checksum follows.
const sector = 512

// Digest returns the checksum at the end of a snapshot, in hexadecimal,
// without comparing it with the content. It says which snapshot this is.
// Errors are ErrIncomplete and those of reading the file.
func Digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	digest, _, err := readDigest(file)
	return hex.EncodeToString(digest), errors.Join(err, file.Close())
}

// readDigest also returns the size of what is before the checksum.
func readDigest(file *os.File) (digest []byte, size int64, err error) {
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	size = info.Size() - sha256.Size
	if size < sector || size%sector != 0 {
		return nil, 0, fmt.Errorf("%s: %w: %d bytes cannot be a database with its checksum; take the snapshot again with etcdctl snapshot save (a copy of member/snap/db is none), or copy it again in full", file.Name(), ErrIncomplete, info.Size())
	}
	digest = make([]byte, sha256.Size)
	if _, err := file.ReadAt(digest, size); err != nil {
		return nil, 0, err
	}
	return digest, size, nil
}

// File is an intact snapshot.
type File struct {
	path   string
	digest string
	db     *bbolt.DB
}

// Open opens a snapshot and compares its content with its checksum, for which
// it reads all of it. Errors are ErrIncomplete, ErrChecksum, ErrForeign, the
// context's and those of reading the file.
func Open(ctx context.Context, path string) (*File, error) {
	digest, err := verify(ctx, path)
	if err != nil {
		return nil, err
	}
	// bbolt does not mind what follows the last page.
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrForeign, err)
	}
	return &File{path: path, digest: digest, db: db}, nil
}

func verify(ctx context.Context, path string) (digest string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	want, size, err := readDigest(file)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	content := io.LimitReader(file, size)
	buffered := bufio.NewReaderSize(readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return content.Read(p)
	}), 1<<20)
	if _, err := io.Copy(sum, buffered); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return "", fmt.Errorf("%s: %w: it was changed or truncated after it was saved; copy it again, or use another snapshot", path, ErrChecksum)
	}
	return hex.EncodeToString(want), nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Digest is the checksum, in hexadecimal.
func (f *File) Digest() string { return f.digest }

// Close closes the file.
func (f *File) Close() error { return f.db.Close() }

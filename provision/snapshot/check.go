// Package snapshot keeps snapshots of a cluster in files: it saves one from a
// member, proves that it is whole, records beside it what it holds, and makes one
// whose revision is higher for a cluster that is restored.
package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
	etcdutl "go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

var (
	// ErrIncomplete is wrapped for a file that does not end with its checksum.
	ErrIncomplete = errors.New("there is no checksum at its end")
	// ErrChecksum is wrapped for a file whose content is not what was saved.
	ErrChecksum = errors.New("its checksum does not match its content")
	// ErrDatabase is wrapped for a file that is what was saved, and not a
	// database of etcd's.
	ErrDatabase = errors.New("it is not a database of etcd's, or a damaged one")
)

// Contents is what a snapshot holds.
type Contents struct {
	// SHA256 is the checksum that the server put at the end of the file, in
	// hexadecimal: it says which snapshot this is.
	SHA256 string `json:"sha256"`
	// Size of the file in bytes, its checksum included.
	Size int64 `json:"size"`
	// Revision is that of the last change.
	Revision int64 `json:"revision"`
	// Keys that exist at Revision.
	Keys int `json:"keys"`
	// Hash of the whole database, as "etcdutl snapshot status" prints it.
	Hash string `json:"hash"`
	// StorageVersion is that of etcd's buckets; empty before etcd 3.6.
	StorageVersion string `json:"storageVersion,omitempty"`
}

// sector is what the size of every database is a multiple of.
const sector = 512

// Check reads a snapshot from beginning to end: the checksum, every page of
// the database and every key. Errors wrap ErrIncomplete, ErrChecksum or
// ErrDatabase, or are the context's and those of reading the file.
func Check(ctx context.Context, path string) (Contents, error) {
	c, err := checksum(ctx, path)
	if err == nil {
		err = c.inspect(path)
	}
	if err != nil {
		return Contents{}, fmt.Errorf("the snapshot %s cannot be used: %w", path, err)
	}
	return c, nil
}

func checksum(ctx context.Context, path string) (c Contents, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	c.Size = info.Size()
	database := c.Size - sha256.Size
	if !info.Mode().IsRegular() || database < sector || database%sector != 0 {
		return c, fmt.Errorf("%w; name a file that muster backup or etcdctl snapshot save has written, copied in full", ErrIncomplete)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, bufio.NewReaderSize(untilDone{ctx, io.LimitReader(f, database)}, 1<<20)); err != nil {
		return c, err
	}
	want, err := io.ReadAll(f)
	if err != nil {
		return c, err
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return c, fmt.Errorf("%w: it was changed or damaged after it was saved; copy it again, or use another one", ErrChecksum)
	}
	c.SHA256 = hex.EncodeToString(want)
	return c, nil
}

// untilDone reads until the context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// inspect reads the database, then as etcd's own tool does. A database that
// contradicts itself makes bbolt panic or fault: on the first reading here,
// where that becomes an error. The tool reads in another goroutine.
func (c *Contents) inspect(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: %v", ErrDatabase, cause)
		}
	}()
	found, err := read(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	status, err := etcdutl.NewV3(zap.NewNop()).Status(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	c.Revision, c.Keys, c.StorageVersion = max(status.Revision, found.compacted), status.TotalKey, status.Version
	if found.placeholder {
		c.Keys--
	}
	c.Hash = fmt.Sprintf("%x", status.Hash)
	return nil
}

// traces are what a database holds beside its keys.
type traces struct {
	// compacted is the revision that a server starting with the database would
	// take for compacted, at least the first of all, 1. When the last change was a
	// deletion that has been compacted, no other trace of that revision is left.
	compacted int64
	// placeholder says that there is a record of nothing, as "etcdutl snapshot
	// restore --bump-revision" leaves one. No client sees it.
	placeholder bool
}

// read reads every page.
func read(path string) (traces, error) {
	found := traces{compacted: 1}
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return found, err
	}
	defer db.Close() //nolint:errcheck // it was only read
	err = db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(schema.Meta.Name())
		if meta == nil || tx.Bucket(schema.Key.Name()) == nil {
			return errors.New("the buckets for keys are missing")
		}
		if err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			ofKeys := bytes.Equal(name, schema.Key.Name())
			return b.ForEach(func(_, record []byte) error {
				found.placeholder = found.placeholder || ofKeys && len(record) == 0
				return nil
			})
		}); err != nil {
			return err
		}
		for _, name := range [][]byte{schema.FinishedCompactKeyName, schema.ScheduledCompactKeyName} {
			if value := meta.Get(name); len(value) >= 8 {
				found.compacted = max(found.compacted, int64(binary.BigEndian.Uint64(value))) //nolint:gosec // revisions are positive
			}
		}
		return nil
	})
	return found, err
}

// FileSum is the SHA-256 of a whole file, its checksum included, in
// hexadecimal.
func FileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

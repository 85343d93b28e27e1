package snapshot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"os"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// Bump writes the snapshot from, of which Check has said what it holds, to the
// file to, as one whose history is compacted up to a revision that is higher by
// so many. The keys are the same. A cluster that is founded from it gives none of
// the revisions up to that one to another change, and answers a client that asks
// for them that they are compacted: such a client reads everything anew, where it would go on with what is no more (etcd issue 16028, and
// "etcdutl snapshot restore --bump-revision --mark-compacted").
//
// One snapshot and one number always give the same file. Errors are those of
// reading and writing, the context's, or say that there is no such revision.
func Bump(ctx context.Context, from string, saved Contents, by int64, to string) error {
	if by < 0 || by > math.MaxInt64-saved.Revision {
		return fmt.Errorf("revision %d cannot be bumped by %d", saved.Revision, by)
	}
	if err := copyDatabase(ctx, from, saved.Size-sha256.Size, to); err != nil {
		return err
	}
	if err := markCompacted(to, saved.Revision+by); err != nil {
		return fmt.Errorf("write %s: %w", to, err)
	}
	return appendChecksum(ctx, to)
}

func copyDatabase(ctx context.Context, from string, size int64, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	return withFile(to, os.O_CREATE|os.O_EXCL, func(f *os.File) error {
		_, err := io.Copy(f, untilDone{ctx, io.LimitReader(source, size)})
		return err
	})
}

// markCompacted writes what is there when a compaction is over. Where nothing of
// a later revision follows, a server goes on from that one. The array of free
// pages gives the same pages each time, and no more are added than are needed.
func markCompacted(path string, revision int64) error {
	db, err := bbolt.Open(path, fileMode, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistArrayType})
	if err != nil {
		return err
	}
	db.AllocSize = 0
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, value := tx.Bucket(schema.Meta.Name()), mvcc.RevToBytes(mvcc.Revision{Main: revision}, mvcc.NewRevBytes())
		for _, name := range [][]byte{schema.ScheduledCompactKeyName, schema.FinishedCompactKeyName} {
			if err := meta.Put(name, value); err != nil {
				return err
			}
		}
		return nil
	})
	if closed := db.Close(); err == nil {
		err = closed
	}
	return err
}

func appendChecksum(ctx context.Context, path string) error {
	return withFile(path, 0, func(f *os.File) error {
		sum := sha256.New()
		if _, err := io.Copy(sum, bufio.NewReaderSize(untilDone{ctx, f}, 1<<20)); err != nil {
			return err
		}
		_, err := f.Write(sum.Sum(nil))
		return err
	})
}

// withFile opens a file for reading and writing, and closes it after do.
func withFile(path string, flag int, do func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|flag, fileMode)
	if err != nil {
		return err
	}
	err = do(f)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

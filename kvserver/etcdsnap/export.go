package etcdsnap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"golang.org/x/sys/unix"

	"muster/kvserver/machine"
)

const (
	// commitBytes is about how much is kept in memory between two commits of
	// the database; it takes a multiple of it.
	commitBytes = 4 << 20
	// keptFree is how much of the disk an export leaves to the member, which
	// cannot go on without.
	keptFree = 128 << 20
	// fillPercent packs the pages of a bucket that is written in order and never
	// changed again.
	fillPercent = 0.95
)

// Exporter makes snapshots, one at a time.
type Exporter struct {
	dir  string
	busy chan struct{}
	free func(dir string) (uint64, error) // bytes a member may still write
}

// NewExporter returns an exporter that makes its files in dir. They have no
// name there: whatever happens to the process, nothing is left behind.
func NewExporter(dir string) *Exporter {
	return &Exporter{dir: dir, busy: make(chan struct{}, 1), free: freeBytes}
}

func freeBytes(dir string) (uint64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, fmt.Errorf("ask for the free space in %s: %w", dir, err)
	}
	return stat.Bavail * uint64(stat.Bsize), nil //nolint:gosec // a block size is positive
}

// Export writes the image into a database, which takes as much disk as the
// history has bytes; memory is bounded. It waits for another export to end.
// Errors are ErrNoRoom, the context's and failures of disk or store. The
// image is not needed any more afterwards.
func (e *Exporter) Export(ctx context.Context, image *machine.Image) (_ *Database, err error) {
	if err := e.take(ctx); err != nil {
		return nil, fmt.Errorf("make a snapshot: %w", err)
	}
	d := &Database{release: func() { <-e.busy }}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make a snapshot: %w", err), d.Close())
		}
	}()
	if err := d.create(e.dir); err != nil {
		return nil, err
	}
	w := &writer{ctx: ctx, db: d.db, room: func() error {
		free, err := e.free(e.dir)
		if err == nil && free < keptFree {
			err = fmt.Errorf("%w: %d MiB are free in %s, %d must stay; make room, or ask another member", ErrNoRoom, free>>20, e.dir, keptFree>>20)
		}
		return err
	}}
	if err := w.write(image); err != nil {
		return nil, err
	}
	d.tx, err = d.db.Begin(false)
	return d, err
}

func (e *Exporter) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case e.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Database is a finished snapshot without its checksum.
type Database struct {
	db      *bbolt.DB
	tx      *bbolt.Tx
	release func()
}

func (d *Database) create(dir string) error {
	file, err := os.CreateTemp(dir, "etcd-snapshot-*")
	if err != nil {
		return err
	}
	path := file.Name()
	if err := file.Close(); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	d.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		// The file is gone after a crash, so nothing has to be durable.
		NoSync: true, NoGrowSync: true, NoFreelistSync: true,
		FreelistType: bbolt.FreelistMapType,
	})
	return errors.Join(err, os.Remove(path))
}

// Size is how many bytes WriteTo writes.
func (d *Database) Size() int64 { return d.tx.Size() }

// WriteTo writes the database.
func (d *Database) WriteTo(w io.Writer) (int64, error) { return d.tx.WriteTo(w) }

// Close releases the database and its space on disk.
func (d *Database) Close() error {
	defer d.release()
	var errs []error
	if d.tx != nil {
		errs = append(errs, d.tx.Rollback())
	}
	if d.db != nil {
		errs = append(errs, d.db.Close())
	}
	return errors.Join(errs...)
}

// writer is a sink into a database.
type writer struct {
	ctx     context.Context
	db      *bbolt.DB
	room    func() error
	name    []byte // of the present bucket
	ordered bool   // it is large and written in order
	tx      *bbolt.Tx
	into    *bbolt.Bucket
	pending int // bytes since the last commit
}

func (w *writer) write(image *machine.Image) error {
	if err := w.begin(); err != nil {
		return err
	}
	err := contents(w.ctx, image, w)
	if err == nil {
		err = v2(image, w)
	}
	if err == nil {
		err = w.tx.Commit()
	} else if w.tx != nil {
		err = errors.Join(err, w.tx.Rollback())
	}
	return err
}

func (w *writer) begin() (err error) {
	if err := w.room(); err != nil {
		return err
	}
	w.tx, err = w.db.Begin(true)
	return err
}

func (w *writer) bucket(b backend.Bucket) error {
	w.name, w.ordered = b.Name(), b.ID() == schema.Key.ID()
	into, err := w.tx.CreateBucket(w.name)
	w.open(into)
	return err
}

func (w *writer) open(into *bbolt.Bucket) {
	w.into = into
	if w.ordered && into != nil {
		into.FillPercent = fillPercent
	}
}

func (w *writer) put(key, value []byte) error {
	if err := w.into.Put(key, value); err != nil {
		return err
	}
	w.pending += len(key) + len(value)
	if w.pending < commitBytes {
		return nil
	}
	w.pending = 0
	tx := w.tx
	w.tx = nil
	if err := tx.Commit(); err != nil {
		return err
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	w.open(w.tx.Bucket(w.name))
	return nil
}

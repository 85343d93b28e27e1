package mvcc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Options of a store. The zero value is usable.
type Options struct {
	// Logger receives what Pebble has to say; nil discards it.
	Logger *slog.Logger
	// OnFatal is told when the store cannot go on, and must end the process:
	// the goroutine that found out never returns. Nil panics.
	OnFatal func(error)
	// FS holds the files; nil is the operating system's.
	FS vfs.FS
	// CacheBytes is the size of the block cache; 0 is 128 MiB. Keep it well
	// above MemTableBytes, or filter blocks are evicted and re-read.
	CacheBytes int64
	// RowCacheBytes is about how much is kept of what was written last, for
	// writing it again; 0 is 32 MiB.
	RowCacheBytes int64
	// MemTableBytes is how much is written before a flush; 0 is 16 MiB.
	MemTableBytes uint64
	// MustExist refuses to make a new store.
	MustExist bool
	// ReadOnly opens an existing store without changing it.
	ReadOnly bool
}

// Store is a multi-version store in one directory.
//
// Reads may be concurrent with each other and with everything else. Writers
// and Commit are for one goroutine at a time, as is ScrubStep; the two may
// run beside each other.
type Store struct {
	db    *pebble.DB
	reads source // db, except in tests that come between two steps of a read
	head  atomic.Pointer[Head]
	rows  *rowCache // for Writers
	scrub scrubState

	counts countCache
	tally  tally

	compactions      compactions
	written, removed atomic.Int64 // bytes; see InUse
}

// source is what reads need of Pebble.
type source interface {
	pebble.Reader
	NewSnapshot() *pebble.Snapshot
}

// Open opens the store in dir and makes a new one when there is none, unless
// the options forbid it. It does not read the data. The error is ErrFormat
// when the directory holds something else.
//
// The write-ahead log is off: after a crash the store is as it was at some
// earlier Commit, which is never before the last Flush.
func Open(dir string, opts Options) (*Store, error) {
	db, err := pebble.Open(dir, pebbleOptions(opts))
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", dir, err)
	}
	if opts.RowCacheBytes == 0 {
		opts.RowCacheBytes = 32 << 20
	}
	s := &Store{
		db:     db,
		reads:  db,
		rows:   newRowCache(opts.RowCacheBytes),
		counts: countCache{worth: countsWorth},
		tally:  tally{db: db, split: tallySplit, merge: tallyMerge},
	}
	if err := s.load(opts); err != nil {
		return nil, errors.Join(fmt.Errorf("open the store in %s: %w", dir, err), db.Close())
	}
	return s, nil
}

func pebbleOptions(opts Options) *pebble.Options {
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 128 << 20
	}
	if opts.MemTableBytes == 0 {
		opts.MemTableBytes = 16 << 20
	}
	o := &pebble.Options{
		Comparer:           newComparer(),
		FS:                 opts.FS,
		CacheSize:          opts.CacheBytes,
		MemTableSize:       opts.MemTableBytes,
		DisableWAL:         true,
		ReadOnly:           opts.ReadOnly,
		ErrorIfNotExists:   opts.MustExist || opts.ReadOnly,
		FormatMajorVersion: pebble.FormatTableFormatV6,
		Logger:             newPebbleLogger(opts.Logger, opts.OnFatal),
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// load checks the format and reads where the store stands.
func (s *Store) load(opts Options) error {
	format, err := readMeta(s.db, metaFormat, 4)
	if err != nil {
		return err
	}
	if format == nil {
		if err := create(s.db, opts.MustExist || opts.ReadOnly); err != nil {
			return err
		}
	} else if v := binary.BigEndian.Uint32(format); v != formatVersion {
		return fmt.Errorf("%w: the data has format %d and this program reads format %d; run the version that wrote it", ErrFormat, v, formatVersion)
	}
	head, err := readHead(s.db)
	if err != nil {
		return err
	}
	s.head.Store(&head)
	if s.scrub, err = readScrubState(s.db); err != nil {
		return err
	}
	written, removed, err := loadSize(s.db)
	if err != nil {
		return err
	}
	s.written.Store(written)
	s.removed.Store(removed)
	return s.tally.load(head, opts.ReadOnly)
}

// create makes a new store of an empty db.
func create(db *pebble.DB, mustExist bool) (err error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("look into the new store: %w", err)
	}
	empty := !it.First()
	if err := it.Close(); err != nil {
		return fmt.Errorf("look into the new store: %w", err)
	}
	if !empty || mustExist {
		return fmt.Errorf("%w: the directory holds data without a format version; point the data directory somewhere else", ErrFormat)
	}
	if err := db.Set(metaKey(metaFormat), binary.BigEndian.AppendUint32(nil, formatVersion), pebble.NoSync); err != nil {
		return fmt.Errorf("write the format version: %w", err)
	}
	if err := db.Set(metaKey(metaWritten), binary.BigEndian.AppendUint64(nil, 0), pebble.NoSync); err != nil {
		return fmt.Errorf("write how many bytes are in use: %w", err)
	}
	if err := db.Set(tallyKey(lowestKey), binary.AppendVarint(nil, 0), pebble.NoSync); err != nil {
		return fmt.Errorf("write a count of keys: %w", err)
	}
	return flush(db)
}

// DB gives access to the Pebble below, where the owner of the store keeps
// state of its own. First bytes 'k', 'm', 'r' and 't' of keys belong to this
// package.
func (s *Store) DB() *pebble.DB { return s.db }

// Head is where the store stands after the last Commit.
func (s *Store) Head() Head { return *s.head.Load() }

// Range answers r as etcd does; the header has the revision only. Errors are
// ErrCompacted, ErrFutureRev, the context's, and failures of the store.
func (s *Store) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	for {
		counts := s.counts.knownFor(r, &s.tally) // of a moment that the head is not before
		head := s.Head()
		resp, count, err := View{reader: s.reads, head: head}.rangeCounted(ctx, r, counts)
		if s.Head().Compacted == head.Compacted {
			if err == nil {
				s.counts.remember(count)
			}
			return resp, err
		}
		// A compaction came between the choice of the revision and the end of
		// the read, so versions may have been missing: once more, from the
		// new head.
	}
}

// Pin returns a view of the store that does not change. Close it soon: it
// keeps deleted data on disk.
func (s *Store) Pin() *PinnedView {
	for {
		head := s.Head()
		snapshot := s.reads.NewSnapshot()
		if s.Head().Compacted == head.Compacted {
			return &PinnedView{View: View{reader: snapshot, head: head}, snapshot: snapshot}
		}
		// Compacted versions may already be missing from the snapshot.
		_ = snapshot.Close() // always nil
	}
}

// Commit makes everything w has written visible in one step, and releases w.
// After an error the store must be closed; what is visible then is all of it
// or nothing.
func (s *Store) Commit(w *Writer) error {
	head, err := w.finish()
	if err != nil {
		return errors.Join(err, w.Discard())
	}
	grown, err := s.tally.prepare(w.batch, w.grown)
	if err != nil {
		return errors.Join(err, w.Discard())
	}
	if err := s.db.Apply(w.batch, pebble.NoSync); err != nil {
		return errors.Join(fmt.Errorf("commit to the store: %w", err), w.Discard())
	}
	s.written.Add(w.bytes)
	// First, so that scrubbing does not overtake the hash.
	s.compactions.add(w.compacted)
	s.head.Store(&head)
	s.tally.advance(grown, head.Current)
	for key, raw := range w.written {
		s.rows.set(key, raw)
	}
	return errors.Join(w.Discard(), s.tally.balance(grown))
}

// Flush returns once everything committed before the call survives a crash.
func (s *Store) Flush() error { return flush(s.db) }

func flush(db *pebble.DB) error {
	if err := db.Flush(); err != nil {
		return fmt.Errorf("flush the store: %w", err)
	}
	return nil
}

// Checkpoint makes dir, which must not exist, a store with what was committed
// before the call, and perhaps some of what is committed during it. Files are
// hard links where the file system allows.
func (s *Store) Checkpoint(dir string) error {
	if err := s.Flush(); err != nil {
		return err
	}
	if err := s.db.Checkpoint(dir); err != nil {
		return fmt.Errorf("checkpoint the store to %s: %w", dir, err)
	}
	return nil
}

// Close releases the store. What was not flushed is lost. All views must have
// been closed.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// errLogFailed is returned by every write after one write has failed: after a
// failed fsync the kernel may have dropped the pages, so what the file holds is
// unknown until the process starts again and reads it.
var errLogFailed = errors.New("an earlier write to the raft log failed; the member must restart")

// durableLog is raft's log and stable store: a write-ahead log. What it holds
// is synced before it counts; see lateSync.
//
// It adds to raft-wal a checksum on every read (raft-wal verifies them at open
// only), stops for good at the first failed write, and tells how long the
// write under way has been running.
type durableLog struct {
	entries
	failed  atomic.Bool
	onFail  func(error)
	onWrite func(bytes int, took time.Duration)
	started atomic.Int64 // unix nanoseconds of the write under way, 0 when idle
	written atomic.Uint64
	late    lateSync
}

// entries is what durableLog needs of raft-wal.
type entries interface {
	raft.LogStore
	raft.StableStore
	raft.MonotonicLogStore
	io.Closer
}

// openLog opens the log in dir, or makes a new one. A files of nil is the
// operating system's.
func openLog(dir string, files types.VFS, logger hclog.Logger, onFail func(error)) (*durableLog, error) {
	if files == nil {
		files = fs.New()
	}
	if err := syncSegments(files, dir); err != nil {
		return nil, err
	}
	l := &durableLog{onFail: onFail}
	w, err := wal.Open(dir, wal.WithLogger(logger),
		wal.WithSegmentFiler(segment.NewFiler(dir, lateFS{files, &l.late})),
		wal.WithMetaStore(settledMeta{&metadb.BoltMetaDB{}, &l.late}))
	if err != nil {
		return nil, fmt.Errorf("open the raft log in %s: %w", dir, err)
	}
	last, err := w.LastIndex()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the raft log in %s: %w", dir, err), w.Close())
	}
	l.entries = w
	l.late.durable.Store(last)
	return l, nil
}

// Close releases the log.
func (l *durableLog) Close() error {
	l.late.settle()
	return l.entries.Close()
}

// StoreLog implements raft.LogStore.
func (l *durableLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore; it returns after the entries are synced,
// or while they are; see lateSync.
func (l *durableLog) StoreLogs(logs []*raft.Log) error {
	l.late.settle()
	if l.failed.Load() {
		return errLogFailed
	}
	var size int
	for _, log := range logs {
		size += len(log.Data)
	}
	began := time.Now()
	l.started.Store(began.UnixNano())
	first, last, count := logs[0].Index, logs[len(logs)-1].Index, len(logs)
	done := func(err error) error {
		l.started.Store(0)
		if err != nil {
			return l.fail(fmt.Errorf("write %d raft log entries from index %d: %w", count, first, err))
		}
		l.written.Add(uint64(size))
		if l.onWrite != nil {
			l.onWrite(size, time.Since(began))
		}
		l.late.durable.Store(last)
		return nil
	}
	if l.late.mayBeLate(logs) {
		return l.storeLate(logs, done)
	}
	return done(l.entries.StoreLogs(sealed(logs)))
}

// DeleteRange implements raft.LogStore.
func (l *durableLog) DeleteRange(first, last uint64) error {
	if l.failed.Load() {
		return errLogFailed
	}
	if err := l.entries.DeleteRange(first, last); err != nil {
		return l.fail(fmt.Errorf("delete raft log entries %d to %d: %w", first, last, err))
	}
	return nil
}

// Set implements raft.StableStore; it keeps the vote.
func (l *durableLog) Set(key, value []byte) error {
	return l.stable(key, func() error { return l.entries.Set(key, value) })
}

// SetUint64 implements raft.StableStore; it keeps the terms.
func (l *durableLog) SetUint64(key []byte, value uint64) error {
	return l.stable(key, func() error { return l.entries.SetUint64(key, value) })
}

// stable never returns once a write has failed: raft panics when it cannot
// save its term, and the member is stopping with a readable error already.
func (l *durableLog) stable(key []byte, write func() error) error {
	l.late.settle()
	if !l.failed.Load() {
		err := write()
		if err == nil {
			return nil
		}
		_ = l.fail(fmt.Errorf("write raft's %s: %w", key, err))
	}
	select {}
}

func (l *durableLog) fail(err error) error {
	if l.failed.CompareAndSwap(false, true) {
		l.onFail(err)
	}
	return err
}

// stalled returns how long the write under way has been running, 0 when none is.
func (l *durableLog) stalled(now time.Time) time.Duration {
	started := l.started.Load()
	if started == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, started))
}

// bytesWritten counts payload bytes since the log was opened.
func (l *durableLog) bytesWritten() uint64 { return l.written.Load() }

// length is how many entries are kept.
func (l *durableLog) length() uint64 {
	first, err := l.FirstIndex()
	if err != nil || first == 0 {
		return 0
	}
	last, err := l.LastIndex()
	if err != nil {
		return 0
	}
	return last - first + 1
}

// fit makes the log continue the snapshot at index, 0 when there is none. After
// a stop in the middle of installing one, the log may end below it or hold
// another leader's entries, which raft would stumble over: it writes only where
// its own idea of the log ends. A log that begins after a gap is an error.
func (l *durableLog) fit(index, term uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	last, err := l.LastIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	switch {
	case last == 0:
		return nil
	case first > index+1:
		return fmt.Errorf("the raft log begins at %d, but the snapshot before it ends at %d: the data directory is damaged; restore it from a backup or replace the member", first, index)
	case last >= index && first > index:
		return nil
	case last >= index:
		var entry raft.Log
		if err := l.GetLog(index, &entry); err != nil {
			return fmt.Errorf("compare the raft log with the snapshot at %d: %w; replace the member", index, err)
		}
		if entry.Term == term {
			return nil
		}
	}
	if err := l.wipe(); err != nil {
		return fmt.Errorf("clear the raft log below a received snapshot: %w", err)
	}
	return nil
}

// wipe removes every entry.
func (l *durableLog) wipe() error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	return l.DeleteRange(first, last)
}

// The checksum travels in the entry's Extensions, which raft leaves to
// middleware like this: raft-wal 0.4.2 accepts a codec of one's own but writes
// the id of its default into every segment and then refuses to open them.

// errChecksum is returned for an entry that is not what was written.
var errChecksum = errors.New("raft log entry fails its checksum")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(log *raft.Log) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], log.Index)
	binary.BigEndian.PutUint64(head[8:], log.Term)
	head[16] = byte(log.Type)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, log.Data)
}

func sealed(logs []*raft.Log) []*raft.Log {
	copies := make([]raft.Log, len(logs))
	pointers := make([]*raft.Log, len(logs))
	for i, log := range logs {
		copies[i] = *log
		copies[i].Extensions = binary.BigEndian.AppendUint32(nil, checksum(log))
		pointers[i] = &copies[i]
	}
	return pointers
}

// GetLog implements raft.LogStore. An entry that was damaged on disk is
// reported instead of applied or replicated. raft-wal still finds deleted
// entries in the segment it writes to; here they are gone.
func (l *durableLog) GetLog(index uint64, log *raft.Log) error {
	if first, err := l.FirstIndex(); err != nil {
		return err
	} else if index < first {
		return raft.ErrLogNotFound
	}
	if err := l.entries.GetLog(index, log); err != nil {
		return err
	}
	if len(log.Extensions) != crc32.Size || binary.BigEndian.Uint32(log.Extensions) != checksum(log) || log.Index != index {
		return fmt.Errorf("entry %d: %w", index, errChecksum)
	}
	log.Extensions = nil
	return nil
}

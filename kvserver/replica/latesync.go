package replica

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

// A leader of several voters syncs its log while the followers receive the
// same entries, instead of before that: a write then waits for one disk and
// not for two, one after the other. raft counts the leader's own copy as soon
// as StoreLogs returns, so this is what keeps an entry from being committed
// before a quorum has it on disk:
//
//   - A follower's answer is shown to raft only when the leader's own copy of
//     what it answers for is synced; see transport. Of several voters no quorum
//     comes about without one such answer.
//   - A lone voter, a follower, and a change of the configuration, which could
//     make the leader a lone voter, sync before StoreLogs returns.
//   - A new term or vote is stored only when nothing is left to sync. Whatever
//     this member confirms to a later leader is on its disk.
//   - The next write waits, too: after a crash only the last batch can be torn,
//     which is what raft-wal knows how to repair.
type lateSync struct {
	// allowed tells whether a write may return before it is synced; nil never.
	allowed func() bool
	durable atomic.Uint64 // index up to which everything is synced

	// Of the write under way; StoreLogs is called by one goroutine at a time.
	late bool
	end  func(error)

	mu      sync.Mutex
	pending chan struct{} // closed when the sync under way has ended; nil when there is none
}

// mayBeLate tells whether these entries may be synced beside the replication.
func (s *lateSync) mayBeLate(logs []*raft.Log) bool {
	for _, log := range logs {
		if log.Type == raft.LogConfiguration {
			return false
		}
	}
	return s.allowed != nil && s.allowed()
}

// sync is every sync of a file of the log.
func (s *lateSync) sync(file types.WritableFile) error {
	if !s.late {
		return file.Sync()
	}
	ended := make(chan struct{})
	s.mu.Lock()
	s.pending = ended
	s.mu.Unlock()
	end := s.end
	go func() {
		end(file.Sync())
		s.mu.Lock()
		s.pending = nil
		s.mu.Unlock()
		close(ended)
	}()
	return nil
}

// settle waits until nothing is left to sync.
func (s *lateSync) settle() {
	s.mu.Lock()
	pending := s.pending
	s.mu.Unlock()
	if pending != nil {
		<-pending
	}
}

// awaitDurable returns once the entry at index, which was stored before the
// call, is synced. The error is errLogFailed.
func (l *durableLog) awaitDurable(index uint64) error {
	if l.late.durable.Load() < index {
		l.late.settle()
	}
	if l.failed.Load() {
		return errLogFailed
	}
	return nil
}

// storeLate is StoreLogs for what may be synced afterwards. Done is called when
// the entries are synced, or could not be stored.
func (l *durableLog) storeLate(logs []*raft.Log, done func(error) error) error {
	l.late.late, l.late.end = true, func(err error) { _ = done(err) } // who waits sees that the log has failed
	err := l.entries.StoreLogs(sealed(logs))
	l.late.late, l.late.end = false, nil
	if err != nil {
		l.late.settle()
		return done(err)
	}
	return nil
}

// lateFS has the files of the log synced through lateSync.
type lateFS struct {
	types.VFS
	late *lateSync
}

func (f lateFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	file, err := f.VFS.Create(dir, name, size)
	if err != nil {
		return nil, err
	}
	return &lateFile{file, f.late}, nil
}

func (f lateFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	file, err := f.VFS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return &lateFile{file, f.late}, nil
}

type lateFile struct {
	types.WritableFile
	late *lateSync
}

func (f *lateFile) Sync() error { return f.late.sync(f.WritableFile) }

// settledMeta keeps what raft-wal knows about its files. It never says of a
// file that it is complete before it is synced.
type settledMeta struct {
	types.MetaStore
	late *lateSync
}

func (m settledMeta) CommitState(state types.PersistentState) error {
	m.late.settle()
	return m.MetaStore.CommitState(state)
}

// syncSegments makes sure of what a member that was killed had written and not
// synced: it will be found, and counted, like everything else.
func syncSegments(files types.VFS, dir string) error {
	names, err := files.ListDir(dir)
	if err != nil {
		return fmt.Errorf("list the raft log: %w", err)
	}
	for _, name := range names {
		if filepath.Ext(name) != ".wal" {
			continue
		}
		file, err := files.OpenWriter(dir, name)
		if err == nil {
			err = errors.Join(file.Sync(), file.Close())
		}
		if err != nil {
			return fmt.Errorf("sync what the raft log has: %w", err)
		}
	}
	return nil
}

// heldPipeline is raft's pipeline to a follower. It sends nothing while the
// local log write hangs, and shows an answer when the entries it is for are
// synced here, too.
type heldPipeline struct {
	raft.AppendPipeline
	stalled func() bool
	durable func(index uint64) error
	sent    func(*raft.AppendEntriesRequest)
	ready   chan raft.AppendFuture
	closed  chan struct{}
	closing sync.Once
}

func holdPipeline(pipeline raft.AppendPipeline, stalled func() bool, durable func(uint64) error, sent func(*raft.AppendEntriesRequest)) *heldPipeline {
	p := &heldPipeline{
		AppendPipeline: pipeline, stalled: stalled, durable: durable, sent: sent,
		ready: make(chan raft.AppendFuture), closed: make(chan struct{}),
	}
	go p.pass()
	return p
}

func (p *heldPipeline) pass() {
	for {
		select {
		case answered := <-p.AppendPipeline.Consumer():
			if awaitEntries(answered.Request(), p.durable) != nil {
				return // the member is stopping
			}
			select {
			case p.ready <- answered:
			case <-p.closed:
				return
			}
		case <-p.closed:
			return
		}
	}
}

func awaitEntries(request *raft.AppendEntriesRequest, durable func(uint64) error) error {
	if len(request.Entries) == 0 {
		return nil
	}
	return durable(request.Entries[len(request.Entries)-1].Index)
}

// Consumer implements raft.AppendPipeline.
func (p *heldPipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

// AppendEntries implements raft.AppendPipeline.
func (p *heldPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.stalled() {
		return nil, errStalled
	}
	future, err := p.AppendPipeline.AppendEntries(args, resp)
	if err == nil {
		p.sent(args)
	}
	return future, err
}

// Close implements raft.AppendPipeline.
func (p *heldPipeline) Close() error {
	p.closing.Do(func() { close(p.closed) })
	return p.AppendPipeline.Close()
}

package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
)

// snapshotFormat is the version of snapshot.json.
const snapshotFormat = 1

const (
	snapshotFile = "snapshot.json"
	stagedDir    = "incoming"
	outgoingDir  = "outgoing-"
)

// errNoSnapshot is returned by Open for an id that is not the present one.
var errNoSnapshot = errors.New("no such snapshot")

// errOutdated is returned when a snapshot taken here was overtaken by a
// received one.
var errOutdated = errors.New("overtaken by the received snapshot")

// snapshots is raft's snapshot store, in which a snapshot is a statement, not
// a copy: "the state machine's own store holds everything up to index, on
// disk". Taking one flushes the store and writes a small file; raft may then
// drop its log below the index.
//
// Sending one streams a checkpoint of the store as it is at that moment, which
// may be past the recorded index; Open answers with the checkpoint's own
// position. Receiving one unpacks the stream beside the store and records it
// as staged before raft is told that it is safe; restore then puts it in place
// by a rename. A member that dies in between finishes the job when it starts.
type snapshots struct {
	dir     string
	machine *machine.Machine
	logger  *slog.Logger
	// onReceive, unless nil, is told how long receiving a snapshot took.
	onReceive func(took time.Duration)

	mu      sync.Mutex
	current *snapshotRecord // nil: none taken yet
	sending int
}

// snapshotRecord is snapshot.json.
type snapshotRecord struct {
	Format             int                `json:"format"`
	Index              uint64             `json:"index"`
	Term               uint64             `json:"term"`
	Configuration      raft.Configuration `json:"configuration"`
	ConfigurationIndex uint64             `json:"configurationIndex"`
	// Applied is what the store had applied; below Index when the entries in
	// between were raft's own and never reach a state machine.
	Applied uint64 `json:"applied"`
	// Staged is true from the moment a received snapshot is whole on disk
	// until the state machine has taken it over.
	Staged bool `json:"staged,omitempty"`
}

func (r snapshotRecord) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version:            raft.SnapshotVersionMax,
		ID:                 strconv.FormatUint(r.Term, 10) + "-" + strconv.FormatUint(r.Index, 10),
		Index:              r.Index,
		Term:               r.Term,
		Configuration:      r.Configuration,
		ConfigurationIndex: r.ConfigurationIndex,
	}
}

func openSnapshots(dir string, m *machine.Machine, logger *slog.Logger) (*snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the snapshot directory: %w", err)
	}
	s := &snapshots{dir: dir, machine: m, logger: logger}
	leftovers, err := filepath.Glob(filepath.Join(dir, outgoingDir+"*"))
	if err != nil {
		return nil, err
	}
	for _, leftover := range leftovers {
		if err := os.RemoveAll(leftover); err != nil {
			return nil, fmt.Errorf("remove a checkpoint that was being sent: %w", err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, snapshotFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the snapshot record: %w", err)
	}
	record := &snapshotRecord{}
	if err := json.Unmarshal(data, record); err != nil {
		return nil, fmt.Errorf("read the snapshot record %s: %w", filepath.Join(dir, snapshotFile), err)
	}
	if record.Format != snapshotFormat {
		return nil, fmt.Errorf("the snapshot record %s has format %d, this musterd reads %d; use the musterd version that wrote it", filepath.Join(dir, snapshotFile), record.Format, snapshotFormat)
	}
	s.current = record
	return s, nil
}

// finish completes an install that a crash interrupted.
func (s *snapshots) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil
	}
	if s.current.Staged {
		s.logger.Info("finishing the install of a received snapshot", "index", s.current.Index)
		if err := s.takeOverLocked(); err != nil {
			return err
		}
	}
	if applied, _ := s.machine.Applied(); applied < s.current.Applied {
		return fmt.Errorf("the store has applied %d but the snapshot record says %d: the data directory is damaged; restore it from a backup or replace the member", applied, s.current.Applied)
	}
	return nil
}

// found records the state that a cluster begins with, which the store holds.
func (s *snapshots) found(configuration raft.Configuration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recordLocked(snapshotRecord{
		Format: snapshotFormat, Index: foundingIndex, Term: foundingTerm,
		Configuration: configuration, ConfigurationIndex: foundingIndex, Applied: foundingIndex,
	})
}

// restore puts the staged snapshot in place.
func (s *snapshots) restore() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || !s.current.Staged {
		return errors.New("restore: no received snapshot is waiting")
	}
	return s.takeOverLocked()
}

func (s *snapshots) takeOverLocked() error {
	staged := filepath.Join(s.dir, stagedDir)
	if applied, _ := s.machine.Applied(); applied < s.current.Applied {
		if err := s.machine.Install(staged); err != nil {
			return fmt.Errorf("install the received snapshot at index %d: %w", s.current.Index, err)
		}
	} else if err := os.RemoveAll(staged); err != nil {
		return fmt.Errorf("remove a staged snapshot: %w", err)
	}
	done := *s.current
	done.Staged = false
	return s.recordLocked(done)
}

// Create implements raft.SnapshotStore, for a snapshot taken here and for one
// that arrives: only the latter is written to.
func (s *snapshots) Create(_ raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &snapshotSink{store: s, record: snapshotRecord{
		Format: snapshotFormat, Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, nil
	}
	return []*raft.SnapshotMeta{s.current.meta()}, nil
}

// Open implements raft.SnapshotStore. For a staged snapshot the reader is
// empty: restore takes the unpacked directory.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	if s.current == nil || s.current.meta().ID != id {
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("snapshot %s: %w", id, errNoSnapshot)
	}
	if s.current.Staged {
		defer s.mu.Unlock()
		return s.current.meta(), io.NopCloser(emptyReader{}), nil
	}
	s.sending++
	dir := filepath.Join(s.dir, outgoingDir+strconv.Itoa(s.sending))
	s.mu.Unlock()

	position, err := s.machine.Checkpoint(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("checkpoint the store for another member: %w", err)
	}
	stream, size, err := packDirectory(dir)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	record := snapshotRecord{Index: position.Index, Term: position.Term, ConfigurationIndex: position.ConfigurationIndex}
	if position.Configuration != nil {
		record.Configuration = raft.DecodeConfiguration(position.Configuration)
	}
	meta := record.meta()
	meta.Size = size
	return meta, &removeOnClose{stream, dir}, nil
}

// index is the recorded snapshot's index, 0 without one.
func (s *snapshots) index() uint64 {
	index, _ := s.position()
	return index
}

// position is the recorded snapshot's index and term, 0 without one.
func (s *snapshots) position() (index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return 0, 0
	}
	return s.current.Index, s.current.Term
}

func (s *snapshots) recordLocked(record snapshotRecord) error {
	data, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFileSync(filepath.Join(s.dir, snapshotFile), data); err != nil {
		return fmt.Errorf("write the snapshot record: %w", err)
	}
	s.current = &record
	return nil
}

// snapshotSink receives a snapshot, or records one that was taken here.
type snapshotSink struct {
	store    *snapshots
	record   snapshotRecord
	unpacker *unpacker
	began    time.Time // when the first of it was received
}

func (k *snapshotSink) ID() string { return k.record.meta().ID }

func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.unpacker == nil {
		staged := filepath.Join(k.store.dir, stagedDir)
		if err := os.RemoveAll(staged); err != nil {
			return 0, err
		}
		k.unpacker, k.began = newUnpacker(staged), time.Now()
	}
	return k.unpacker.Write(p)
}

func (k *snapshotSink) Close() error {
	if k.unpacker != nil {
		if err := k.unpacker.Close(); err != nil {
			return fmt.Errorf("unpack the received snapshot: %w", err)
		}
		if k.store.onReceive != nil {
			k.store.onReceive(time.Since(k.began))
		}
		k.record.Staged = true
		k.record.Applied = k.record.Index
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	// raft takes snapshots beside its main loop, which may have received a
	// newer one meanwhile.
	if now := k.store.current; k.unpacker == nil && now != nil && (now.Staged || now.Index > k.record.Index) {
		return fmt.Errorf("snapshot at %d: %w at %d", k.record.Index, errOutdated, now.Index)
	}
	return k.store.recordLocked(k.record)
}

func (k *snapshotSink) Cancel() error {
	if k.unpacker == nil {
		return nil
	}
	k.unpacker.abort()
	return os.RemoveAll(filepath.Join(k.store.dir, stagedDir))
}

type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, io.EOF }

type removeOnClose struct {
	io.ReadCloser
	dir string
}

func (r *removeOnClose) Close() error {
	return errors.Join(r.ReadCloser.Close(), os.RemoveAll(r.dir))
}

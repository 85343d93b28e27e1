package replica

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/metrics"
)

// fsm adapts the state machine to raft. raft calls it from one goroutine.
type fsm struct {
	machine   *machine.Machine
	snapshots *snapshots
	log       *durableLog
	progress  *progress
	waiters   *waiters
	led       func(proposer, index, term uint64)
	// replace asks for a new raft instance; see Replica.replaceRaft.
	replace func()
	metrics *metrics.Replica
	slow    time.Duration
	logger  *slog.Logger
	// membersChanged is called when the member list may have changed.
	membersChanged func()
	fail           func(error)
	failed         bool
}

// Apply implements raft.FSM; raft uses ApplyBatch.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM. After an error nothing more is
// applied: the member is on its way out.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	if f.failed {
		return responses
	}
	entries := make([]machine.Entry, 0, len(logs))
	reconfigured := false
	for _, log := range logs {
		switch log.Type {
		case raft.LogCommand:
			entries = append(entries, machine.Entry{Index: log.Index, Term: log.Term, Payload: log.Data})
		case raft.LogConfiguration:
			members, err := membersOf(raft.DecodeConfiguration(log.Data))
			if err != nil {
				f.failed = true
				f.fail(fmt.Errorf("apply raft entry %d: %w", log.Index, err))
				return responses
			}
			entries = append(entries, machine.Entry{Index: log.Index, Term: log.Term, Configuration: log.Data, Members: members})
			reconfigured = true
		}
	}
	began := time.Now()
	outcomes, err := f.machine.Apply(entries, f.waiters.wanted)
	if err != nil {
		f.failed = true
		f.fail(fmt.Errorf("apply raft entries %d to %d: %w", logs[0].Index, logs[len(logs)-1].Index, err))
		return responses
	}
	took := time.Since(began)
	f.metrics.CommitSeconds.Observe(took.Seconds())
	if took > f.slow {
		f.metrics.SlowApplies.Inc()
		f.logger.Warn("applying requests took long", "took", took, "expected", f.slow, "from-index", logs[0].Index, "to-index", logs[len(logs)-1].Index)
	}
	for _, entry := range entries {
		if proposer, ok := machine.BatchProposer(entry.Payload); ok {
			f.led(proposer, entry.Index, entry.Term)
		}
	}
	f.progress.advance(logs[len(logs)-1].Index)
	if reconfigured {
		f.membersChanged()
	}
	f.waiters.deliver(outcomes)
	f.waiters.applied(logs[len(logs)-1].Term)
	return responses
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	applied, _ := f.machine.Applied()
	return &flushedSnapshot{f.machine, applied}, nil
}

// Restore implements raft.FSM: the snapshot has been unpacked already.
//
// raft keeps its own idea of the last log entry when a snapshot arrives. If
// the log reached past the snapshot, or to it in another term, raft would
// refuse what follows and ask for the snapshot forever (hashicorp/raft#697), so
// a new instance takes over and reads the log anew.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	f.metrics.SnapshotInstalls.Inc()
	defer f.metrics.SnapshotInstalls.Dec()
	if err := f.snapshots.restore(); err != nil {
		return err
	}
	applied, _ := f.machine.Applied()
	f.progress.advance(applied)
	f.membersChanged()
	last, err := f.log.LastIndex()
	if err != nil {
		return err
	}
	index, term := f.snapshots.position()
	var entry raft.Log
	if last > index || last == index && (f.log.GetLog(last, &entry) != nil || entry.Term != term) {
		f.replace()
	}
	return nil
}

// flushedSnapshot is a snapshot that copies nothing: see snapshots.
type flushedSnapshot struct {
	machine *machine.Machine
	applied uint64
}

func (s *flushedSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.machine.Flush(); err != nil {
		return fmt.Errorf("flush the store: %w", err)
	}
	if own, ok := sink.(*snapshotSink); ok {
		own.record.Applied = s.applied
	}
	return nil
}

func (s *flushedSnapshot) Release() {}

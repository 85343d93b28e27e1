package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// trailingEntries, unless configured otherwise, and trailingBytes bound the
	// log kept below a snapshot for members that are a little behind, whichever
	// is less.
	trailingEntries = 5000
	trailingBytes   = 256 << 20
	// minTrailing entries are always kept: a checkpoint that is sent ends at an
	// entry of the state machine, which may be a few of raft's own entries
	// below the snapshot, and raft continues behind it.
	minTrailing    = 64
	upkeepInterval = 100 * time.Millisecond
	scrubKeys      = 2000
)

// keepSnapshots takes a snapshot whenever the log has grown enough since the
// last one.
func (r *Replica) keepSnapshots(ctx context.Context) {
	var bytesAt uint64
	for tick(ctx, upkeepInterval) {
		recorded := r.snapshots.index()
		last := r.currentRaft().LastIndex()
		entries := last - min(last, recorded)
		grown := r.log.bytesWritten() - bytesAt
		if entries < r.config.SnapshotEntries && grown < r.config.SnapshotBytes {
			continue
		}
		bytesAt += grown
		if err := r.takeSnapshot(entries, grown); err != nil && ctx.Err() == nil {
			r.logger.Warn("could not take a snapshot; the raft log keeps growing", "error", err)
		}
	}
}

func (r *Replica) takeSnapshot(entries, grown uint64) error {
	instance := r.currentRaft()
	settings := instance.ReloadableConfig()
	settings.TrailingLogs = trailing(r.config.TrailingEntries, entries, grown)
	if err := instance.ReloadConfig(settings); err != nil {
		return fmt.Errorf("set how much log is kept: %w", err)
	}
	if err := instance.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return err
	}
	return nil
}

// trailing turns the byte bound into entries by the recent mean size.
func trailing(most, entries, grown uint64) uint64 {
	if entries == 0 || grown == 0 {
		return most
	}
	return max(minTrailing, min(most, trailingBytes*entries/grown))
}

// scrub removes what compaction has made unreachable, a little at a time.
func (r *Replica) scrub(ctx context.Context) {
	for tick(ctx, upkeepInterval) {
		for done := false; !done && ctx.Err() == nil; {
			var err error
			if done, err = r.machine.Space().ScrubStep(ctx, scrubKeys); err != nil {
				if ctx.Err() == nil {
					r.fail(fmt.Errorf("remove compacted history: %w", err))
				}
				return
			}
		}
	}
}

// watchLog says once per incident that the disk hangs; the transport stops
// acting as leader meanwhile.
func (r *Replica) watchLog(ctx context.Context) {
	reported := false
	for tick(ctx, upkeepInterval) {
		stalled := r.stalled()
		if stalled && !reported {
			r.logger.Error("a raft log write hangs; giving way to another leader", "for", r.log.stalled(time.Now()))
		}
		reported = stalled
	}
}

// tick waits for d and reports whether ctx is still alive.
func tick(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

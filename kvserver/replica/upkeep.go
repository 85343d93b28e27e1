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

// upkeep is what has to be done from time to time.
type upkeep struct{ *engine }

// interval is upkeepInterval at an election timeout of a second, and longer where
// members are told to be slow.
func (u *upkeep) interval() time.Duration {
	return min(max(upkeepInterval, u.config.ElectionTimeout/10), 10*upkeepInterval)
}

// keepSnapshots takes a snapshot whenever the log has grown enough since the
// last one.
func (u *upkeep) keepSnapshots(ctx context.Context) {
	var bytesAt uint64
	for tick(ctx, u.interval()) {
		recorded := u.snapshots.index()
		last := u.currentRaft().LastIndex()
		entries := last - min(last, recorded)
		grown := u.log.bytesWritten() - bytesAt
		if entries < u.config.SnapshotEntries && grown < u.config.SnapshotBytes {
			continue
		}
		bytesAt += grown
		if err := u.takeSnapshot(entries, grown); err != nil && ctx.Err() == nil {
			u.logger.Warn("could not take a snapshot; the raft log keeps growing", "error", err)
		}
	}
}

func (u *upkeep) takeSnapshot(entries, grown uint64) error {
	instance := u.currentRaft()
	if err := u.keepTrailing(instance, trailing(u.config.TrailingEntries, entries, grown)); err != nil {
		return fmt.Errorf("set how much log is kept: %w", err)
	}
	if err := instance.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return err
	}
	return nil
}

func (u *upkeep) keepTrailing(instance *raft.Raft, entries uint64) error {
	u.reloading.Lock()
	defer u.reloading.Unlock()
	settings := instance.ReloadableConfig()
	settings.TrailingLogs = entries
	return instance.ReloadConfig(settings)
}

// trailing turns the byte bound into entries by the recent mean size.
func trailing(most, entries, grown uint64) uint64 {
	if entries == 0 || grown == 0 {
		return most
	}
	return max(minTrailing, min(most, trailingBytes*entries/grown))
}

// scrub removes what compaction has made unreachable, a little at a time. It
// rests as long as it works: some steps read the whole store.
func (u *upkeep) scrub(ctx context.Context) {
	for pause := u.interval(); tick(ctx, pause); {
		begun := time.Now()
		done, err := u.machine.Space().ScrubStep(ctx, scrubKeys)
		if err != nil {
			if ctx.Err() == nil {
				u.fail(fmt.Errorf("remove compacted history: %w", err))
			}
			return
		}
		pause = time.Since(begun)
		if done {
			pause = max(pause, u.interval())
		}
	}
}

// watchLog says once per incident that the disk hangs; the transport stops
// acting as leader meanwhile.
func (u *upkeep) watchLog(ctx context.Context) {
	reported := false
	for tick(ctx, u.interval()) {
		stalled := u.stalled()
		if stalled && !reported {
			u.logger.Error("a raft log write hangs; giving way to another leader", "for", u.log.stalled(time.Now()))
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

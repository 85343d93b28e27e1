// Package compaction compacts the history on its own, as etcd does: by time or
// by number of revisions.
package compaction

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jonboulle/clockwork"

	"muster/kvserver/machine"
)

// What a retention counts.
const (
	Periodic = "periodic"
	Revision = "revision"
)

// Retention is how much history is kept.
type Retention struct {
	// Period is set in the mode periodic, Revisions in the mode revision. With
	// neither nothing is compacted.
	Period    time.Duration
	Revisions int64
}

// ParseRetention reads --auto-compaction-mode and --auto-compaction-retention
// as etcd does (server/embed/etcd.go): a whole number is of hours or of
// revisions, and everything else a duration.
func ParseRetention(mode, retention string) (Retention, error) {
	if mode != Periodic && mode != Revision {
		return Retention{}, fmt.Errorf("--auto-compaction-mode %q is neither %s nor %s", mode, Periodic, Revision)
	}
	number, err := strconv.ParseInt(retention, 10, 64)
	unit := int64(time.Hour)
	if err != nil || number < 0 {
		var duration time.Duration
		if duration, err = time.ParseDuration(retention); err != nil || duration < 0 {
			return Retention{}, fmt.Errorf("--auto-compaction-retention %q is neither a whole number nor a duration such as 30m", retention)
		}
		number, unit = int64(duration), 1
	}
	if mode == Revision {
		return Retention{Revisions: number}, nil
	}
	period := time.Duration(number * unit)
	if number > int64(maxPeriod)/unit || period > 0 && period < minPeriod {
		return Retention{}, fmt.Errorf("--auto-compaction-retention %q is not between %v and %v", retention, minPeriod, maxPeriod)
	}
	return Retention{Period: period}, nil
}

const (
	minPeriod = 10 * time.Millisecond
	maxPeriod = 100 * 365 * 24 * time.Hour
)

// Config is what a compactor works with. All fields are required.
type Config struct {
	Retention Retention
	// Revision is the store's current revision.
	Revision func() int64
	// Leading tells whether this member leads. Only then does it compact.
	Leading func() bool
	// Compact compacts the cluster at a revision.
	Compact func(ctx context.Context, rev int64) error
	Clock   clockwork.Clock
	Logger  *slog.Logger
}

// Run compacts until ctx ends. It belongs on every member: one that begins to
// lead knows then how far back its history has to reach.
func Run(ctx context.Context, c Config) {
	switch {
	case c.Retention.Period > 0:
		runPeriodic(ctx, c)
	case c.Retention.Revisions > 0:
		runRevision(ctx, c)
	}
}

// samples is how often the revision is noted per period, or per hour when the
// period is longer; etcd's number, as are the intervals below
// (server/etcdserver/api/v3compactor).
const samples = 10

// runPeriodic keeps the history of the last period: after a first one without
// any compaction it compacts once per period, and once per hour when that is
// less, at what was the revision one period ago. After a failure, and while the
// revision stands still, it tries again at every sample.
func runPeriodic(ctx context.Context, c Config) {
	interval := min(c.Retention.Period, time.Hour)
	size := int(c.Retention.Period/(interval/samples)) + 1
	var window []int64 // the revisions at the last samples
	due := c.Clock.Now().Add(c.Retention.Period)
	var compacted int64
	for {
		window = append(window, c.Revision())
		window = window[max(len(window)-size, 0):]
		if !wait(ctx, c.Clock, interval/samples) {
			return
		}
		rev := window[0]
		if !c.Leading() || c.Clock.Now().Before(due) || rev == compacted {
			continue
		}
		if c.compact(ctx, rev) {
			compacted, due = rev, c.Clock.Now().Add(interval)
		}
	}
}

const revisionInterval = 5 * time.Minute

// runRevision looks every five minutes whether there is more history than is
// to be kept.
func runRevision(ctx context.Context, c Config) {
	var compacted int64
	for wait(ctx, c.Clock, revisionInterval) {
		rev := c.Revision() - c.Retention.Revisions
		if c.Leading() && rev > 0 && rev != compacted && c.compact(ctx, rev) {
			compacted = rev
		}
	}
}

// compact tells whether the history is compacted up to rev now, by whomever.
func (c Config) compact(ctx context.Context, rev int64) bool {
	begun := c.Clock.Now()
	if err := c.Compact(ctx, rev); err != nil && !errors.Is(err, machine.ErrCompacted) {
		if ctx.Err() == nil {
			c.Logger.Warn("automatic compaction failed; it will be tried again", "revision", rev, "error", err)
		}
		return false
	}
	c.Logger.Info("compacted automatically", "revision", rev, "took", c.Clock.Now().Sub(begun))
	return true
}

func wait(ctx context.Context, clock clockwork.Clock, d time.Duration) bool {
	timer := clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.Chan():
		return true
	case <-ctx.Done():
		return false
	}
}

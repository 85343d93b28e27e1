package compaction

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jonboulle/clockwork"

	"muster/kvserver/machine"
)

// The cases are those of etcd's parser, run on it by hand.
func TestParseRetention(t *testing.T) {
	for _, c := range []struct {
		mode, retention string
		want            Retention
		bad             bool
	}{
		{mode: Periodic, retention: "0"},
		{mode: Periodic, retention: "0s"},
		{mode: Periodic, retention: "1", want: Retention{Period: time.Hour}},
		{mode: Periodic, retention: "30m", want: Retention{Period: 30 * time.Minute}},
		{mode: Periodic, retention: "1h30m", want: Retention{Period: 90 * time.Minute}},
		{mode: Revision, retention: "0"},
		{mode: Revision, retention: "1000", want: Retention{Revisions: 1000}},
		{mode: Revision, retention: "1us", want: Retention{Revisions: 1000}},
		{mode: Periodic, retention: "", bad: true},
		{mode: Periodic, retention: "-1", bad: true},
		{mode: Periodic, retention: "-1h", bad: true},
		{mode: Periodic, retention: "soon", bad: true},
		{mode: Periodic, retention: "1ns", bad: true},
		{mode: Periodic, retention: "9000000000000000000", bad: true},
		{mode: Revision, retention: "-1", bad: true},
		{mode: "", retention: "0", bad: true},
		{mode: "never", retention: "1", bad: true},
	} {
		got, err := ParseRetention(c.mode, c.retention)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q %q: %+v, %v", c.mode, c.retention, got, err)
		}
	}
}

// cluster is what a compactor acts on, with a clock that stands still.
type cluster struct {
	t        *testing.T
	clock    *clockwork.FakeClock
	mu       sync.Mutex
	revision int64
	follows  bool
	failure  error
	asked    []int64
}

func start(t *testing.T, retention Retention) *cluster {
	c := &cluster{t: t, clock: clockwork.NewFakeClock(), revision: 1}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Run(ctx, Config{
			Retention: retention, Clock: c.clock, Logger: slog.New(slog.DiscardHandler),
			Revision: func() int64 { c.mu.Lock(); defer c.mu.Unlock(); return c.revision },
			Leading:  func() bool { c.mu.Lock(); defer c.mu.Unlock(); return !c.follows },
			Compact: func(_ context.Context, rev int64) error {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.asked = append(c.asked, rev)
				return c.failure
			},
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	c.settle()
	return c
}

// settle returns once the compactor waits for the clock.
func (c *cluster) settle() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.clock.BlockUntilContext(ctx, 1); err != nil {
		c.t.Fatal(err)
	}
}

// pass lets n intervals pass, with one write at the end of each.
func (c *cluster) pass(n int, interval time.Duration) {
	c.t.Helper()
	for range n {
		c.clock.Advance(interval)
		c.settle()
		c.set(func() { c.revision++ })
	}
}

func (c *cluster) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// compacted is what was asked for since the last call.
func (c *cluster) compacted(want ...int64) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if diff := cmp.Diff(want, c.asked); diff != "" {
		c.t.Errorf("compactions differ (-want +got):\n%s", diff)
	}
	c.asked = nil
}

func TestPeriodic(t *testing.T) {
	c := start(t, Retention{Period: 10 * time.Minute})
	c.pass(9, time.Minute)
	c.compacted()
	c.pass(1, time.Minute)
	c.compacted(1) // what it was eleven samples ago, as in etcd
	c.pass(9, time.Minute)
	c.compacted()
	c.pass(1, time.Minute)
	c.compacted(9)

	c.set(func() { c.failure = errors.New("no leader") })
	c.pass(12, time.Minute)
	c.compacted(19, 20, 21) // a failure is tried again with every sample
	c.set(func() { c.failure = nil })
	c.pass(11, time.Minute)
	c.compacted(22, 32)

	// Somebody else has compacted: that will do.
	c.set(func() { c.failure = machine.ErrCompacted })
	c.pass(18, time.Minute)
	c.compacted(42)
}

// A long period is compacted every hour.
func TestPeriodicLong(t *testing.T) {
	c := start(t, Retention{Period: 24 * time.Hour})
	c.pass(239, 6*time.Minute)
	c.compacted()
	c.pass(1, 6*time.Minute)
	c.compacted(1)
	c.pass(20, 6*time.Minute)
	c.compacted(9, 19)
}

// Nothing is asked while the revision stands still.
func TestPeriodicIdle(t *testing.T) {
	c := start(t, Retention{Period: 10 * time.Minute})
	for range 40 {
		c.clock.Advance(time.Minute)
		c.settle()
	}
	c.compacted(1)
}

// A follower notes the revisions, so that it can go on when it leads.
func TestPeriodicFollower(t *testing.T) {
	c := start(t, Retention{Period: 10 * time.Minute})
	c.set(func() { c.follows = true })
	c.pass(35, time.Minute)
	c.compacted()
	c.set(func() { c.follows = false })
	c.pass(1, time.Minute)
	c.compacted(25)
}

func TestRevisions(t *testing.T) {
	c := start(t, Retention{Revisions: 100})
	c.pass(1, 5*time.Minute)
	c.compacted()
	c.set(func() { c.revision = 1000 })
	c.pass(1, 4*time.Minute)
	c.compacted()
	c.pass(1, time.Minute)
	c.compacted(901)
	c.set(func() { c.revision-- })
	c.pass(1, 5*time.Minute)
	c.compacted() // the same again
	c.set(func() { c.failure = errors.New("no leader") })
	c.pass(2, 5*time.Minute)
	c.compacted(902, 903)
	c.set(func() { c.failure, c.follows = nil, true })
	c.pass(2, 5*time.Minute)
	c.compacted()
	c.set(func() { c.follows = false })
	c.pass(1, 5*time.Minute)
	c.compacted(906)
}

func TestOff(t *testing.T) {
	Run(context.Background(), Config{}) // returns
}

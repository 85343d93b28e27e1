package corruption

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// keys are those of one member.
type keys struct {
	at          mvcc.KVHash   // now
	compactions []mvcc.KVHash // remembered
	err         error
}

func (k keys) HashAt(_ context.Context, rev int64) (mvcc.KVHash, error) {
	h := k.at
	if rev > h.Current {
		return mvcc.KVHash{}, machine.ErrFutureRev
	}
	if rev > 0 && rev < h.Compacted {
		return mvcc.KVHash{}, machine.ErrCompacted
	}
	if rev > 0 {
		h.Revision = rev
	}
	return h, k.err
}

func (k keys) CompactionHashes(context.Context) ([]mvcc.KVHash, error) { return k.compactions, k.err }

// at is the hash at revision 10, with a compaction at 5 behind it.
func at(hash uint32) keys {
	return keys{at: mvcc.KVHash{Hash: hash, Revision: 10, Compacted: 5, Current: 10}}
}

// compactedAs remembers compactions at revisions 5, 6...
func compactedAs(hashes ...uint32) keys {
	k := keys{at: mvcc.KVHash{Revision: 20, Current: 20, Compacted: int64(4 + len(hashes))}}
	for i, hash := range hashes {
		k.compactions = append(k.compactions, mvcc.KVHash{Hash: hash, Revision: int64(5 + i), Compacted: int64(4 + i)})
	}
	return k
}

var unreachable = keys{err: errors.New("out of reach")}

// checkerOf compares member 1, which has the first keys, with 2, 3...
func checkerOf(t *testing.T, members ...keys) (*Checker, *[]uint64) {
	t.Helper()
	conns := map[uint64]grpc.ClientConnInterface{}
	ids := []uint64{1}
	for i, k := range members[1:] {
		listener := bufconn.Listen(1 << 16)
		server := grpc.NewServer()
		NewService(server).Answer(k)
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		conn, err := grpc.NewClient("passthrough:///member", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		member := uint64(i + 2)
		conns[member] = conn
		ids = append(ids, member)
	}
	alarms := &[]uint64{}
	return New(Config{
		Self: 1, Keys: members[0],
		Members: func() []uint64 { return ids },
		Conn: func(_ context.Context, member uint64) (grpc.ClientConnInterface, error) {
			return conns[member], nil
		},
		Revisions: func() (int64, int64) { return members[0].at.Current, members[0].at.Compacted },
		Linearize: func(context.Context) error { return nil },
		Leading:   func() bool { return true },
		Alarm:     func(_ context.Context, member uint64) error { *alarms = append(*alarms, member); return nil },
		Reach:     20 * time.Millisecond, Timeout: 40 * time.Millisecond, Clock: clockwork.NewRealClock(), Logger: slog.New(slog.DiscardHandler),
	}), alarms
}

func sameAlarms(t *testing.T, got, want []uint64) {
	t.Helper()
	slices.Sort(got)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("alarms differ (-want +got):\n%s", diff)
	}
}

func TestCheck(t *testing.T) {
	slow, old, newer, ahead, further := at(1), at(2), at(2), at(2), at(1)
	slow.at.Current = 9
	old.at.Compacted = 4
	newer.at.Compacted = 6
	ahead.at.Current = 11
	further.at.Current, further.at.Compacted = 11, 10
	for name, c := range map[string]struct {
		members []keys
		alarms  []uint64
	}{
		"alone":                             {members: []keys{at(1)}},
		"equal":                             {members: []keys{at(1), at(1), at(1)}},
		"one differs":                       {members: []keys{at(1), at(1), at(2)}, alarms: []uint64{3}},
		"the leader differs":                {members: []keys{at(1), at(2), at(2)}, alarms: []uint64{1}},
		"two of five differ":                {members: []keys{at(1), at(2), at(1), at(3), at(1)}, alarms: []uint64{2, 4}},
		"one of two differs":                {members: []keys{at(1), at(2)}, alarms: []uint64{0}},
		"all differ":                        {members: []keys{at(1), at(2), at(3)}, alarms: []uint64{0}},
		"one differs, one is out of reach":  {members: []keys{at(1), at(2), unreachable}, alarms: []uint64{0}},
		"one is out of reach":               {members: []keys{at(1), at(1), unreachable}},
		"one is slow":                       {members: []keys{at(1), at(1), slow}},
		"one has not compacted yet":         {members: []keys{at(1), at(1), old}},
		"one has compacted before the rest": {members: []keys{at(1), at(1), newer}, alarms: []uint64{3}},
		"one is ahead of the leader":        {members: []keys{at(1), ahead, at(1)}, alarms: []uint64{2}},
		"one cannot be where it is":         {members: []keys{at(1), at(1), further}, alarms: []uint64{3}},
	} {
		t.Run(name, func(t *testing.T) {
			checker, alarms := checkerOf(t, c.members...)
			if err := checker.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			sameAlarms(t, *alarms, c.alarms)
		})
	}
}

func TestCheckCompactions(t *testing.T) {
	for name, c := range map[string]struct {
		members []keys
		alarms  []uint64
		checked int64
	}{
		"alone":                              {members: []keys{compactedAs(1, 2)}, checked: 6},
		"none":                               {members: []keys{at(1), at(2)}},
		"equal":                              {members: []keys{compactedAs(1, 2), compactedAs(1, 2), compactedAs(1, 2)}, checked: 6},
		"the last differs":                   {members: []keys{compactedAs(1, 2), compactedAs(1, 2), compactedAs(1, 3)}, alarms: []uint64{3}},
		"the leader's differs":               {members: []keys{compactedAs(1, 3), compactedAs(1, 2), compactedAs(1, 2)}, alarms: []uint64{1}},
		"one of two differs":                 {members: []keys{compactedAs(1, 2), compactedAs(1, 3)}, alarms: []uint64{0}},
		"an older one differs":               {members: []keys{compactedAs(1, 2), compactedAs(3, 2), compactedAs(1, 2)}, checked: 6},
		"one is slow":                        {members: []keys{compactedAs(1, 2), compactedAs(1, 2), compactedAs(1)}, checked: 5},
		"one is slow, and an older differs":  {members: []keys{compactedAs(1, 2), compactedAs(1), compactedAs(3)}, alarms: []uint64{3}},
		"one is out of reach":                {members: []keys{compactedAs(1, 2), compactedAs(1, 2), unreachable}},
		"one differs, one is out of reach":   {members: []keys{compactedAs(1, 2), compactedAs(1, 3), unreachable}, alarms: []uint64{0}},
		"one has forgotten (compacted only)": {members: []keys{compactedAs(1, 2), compactedAs(1, 2), at(7)}},
	} {
		t.Run(name, func(t *testing.T) {
			checker, alarms := checkerOf(t, c.members...)
			if err := checker.CheckCompactions(t.Context()); err != nil {
				t.Fatal(err)
			}
			sameAlarms(t, *alarms, c.alarms)
			if checker.checked != c.checked {
				t.Errorf("checked up to %d, want %d", checker.checked, c.checked)
			}
		})
	}
}

func TestCheckSelf(t *testing.T) {
	slow := at(1)
	slow.at.Current = 9
	for name, c := range map[string]struct {
		members []keys
		corrupt bool
	}{
		"alone":                 {members: []keys{at(1)}},
		"equal":                 {members: []keys{at(1), at(1), at(1)}},
		"this one differs":      {members: []keys{at(1), at(2), at(2)}, corrupt: true},
		"another differs":       {members: []keys{at(1), at(2), at(1)}},
		"one of two differs":    {members: []keys{at(1), at(2)}, corrupt: true},
		"two reached, differ":   {members: []keys{at(1), at(2), unreachable}, corrupt: true},
		"all differ":            {members: []keys{at(1), at(2), at(3)}, corrupt: true},
		"the others are behind": {members: []keys{at(1), slow, unreachable}},
	} {
		t.Run(name, func(t *testing.T) {
			checker, alarms := checkerOf(t, c.members...)
			if err := checker.CheckSelf(t.Context()); errors.Is(err, ErrCorrupt) != c.corrupt || err != nil && !c.corrupt {
				t.Errorf("the check says: %v", err)
			}
			sameAlarms(t, *alarms, nil)
		})
	}
}

// Only the leader checks, from time to time.
func TestWatch(t *testing.T) {
	checker, _ := checkerOf(t, at(1), at(2))
	clock := clockwork.NewFakeClock()
	var leading atomic.Bool
	alarms := make(chan uint64)
	checker.Clock, checker.Leading = clock, leading.Load
	checker.Alarm = func(_ context.Context, member uint64) error { alarms <- member; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go checker.Watch(ctx, time.Hour)
	if err := clock.BlockUntilContext(ctx, 1); err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Hour)
	select {
	case <-alarms:
		t.Error("a follower has raised an alarm")
	case <-time.After(10 * time.Millisecond):
	}
	leading.Store(true)
	clock.Advance(time.Hour)
	select {
	case <-alarms:
	case <-ctx.Done():
		t.Error("the leader has not raised an alarm")
	}
}

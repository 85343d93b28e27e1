package lease

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"muster/kvserver/machine"
	"muster/kvserver/replica"
)

// world is a cluster seen by one keeper: the replicated leases, who leads, and
// the clock.
type world struct {
	mu       sync.Mutex
	now      time.Time
	term     uint64 // that this member leads; 0 when it does not
	cut      bool   // Linearize fails
	leases   map[int64]machine.Lease
	observer func([]machine.LeaseChange)
	revoked  []int64
	written  []*pb.LeaseCheckpoint
}

func newWorld() *world {
	return &world{now: time.Unix(1000, 0), leases: map[int64]machine.Lease{}}
}

func (w *world) keeper(t *testing.T) *Keeper {
	t.Helper()
	k, err := NewKeeper(Config{
		Replica: w, Leases: w, Extension: time.Second,
		Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) pass(d time.Duration) { w.set(func() { w.now = w.now.Add(d) }) }

func (w *world) grant(id, ttl int64) { w.store(machine.Lease{ID: id, TTL: ttl}) }

func (w *world) store(lease machine.Lease) {
	w.set(func() { w.leases[lease.ID] = lease })
	if w.observer != nil {
		w.observer([]machine.LeaseChange{{Lease: lease}})
	}
}

func (w *world) Observe(fn func([]machine.LeaseChange)) ([]machine.Lease, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.observer = fn
	var all []machine.Lease
	for _, lease := range w.leases {
		all = append(all, lease)
	}
	return all, nil
}

var errCut = errors.New("no quorum")

func (w *world) Linearize(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return errCut
	}
	return nil
}

func (w *world) Leading() (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.term, w.term != 0
}

func (w *world) ProposeLeading(_ context.Context, term uint64, request *pb.InternalRaftRequest) (replica.Outcome, error) {
	if now, _ := w.Leading(); now != term {
		return replica.Outcome{}, replica.ErrNotLeading
	}
	if revoke := request.GetLeaseRevoke(); revoke != nil {
		lease := w.leases[revoke.GetID()]
		w.set(func() {
			delete(w.leases, revoke.GetID())
			w.revoked = append(w.revoked, revoke.GetID())
		})
		w.observer([]machine.LeaseChange{{Lease: lease, Gone: true}})
	}
	for _, checkpoint := range request.GetLeaseCheckpoint().GetCheckpoints() {
		lease := w.leases[checkpoint.GetID()]
		lease.Remaining = checkpoint.GetRemaining_TTL()
		w.set(func() { w.written = append(w.written, checkpoint) })
		w.store(lease)
	}
	return replica.Outcome{}, nil
}

func (w *world) LeaderConn(context.Context) (grpc.ClientConnInterface, error) {
	return nil, replica.ErrNoOtherLeader
}

// beat is one round of Run.
func beat(t *testing.T, k *Keeper) {
	t.Helper()
	term, err := k.lead()
	if err == nil {
		err = k.check(t.Context(), term)
	}
	if err != nil && !errors.Is(err, ErrNotLeader) && !errors.Is(err, errCut) {
		t.Fatal(err)
	}
}

func (w *world) wantRevoked(t *testing.T, want ...int64) {
	t.Helper()
	slices.Sort(w.revoked)
	if !slices.Equal(w.revoked, want) {
		t.Fatalf("revoked %v, want %v", w.revoked, want)
	}
}

func TestLeaderRevokesWhatExpired(t *testing.T) {
	w := newWorld()
	w.term = 1
	k := w.keeper(t)
	beat(t, k)
	w.grant(1, 10)
	w.grant(2, 20)
	w.pass(10*time.Second - 1)
	beat(t, k)
	w.wantRevoked(t)
	w.pass(1)
	beat(t, k)
	w.wantRevoked(t, 1)
	w.pass(10 * time.Second)
	beat(t, k)
	w.wantRevoked(t, 1, 2)
}

func TestFollowerRevokesNothing(t *testing.T) {
	w := newWorld()
	k := w.keeper(t)
	w.grant(1, 10)
	w.pass(time.Hour)
	beat(t, k)
	w.wantRevoked(t)
	if _, err := k.renewHere(t.Context(), 1); !errors.Is(err, ErrNotLeader) {
		t.Errorf("a follower renews: %v", err)
	}
}

// A leader that was stopped for long finds everything expired when it comes
// back, while its successor has renewed it all.
func TestStoppedLeaderRevokesNothing(t *testing.T) {
	w := newWorld()
	w.term = 1
	k := w.keeper(t)
	beat(t, k)
	w.grant(1, 10)
	w.pass(time.Hour)
	w.set(func() { w.cut = true })
	beat(t, k)
	w.wantRevoked(t)
}

func TestNewLeaderGivesTheWholeTime(t *testing.T) {
	w := newWorld()
	k := w.keeper(t)
	w.grant(1, 10)
	w.store(machine.Lease{ID: 2, TTL: 1000, Remaining: 10})
	w.pass(time.Hour)
	w.set(func() { w.term = 5 })
	beat(t, k)
	w.pass(11*time.Second - 1) // the extension is a second
	beat(t, k)
	w.wantRevoked(t)
	w.pass(1)
	beat(t, k)
	w.wantRevoked(t, 1, 2)
}

func TestRenewGivesTheWholeTTL(t *testing.T) {
	w := newWorld()
	w.term = 1
	k := w.keeper(t)
	beat(t, k)
	w.grant(1, 10)
	w.pass(9 * time.Second)
	if lease, err := k.renewHere(t.Context(), 1); err != nil || lease.TTL != 10 {
		t.Fatalf("renew: %+v, %v", lease, err)
	}
	w.pass(9 * time.Second)
	beat(t, k)
	w.wantRevoked(t)
	if _, left, err := k.leftHere(t.Context(), 1); err != nil || left != time.Second {
		t.Errorf("left %v, %v, want 1s", left, err)
	}
	w.pass(time.Second)
	if _, err := k.renewHere(t.Context(), 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("an expired lease is renewed: %v", err)
	}
	if _, err := k.renewHere(t.Context(), 7); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown lease: %v", err)
	}
}

// A leader that was cut off may not promise more time: its successor decides.
func TestRenewNeedsProofOfLeadership(t *testing.T) {
	w := newWorld()
	w.term = 1
	k := w.keeper(t)
	beat(t, k)
	w.grant(1, 10)
	w.set(func() { w.cut = true })
	if _, err := k.renewHere(t.Context(), 1); !errors.Is(err, errCut) {
		t.Errorf("renewed without a quorum: %v", err)
	}
}

func TestLongLeasesAreCheckpointed(t *testing.T) {
	w := newWorld()
	w.term = 1
	k := w.keeper(t)
	beat(t, k)
	w.grant(1, 3600)
	w.pass(checkpointInterval)
	beat(t, k)
	if len(w.written) != 1 || w.written[0].GetRemaining_TTL() != 3300 {
		t.Fatalf("checkpoints %v, want one of 3300 s", w.written)
	}
	// The next leader goes on from there, and a renewal wipes it out.
	w.set(func() { w.term = 2 })
	beat(t, k)
	if _, left, _ := k.leftHere(t.Context(), 1); left != 3301*time.Second {
		t.Errorf("the next leader gives %v, want 3301s", left)
	}
	if _, err := k.renewHere(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if w.leases[1].Remaining != 0 {
		t.Errorf("after a renewal the checkpoint still says %d", w.leases[1].Remaining)
	}
}

// After a snapshot was installed the leases are what it says.
func TestInstalledStoreIsReadAgain(t *testing.T) {
	w := newWorld()
	w.grant(1, 10)
	k := w.keeper(t)
	w.set(func() {
		delete(w.leases, 1)
		w.leases[2] = machine.Lease{ID: 2, TTL: 5}
		w.term = 1
	})
	w.observer(nil)
	beat(t, k)
	w.pass(time.Hour)
	beat(t, k)
	w.wantRevoked(t, 2)
}

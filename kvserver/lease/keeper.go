// Package lease keeps time for leases. What the members agree on, that a lease
// exists and which keys it holds, is in the state machine; when it expires is
// measured by the leader alone, with its monotonic clock, so a wall clock that
// jumps changes nothing.
//
// A TTL is a minimum: a new leader gives every lease its whole TTL again, or
// what a checkpoint said was left, and an election timeout more. A renewal
// costs no log entry, but the leader proves first that it still leads. Only the
// leader revokes what has expired, by an entry of its own term that is never
// forwarded: what a deposed leader believes to be expired dies with its log.
package lease

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"muster/kvserver/machine"
	"muster/kvserver/metrics"
	"muster/kvserver/replica"
)

var (
	// ErrNotLeader is returned when this member does not lead, or cannot prove
	// that it does.
	ErrNotLeader = errors.New("leases are timed by the leader, which this member is not")
	// ErrNotFound is returned for a lease that does not exist.
	ErrNotFound = machine.ErrLeaseNotFound
)

const (
	// checkInterval is how often expired leases are looked for; etcd's value.
	checkInterval = 500 * time.Millisecond
	// checkpointInterval is how often the remaining TTL of long leases is
	// written down; etcd's value. A change of leader lengthens a lease by at
	// most this much.
	checkpointInterval = 5 * time.Minute
	// checkpointBatch bounds one entry.
	checkpointBatch = 1000
	// revokeBatch bounds the leases revoked in one check, so that a leader that
	// finds thousands expired does not fill the log with them.
	revokeBatch = 1000
	// root is the user in whose name an expired lease is revoked. While auth is
	// enabled there is one, and it may do everything.
	root = "root"
)

// Replica is the member's place in the cluster.
type Replica interface {
	// Linearize proves, on the leader, that it still leads.
	Linearize(ctx context.Context) error
	// Leading returns the term this member leads, once it has applied an entry
	// of that term; ok is false when it does not lead.
	Leading() (term uint64, ok bool)
	// ProposeLeading puts a request into the log only while this member leads
	// the term.
	ProposeLeading(ctx context.Context, term uint64, request *pb.InternalRaftRequest) (replica.Outcome, error)
	// LeaderConn is a connection to the leader's peer port.
	LeaderConn(ctx context.Context) (grpc.ClientConnInterface, error)
}

// Leases is the replicated state.
type Leases interface {
	Observe(fn func([]machine.LeaseChange)) ([]machine.Lease, error)
}

// Config is what a keeper works with.
type Config struct {
	Replica Replica
	Leases  Leases
	// Extension is what a new leader adds to every lease: an election timeout.
	Extension time.Duration
	// Metrics is what is counted; nil counts for nobody.
	Metrics *metrics.Leases
	Logger  *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Keeper times the leases of one member. It is safe for concurrent use.
type Keeper struct {
	config Config

	mu     sync.Mutex
	term   uint64 // the term for which the expiries are valid; 0 while not leading
	leases map[int64]*timed
	stale  bool // the store was replaced: the leases have to be read again
}

type timed struct {
	machine.Lease
	expiry       time.Time
	checkpointed time.Time
}

// NewKeeper starts following the leases; Run does the rest.
func NewKeeper(config Config) (*Keeper, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Metrics == nil {
		config.Metrics = metrics.NewLeases(nil)
	}
	k := &Keeper{config: config, leases: map[int64]*timed{}}
	return k, k.load()
}

// load reads all leases. Observe must not be called with the lock held: the
// observer takes it.
func (k *Keeper) load() error {
	all, err := k.config.Leases.Observe(k.observe)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	known := k.leases
	k.leases = make(map[int64]*timed, len(all))
	for _, each := range all {
		if lease, ok := known[each.ID]; ok {
			lease.Lease = each
			k.leases[each.ID] = lease
			continue
		}
		k.startLocked(each, 0)
	}
	k.stale = false
	return nil
}

func (k *Keeper) observe(changes []machine.LeaseChange) {
	term, leading := k.config.Replica.Leading()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(changes) == 0 {
		k.stale = true
		return
	}
	if leading {
		k.beginLocked(term)
	}
	for _, change := range changes {
		lease, known := k.leases[change.ID]
		switch {
		case change.Gone:
			delete(k.leases, change.ID)
			k.config.Metrics.Revoked.Inc()
		case known:
			lease.Lease = change.Lease
		default:
			k.startLocked(change.Lease, 0)
			k.config.Metrics.Granted.Inc()
			k.config.Metrics.TTL.Observe(float64(change.TTL))
		}
	}
}

// startLocked begins to time a lease, with what is left of it and more.
func (k *Keeper) startLocked(lease machine.Lease, more time.Duration) {
	now := k.config.Now()
	left := lease.TTL
	if lease.Remaining > 0 {
		left = lease.Remaining
	}
	k.leases[lease.ID] = &timed{Lease: lease, expiry: now.Add(seconds(left) + more), checkpointed: now}
}

// lead returns the term this member leads, after giving every lease its time
// anew when that has just begun.
func (k *Keeper) lead() (uint64, error) {
	k.mu.Lock()
	stale := k.stale
	k.mu.Unlock()
	if stale {
		if err := k.load(); err != nil {
			return 0, err
		}
	}
	term, leading := k.config.Replica.Leading()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !leading {
		k.term = 0
		return 0, ErrNotLeader
	}
	k.beginLocked(term)
	return term, nil
}

// beginLocked gives every lease its time anew when a term has just begun. Leases
// that were granted for the same time go on to expire one after the other.
func (k *Keeper) beginLocked(term uint64) {
	if k.term == term {
		return
	}
	k.term = term
	known := slices.SortedFunc(maps.Values(k.leases), func(a, b *timed) int { return a.expiry.Compare(b.expiry) })
	for _, lease := range known {
		k.startLocked(lease.Lease, k.config.Extension)
	}
}

// Run revokes what expires and writes checkpoints, while this member leads and
// until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		term, err := k.lead()
		if err == nil {
			err = k.check(ctx, term)
		}
		if err != nil && !errors.Is(err, ErrNotLeader) && ctx.Err() == nil {
			k.config.Logger.Info("could not look after the leases; trying again", "error", err)
		}
	}
}

// check does what is due now.
func (k *Keeper) check(ctx context.Context, term uint64) error {
	expired, checkpoints := k.due()
	for len(checkpoints) > 0 {
		n := min(len(checkpoints), checkpointBatch)
		request := &pb.LeaseCheckpointRequest{Checkpoints: checkpoints[:n]}
		if _, err := k.config.Replica.ProposeLeading(ctx, term, &pb.InternalRaftRequest{LeaseCheckpoint: request}); err != nil {
			return err
		}
		checkpoints = checkpoints[n:]
	}
	if len(expired) == 0 {
		return nil
	}
	// A leader that was stopped and has just come back finds everything
	// expired. It must not act on that before it has proved that it leads.
	if err := k.config.Replica.Linearize(ctx); err != nil {
		return err
	}
	var revoking sync.WaitGroup
	for _, id := range expired {
		revoking.Go(func() {
			request := &pb.InternalRaftRequest{Header: &pb.RequestHeader{Username: root}, LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}
			outcome, err := k.config.Replica.ProposeLeading(ctx, term, request)
			if err == nil {
				err = outcome.Err
			}
			if err == nil {
				k.config.Metrics.Expired.Inc()
			}
			if err != nil && !errors.Is(err, ErrNotFound) && ctx.Err() == nil {
				k.config.Logger.Info("could not revoke an expired lease; trying again", "lease", id, "error", err)
			}
		})
	}
	revoking.Wait()
	return nil
}

// due returns the leases that have expired, at most revokeBatch of them, and
// the checkpoints that are due.
func (k *Keeper) due() (expired []int64, checkpoints []*pb.LeaseCheckpoint) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.config.Now()
	for id, lease := range k.leases {
		left := lease.expiry.Sub(now)
		switch {
		case left <= 0:
			if len(expired) < revokeBatch {
				expired = append(expired, id)
			}
		case now.Sub(lease.checkpointed) >= checkpointInterval:
			lease.checkpointed = now
			checkpoints = append(checkpoints, &pb.LeaseCheckpoint{ID: id, Remaining_TTL: wholeSeconds(left)})
		}
	}
	return expired, checkpoints
}

// renewHere gives a lease its whole TTL again, on the leader.
func (k *Keeper) renewHere(ctx context.Context, id int64) (machine.Lease, error) {
	term, err := k.confirm(ctx)
	if err != nil {
		return machine.Lease{}, err
	}
	k.mu.Lock()
	lease, ok := k.leases[id]
	now := k.config.Now()
	// An expired lease may be on its way out already: it is not brought back.
	if !ok || !lease.expiry.After(now) {
		k.mu.Unlock()
		return machine.Lease{}, ErrNotFound
	}
	renewed := lease.Lease
	lease.expiry = now.Add(seconds(renewed.TTL))
	lease.checkpointed = now
	k.mu.Unlock()
	k.config.Metrics.Renewed.Inc()
	if renewed.Remaining > 0 {
		// Or the next leader would take the old checkpoint for what is left.
		request := &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: id}}}
		if _, err := k.config.Replica.ProposeLeading(ctx, term, &pb.InternalRaftRequest{LeaseCheckpoint: request}); err != nil {
			return machine.Lease{}, err
		}
	}
	return renewed, nil
}

// leftHere returns a lease and what is left of it, on the leader.
func (k *Keeper) leftHere(ctx context.Context, id int64) (machine.Lease, time.Duration, error) {
	if _, err := k.confirm(ctx); err != nil {
		return machine.Lease{}, 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	lease, ok := k.leases[id]
	if !ok {
		return machine.Lease{}, 0, ErrNotFound
	}
	return lease.Lease, max(0, lease.expiry.Sub(k.config.Now())), nil
}

// SortByExpiry sorts leases as etcd lists them: those that expire first come
// first. A member that does not lead knows of no expiry, and leaves them as they
// are.
func (k *Keeper) SortByExpiry(ids []int64) {
	if _, err := k.lead(); err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	slices.SortStableFunc(ids, func(a, b int64) int {
		return k.expiryLocked(a).Compare(k.expiryLocked(b))
	})
}

// expiryLocked is that of a lease that is gone already, too: long ago.
func (k *Keeper) expiryLocked(id int64) time.Time {
	if lease, ok := k.leases[id]; ok {
		return lease.expiry
	}
	return time.Time{}
}

// confirm proves that this member leads now, and that it has applied every
// grant that was acknowledged.
func (k *Keeper) confirm(ctx context.Context) (uint64, error) {
	before, err := k.lead()
	if err != nil {
		return 0, err
	}
	if err := k.config.Replica.Linearize(ctx); err != nil {
		return 0, err
	}
	after, err := k.lead()
	if err == nil && before != after {
		err = ErrNotLeader
	}
	return after, err
}

func seconds(n int64) time.Duration {
	if n > int64(math.MaxInt64/time.Second) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Second
}

// wholeSeconds rounds up: a TTL is a minimum.
func wholeSeconds(d time.Duration) int64 {
	return int64(math.Ceil(d.Seconds()))
}

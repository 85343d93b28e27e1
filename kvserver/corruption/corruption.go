// Package corruption compares what the members of a cluster store, and says
// which of them differs. All members apply the same changes, so at the same
// revision and after the same compaction they must have the same hash;
// hashes with another compaction behind them cannot be compared.
package corruption

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"

	"muster/kvserver/mvcc"
)

// ErrCorrupt is returned when this member's data is not what the others have.
var ErrCorrupt = errors.New("the data of this member is corrupt: it differs from that of the other members")

// Keys are hashed; see machine.History.
type Keys interface {
	HashAt(ctx context.Context, rev int64) (mvcc.KVHash, error)
	CompactionHashes(ctx context.Context) ([]mvcc.KVHash, error)
}

// Config is what a checker works with. All fields are required.
type Config struct {
	// Self is this member.
	Self uint64
	Keys Keys
	// Members are all members, this one included.
	Members func() []uint64
	// Conn is a connection to another member's peer port.
	Conn func(ctx context.Context, member uint64) (grpc.ClientConnInterface, error)
	// Revisions are this member's current and its compacted revision.
	Revisions func() (current, compacted int64)
	// Linearize returns once everything that any member has applied before the
	// call is applied here.
	Linearize func(ctx context.Context) error
	// Leading tells whether this member leads.
	Leading func() bool
	// Alarm raises the alarm CORRUPT for a member; 0 stands for the cluster.
	Alarm func(ctx context.Context, member uint64) error
	// Reach is how long the connection to a member may take.
	Reach time.Duration
	// Timeout bounds Linearize and Alarm.
	Timeout time.Duration
	Clock   clockwork.Clock
	Logger  *slog.Logger
}

// hashTimeout is how long a member that is there may take to read its keys.
const hashTimeout = time.Minute

// Checker compares this member with the others. Its methods are for one
// goroutine, except that Watch and WatchCompactions may run beside each other.
type Checker struct {
	Config
	checked int64 // the last compaction that was equal everywhere
}

// New returns a checker.
func New(config Config) *Checker { return &Checker{Config: config} }

// Watch checks the present state every interval while this member leads, until
// ctx ends.
func (c *Checker) Watch(ctx context.Context, interval time.Duration) {
	c.every(ctx, interval, c.Check)
}

// WatchCompactions checks the compactions every interval while this member
// leads, until ctx ends.
func (c *Checker) WatchCompactions(ctx context.Context, interval time.Duration) {
	c.every(ctx, interval, c.CheckCompactions)
}

func (c *Checker) every(ctx context.Context, interval time.Duration, check func(context.Context) error) {
	ticker := c.Clock.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.Chan():
		case <-ctx.Done():
			return
		}
		if !c.Leading() {
			continue
		}
		if err := check(ctx); err != nil && ctx.Err() == nil {
			c.Logger.Warn("cannot compare the data of the members", "error", err)
		}
	}
}

// CheckSelf compares this member's data with the others', before it serves.
// It returns ErrCorrupt unless most of the members that could be compared,
// this one included, have the same.
func (c *Checker) CheckSelf(ctx context.Context) error {
	own, err := c.Keys.HashAt(ctx, 0)
	if err != nil {
		return fmt.Errorf("hash the keys: %w", err)
	}
	differing := 0
	compared := matching(own, c.ask(ctx, question{revision: own.Revision}))
	for _, each := range compared {
		if each.hash.Hash != own.Hash {
			differing++
			c.Logger.Error("another member has different data", "member", id(each.member), "its hash", each.hash.Hash,
				"hash", own.Hash, "revision", own.Revision, "compact revision", own.Compacted)
		}
	}
	if differing > 0 && 2*differing >= len(compared)+1 {
		return fmt.Errorf("%w (%d of %d have another hash at revision %d); remove the member, clear its --data-dir and add it again", ErrCorrupt, differing, len(compared), own.Revision)
	}
	c.Logger.Info("the data is that of the other members", "revision", own.Revision, "members compared", len(compared))
	return nil
}

// Check compares the present data of all members and raises the alarm for
// those that differ from most.
func (c *Checker) Check(ctx context.Context) error {
	own, err := c.Keys.HashAt(ctx, 0)
	if err != nil {
		return fmt.Errorf("hash the keys: %w", err)
	}
	q := question{revision: own.Revision}
	answers := c.ask(ctx, q)
	if err := c.linearize(ctx); err != nil {
		return err
	}
	current, compacted := c.Revisions()
	for _, each := range answers {
		if each.err == nil && (each.hash.Current > current || each.hash.Compacted > compacted) {
			c.Logger.Error("a member is ahead of the leader", "member", id(each.member), "revision", each.hash.Current, "compact revision", each.hash.Compacted,
				"leader's revision", current, "leader's compact revision", compacted)
			return c.alarm(ctx, each.member)
		}
	}
	return c.judge(ctx, own, q, answers)
}

// CheckCompactions compares what the members remember of the last compactions,
// the newest first, until one was compared on all of them, and raises the
// alarm as Check does. Other than there a member may lag behind as long as it
// has made the same compaction.
func (c *Checker) CheckCompactions(ctx context.Context) error {
	hashes, err := c.Keys.CompactionHashes(ctx)
	if err != nil {
		return fmt.Errorf("hash the keys: %w", err)
	}
	for _, own := range slices.Backward(hashes) {
		if own.Revision <= c.checked {
			return nil
		}
		q := question{revision: own.Revision, compaction: true}
		answers := c.ask(ctx, q)
		found := c.holders(own, answers)
		if len(found.members) > 1 {
			return c.judge(ctx, own, q, answers)
		}
		if !found.missing {
			c.checked = own.Revision
			return nil
		}
	}
	return nil
}

// holders tells which members have which hash.
type holders struct {
	members map[uint32][]uint64
	// most is the hash of more than half of the members, if there is one.
	most    uint32
	decided bool
	missing bool // a member could not be compared
}

func (c *Checker) holders(own mvcc.KVHash, answers []answer) holders {
	compared := matching(own, answers)
	h := holders{members: map[uint32][]uint64{own.Hash: {c.Self}}, missing: len(compared) < len(answers)}
	for _, each := range compared {
		h.members[each.hash.Hash] = append(h.members[each.hash.Hash], each.member)
	}
	for hash, members := range h.members {
		if 2*len(members) > len(answers)+1 {
			h.most, h.decided = hash, true
		}
	}
	return h
}

// judge raises the alarm for the members whose hash is not that of most of the
// cluster, and for the whole cluster when no hash is. Before that it waits for
// members that could not be compared: they may only lag behind.
func (c *Checker) judge(ctx context.Context, own mvcc.KVHash, q question, answers []answer) error {
	found := c.holders(own, answers)
	for deadline := c.Clock.Now().Add(c.Timeout); len(found.members) > 1 && !found.decided && found.missing && c.Clock.Now().Before(deadline); {
		select {
		case <-c.Clock.After(c.Reach / 4):
		case <-ctx.Done():
			return ctx.Err()
		}
		found = c.holders(own, c.ask(ctx, q))
	}
	if len(found.members) == 1 {
		return nil
	}
	var blamed []uint64
	for hash, members := range found.members {
		c.Logger.Error("the data of the members differs", "revision", own.Revision, "compact revision", own.Compacted, "hash", hash, "members", ids(members))
		if !found.decided || hash != found.most {
			blamed = append(blamed, members...)
		}
	}
	if !found.decided {
		blamed = []uint64{0}
	}
	var errs []error
	for _, member := range blamed {
		errs = append(errs, c.alarm(ctx, member))
	}
	return errors.Join(errs...)
}

// question is what members are asked.
type question struct {
	revision   int64
	compaction bool
}

// answer is that of one member.
type answer struct {
	member uint64
	hash   mvcc.KVHash
	err    error
}

// ask asks all other members at once.
func (c *Checker) ask(ctx context.Context, q question) []answer {
	var answers []answer
	for _, member := range c.Members() {
		if member != c.Self {
			answers = append(answers, answer{member: member})
		}
	}
	var asking sync.WaitGroup
	for i := range answers {
		asking.Go(func() {
			a := &answers[i]
			if a.hash, a.err = c.askMember(ctx, a.member, q); a.err != nil && ctx.Err() == nil {
				c.Logger.Info("cannot compare a member's data", "member", id(a.member), "revision", q.revision, "error", a.err)
			}
		})
	}
	asking.Wait()
	return answers
}

func (c *Checker) askMember(ctx context.Context, member uint64, q question) (mvcc.KVHash, error) {
	connecting, cancel := context.WithTimeout(ctx, c.Reach)
	defer cancel()
	conn, err := c.Conn(connecting, member)
	if err != nil {
		return mvcc.KVHash{}, err
	}
	ctx, cancel = context.WithTimeout(ctx, hashTimeout)
	defer cancel()
	return ask(ctx, conn, q)
}

// comparable are the answers that have to be equal to own.
func matching(own mvcc.KVHash, answers []answer) []answer {
	return slices.DeleteFunc(slices.Clone(answers), func(a answer) bool {
		return a.err != nil || a.hash.Revision != own.Revision || a.hash.Compacted != own.Compacted
	})
}

func (c *Checker) linearize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.Linearize(ctx)
}

func (c *Checker) alarm(ctx context.Context, member uint64) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if err := c.Alarm(ctx, member); err != nil {
		return fmt.Errorf("raise the alarm CORRUPT for member %s: %w", id(member), err)
	}
	return nil
}

func id(member uint64) string { return fmt.Sprintf("%x", member) }

func ids(members []uint64) []string {
	out := make([]string, len(members))
	for i, member := range members {
		out[i] = id(member)
	}
	return out
}

package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/kvserver/internal/loopback"
	"muster/kvserver/machine"
	"muster/kvserver/membership"
	"muster/kvserver/peerport"
)

// newcomer prepares a member that is not in the cluster yet and returns its
// place. It knows of those that run.
func (c *testCluster) newcomer() int {
	c.t.Helper()
	i := len(c.members)
	listen := loopback.Address(c.t)
	m := &testMember{gate: openGate(c.t, listen)}
	m.config = c.members[0].config
	m.config.Dir = filepath.Join(c.t.TempDir(), fmt.Sprintf("m%d", i))
	m.config.Restore = nil
	m.config.ClientURLs = []string{fmt.Sprintf("http://127.0.0.1:%d", 100+i)}
	m.config.PeerListen = []string{listen}
	m.config.Logger = testLogger(c.t, fmt.Sprintf("m%d", i))
	m.config.Self = membership.Peer{Name: fmt.Sprintf("m%d", i), PeerURLs: []string{"http://" + m.gate.address()}}
	c.members = append(c.members, m)
	return i
}

// initial is --initial-cluster of those with names in the list of member i,
// and of the newcomer.
func (c *testCluster) initial(i, newcomer int) membership.Cluster {
	c.t.Helper()
	var text []string
	for _, member := range c.members[i].Machine().Members() {
		for j, m := range c.members {
			if sameURLs(m.config.Self.PeerURLs, member.PeerURLs) {
				text = append(text, fmt.Sprintf("m%d=%s", j, member.PeerURLs[0]))
			}
		}
	}
	if own := fmt.Sprintf("m%d=%s", newcomer, c.members[newcomer].config.Self.PeerURLs[0]); !slices.Contains(text, own) {
		text = append(text, own)
	}
	cluster, err := membership.ParseInitialCluster(strings.Join(text, ","), "test")
	if err != nil {
		c.t.Fatal(err)
	}
	return cluster
}

// joined starts a newcomer that has been added, and waits for it.
func (c *testCluster) joined(i int) {
	c.t.Helper()
	c.discover(i)
	c.start(i)
	c.awaitReady(i)
}

func (c *testCluster) discover(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m := c.members[i]
	running := slices.IndexFunc(c.members, func(m *testMember) bool { return m.Replica != nil })
	m.config.Cluster = c.initial(running, i)
	config, err := Discover(ctx, m.config)
	if err != nil {
		c.t.Fatalf("m%d cannot join: %v", i, err)
	}
	m.config = config
}

func (c *testCluster) tryChange(i int, change Change) (Changed, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.members[i].Reconfigure(ctx, change)
}

func (c *testCluster) change(i int, change Change) Changed {
	c.t.Helper()
	changed, err := c.tryChange(i, change)
	if err != nil {
		c.t.Fatalf("%v through m%d: %v", change, i, err)
	}
	return changed
}

// add adds a newcomer and returns its place.
func (c *testCluster) add(through int, learner bool) int {
	c.t.Helper()
	i := c.newcomer()
	changed := c.change(through, Change{Action: AddMember, PeerURLs: c.members[i].config.Self.PeerURLs, Learner: learner})
	if len(changed.Members) == 0 || changed.Member == 0 {
		c.t.Fatalf("the change left %+v", changed)
	}
	return i
}

// drop takes a member that has been removed out of the test's own list.
func (c *testCluster) drop(i int) *testMember {
	m := c.members[i]
	c.members = slices.Delete(c.members, i, i+1)
	c.t.Cleanup(func() {
		if m.Replica != nil {
			_ = m.Replica.Close()
		}
	})
	return m
}

func awaitFailure(t *testing.T, m *testMember, want error) {
	t.Helper()
	select {
	case err := <-m.Failed():
		if !errors.Is(err, want) {
			t.Errorf("stopped because of %v, want %v", err, want)
		}
	case <-time.After(patience):
		t.Fatalf("goes on, want it to stop because of %v", want)
	}
}

// A cluster grows from one to three members and shrinks again to one that was
// not there at first; whatever was written is on the last one.
func TestGrowAndShrink(t *testing.T) {
	c := startCluster(t, 1)
	c.put(0, "first", "v")
	for range 2 {
		i := c.add(0, false)
		// A voter that has not started costs nothing: the cluster goes on.
		c.put(0, "meanwhile", "v")
		c.joined(i)
		c.linearize(i)
		if got := c.members[i].value("first"); got != "v" {
			t.Fatalf("m%d has %q", i, got)
		}
		c.put(i, fmt.Sprint("through ", i), "v")
	}
	for i := range c.members {
		eventually(t, "three members that vote", func() bool {
			voters, err := c.members[i].voters()
			return err == nil && len(voters) == 3
		})
		if members := c.members[i].Machine().Members(); len(members) != 3 {
			t.Errorf("m%d knows %d members", i, len(members))
		}
	}
	for len(c.members) > 1 {
		// The first one, which led; through itself and then through others.
		gone := c.members[0].Member()
		c.change(0, Change{Action: RemoveMember, Member: gone})
		removed := c.drop(0)
		awaitFailure(t, removed, peerport.ErrRemoved)
		c.put(len(c.members)-1, fmt.Sprint("without ", gone), "v")
		if err := removed.Close(); err != nil {
			t.Error(err)
		}
		removed.Replica = nil
		if again, err := Start(removed.config); !errors.Is(err, peerport.ErrRemoved) {
			if err == nil {
				_ = again.Close()
			}
			t.Errorf("a removed member starts again: %v", err)
		}
	}
	c.linearize(0)
	for _, key := range []string{"first", "meanwhile", "through 1", "through 2"} {
		if got := c.members[0].value(key); got != "v" {
			t.Errorf("%s is %q on the last member", key, got)
		}
	}
	if removed := c.members[0].Machine().Membership().Removed(); len(removed) != 2 {
		t.Errorf("%x are known as removed, want two", removed)
	}
}

func TestLearnerIsPromotedWhenItIsReady(t *testing.T) {
	c := startCluster(t, 3, func(config *Config) { config.StrictReconfig = true })
	f := c.follower()
	c.put(f, "k", "v")
	i := c.add(f, true)
	learner := c.members[f].Machine().Members()[slices.IndexFunc(c.members[f].Machine().Members(), func(m machine.Member) bool { return m.Learner })]
	if _, err := c.tryChange(f, Change{Action: PromoteMember, Member: learner.ID}); !errors.Is(err, ErrLearnerNotReady) {
		t.Errorf("promoted before it started: %v", err)
	}
	other := c.newcomer()
	if _, err := c.tryChange(f, Change{Action: AddMember, PeerURLs: c.members[other].config.Self.PeerURLs, Learner: true}); !errors.Is(err, ErrTooManyLearners) {
		t.Errorf("a second learner: %v", err)
	}
	c.drop(other)
	c.joined(i)
	if voters, err := c.members[i].voters(); err != nil || len(voters) != 3 {
		t.Errorf("with a learner the voters are %v, %v", voters, err)
	}
	eventually(t, "the learner to be ready", func() bool {
		_, err := c.tryChange(i, Change{Action: PromoteMember, Member: learner.ID})
		if err != nil && !errors.Is(err, ErrLearnerNotReady) {
			t.Fatal(err)
		}
		return err == nil
	})
	if _, err := c.tryChange(f, Change{Action: PromoteMember, Member: learner.ID}); !errors.Is(err, ErrNotLearner) {
		t.Errorf("promoted twice: %v", err)
	}
	if voters, err := c.members[i].voters(); err != nil || len(voters) != 4 {
		t.Errorf("after the promotion the voters are %v, %v", voters, err)
	}
}

// What must be refused is, with nothing changed.
func TestChangesAreJudged(t *testing.T) {
	c := startCluster(t, 3, func(config *Config) { config.StrictReconfig = true })
	f := c.follower()
	self := c.members[f].config.Self
	before := c.members[f].Machine().Members()
	for name, test := range map[string]struct {
		change Change
		want   error
	}{
		"add a known URL":      {Change{Action: AddMember, PeerURLs: self.PeerURLs}, ErrPeerURLExists},
		"remove a stranger":    {Change{Action: RemoveMember, Member: 5}, ErrMemberNotFound},
		"update a stranger":    {Change{Action: UpdateMember, Member: 5, PeerURLs: self.PeerURLs}, ErrMemberNotFound},
		"promote a stranger":   {Change{Action: PromoteMember, Member: 5}, ErrMemberNotFound},
		"promote a voter":      {Change{Action: PromoteMember, Member: c.members[c.leader()].config.Self.ID}, ErrNotLearner}, // others may be behind
		"take another's place": {Change{Action: UpdateMember, Member: c.members[c.leader()].config.Self.ID, PeerURLs: self.PeerURLs}, ErrPeerURLExists},
	} {
		for i := range c.members {
			if _, err := c.tryChange(i, test.change); !errors.Is(err, test.want) {
				t.Errorf("%s through m%d: %v, want %v", name, i, err, test.want)
			}
		}
	}
	if got := c.members[f].Machine().Members(); len(got) != len(before) {
		t.Errorf("the members are %v", got)
	}
	// With one of three down a fourth would leave two of four, and another one
	// must not be removed; the dead one may be.
	leader := c.leader()
	dead := 3 - leader - f
	c.stop(dead)
	newcomer := c.newcomer()
	if _, err := c.tryChange(f, Change{Action: AddMember, PeerURLs: c.members[newcomer].config.Self.PeerURLs}); !errors.Is(err, ErrUnhealthy) {
		t.Errorf("add with a member down: %v", err)
	}
	c.drop(newcomer)
	if _, err := c.tryChange(f, Change{Action: RemoveMember, Member: self.ID}); !errors.Is(err, ErrUnhealthy) {
		t.Errorf("remove a living member with another one down: %v", err)
	}
	c.change(f, Change{Action: RemoveMember, Member: c.members[dead].config.Self.ID})
	// It hears of it when it comes back.
	c.start(dead)
	awaitFailure(t, c.members[dead], peerport.ErrRemoved)
	c.drop(dead)
}

// A learner that was removed while it was down holds no elections; it finds out
// all the same.
func TestRemovedLearnerFindsOut(t *testing.T) {
	c := startCluster(t, 1)
	i := c.add(0, true)
	c.joined(i)
	id := c.members[i].Member()
	c.stop(i)
	c.change(0, Change{Action: RemoveMember, Member: id})
	c.start(i)
	awaitFailure(t, c.members[i], peerport.ErrRemoved)
	c.drop(i)
}

// A member that comes back at another address is found there.
func TestUpdatedPeerURLs(t *testing.T) {
	c := startCluster(t, 3)
	f := c.follower()
	m := c.members[f]
	moved := openGate(t, m.gate.target)
	urls := []string{"http://127.0.0.1:1", "http://" + moved.address()} // nobody listens at the first
	c.change(f, Change{Action: UpdateMember, Member: m.Member(), PeerURLs: urls})
	c.stop(f)
	if err := m.gate.listener.Close(); err != nil {
		t.Fatal(err)
	}
	c.start(f)
	c.awaitReady(f)
	c.put(f, "k", "v")
	for i := range c.members {
		c.linearize(i)
		for _, member := range c.members[i].Machine().Members() {
			if member.ID == m.Member() && !slices.Equal(member.PeerURLs, urls) {
				t.Errorf("m%d has %s at %q", i, ID(member.ID), member.PeerURLs)
			}
		}
	}
}

// The state that a cluster began with is in no log; who joins has it too.
func TestJoinedMemberHasWhatWasRestored(t *testing.T) {
	built := 0
	c := startCluster(t, 1, func(config *Config) { config.Restore = restoring(&built) })
	i := c.add(0, false)
	c.joined(i)
	wantRestored(t, c, i)
	if got := c.members[i].Machine().Members()[0].Name; got == "" {
		t.Error("the founder has no name on the member that joined")
	}
}

func TestJoiningIsRefused(t *testing.T) {
	c := startCluster(t, 1)
	i := c.newcomer()
	m := c.members[i]
	m.config.Cluster = c.initial(0, i)

	// Not added: it waits, says so, and can be stopped.
	var heard lines
	m.config.Logger = heard.logger()
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() {
		_, err := Discover(ctx, m.config)
		stopped <- err
	}()
	eventually(t, "the newcomer to say what it waits for", func() bool { return heard.contain("etcdctl member add m1") })
	cancel()
	if err := <-stopped; !errors.Is(err, errNotYet) {
		t.Errorf("stopped while it waited: %v", err)
	}

	c.change(0, Change{Action: AddMember, PeerURLs: m.config.Self.PeerURLs})
	other := m.config
	other.Cluster, _ = membership.ParseInitialCluster(fmt.Sprintf("m0=http://127.0.0.1:1,m1=%s,x=%s", m.config.Self.PeerURLs[0], c.members[0].config.Self.PeerURLs[0]), "test")
	if _, err := Discover(t.Context(), other); !errors.Is(err, membership.ErrDifferentMembers) {
		t.Errorf("an --initial-cluster with a member too many: %v", err)
	}
	c.joined(i)

	// Wiped: it must not come back as the one it was, however it is started.
	c.stop(i)
	if err := os.RemoveAll(m.config.Dir); err != nil {
		t.Fatal(err)
	}
	wiped := m.config
	wiped.Join, wiped.Cluster = false, c.initial(0, i)
	if _, err := Discover(t.Context(), wiped); !errors.Is(err, ErrWiped) {
		t.Errorf("a wiped member joins: %v", err)
	}
	wiped.Self, _ = wiped.Cluster.ByName("m1")
	if replica, err := Start(wiped); !errors.Is(err, ErrWiped) {
		if err == nil {
			_ = replica.Close()
		}
		t.Errorf("a wiped member founds a cluster: %v", err)
	}
	c.drop(i)
}

func TestMoveLeader(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.leader()
	f := (leader + 1) % 3
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.members[f].MoveLeader(ctx, c.members[f].Member()); !errors.Is(err, ErrNotLeading) {
		t.Errorf("asked of a follower: %v", err)
	}
	if err := c.members[leader].MoveLeader(ctx, 5); !errors.Is(err, ErrBadTransferee) {
		t.Errorf("to a stranger: %v", err)
	}
	if err := c.members[leader].MoveLeader(ctx, c.members[leader].Member()); err != nil {
		t.Errorf("to itself: %v", err)
	}
	if err := c.members[leader].MoveLeader(ctx, c.members[f].Member()); err != nil {
		t.Fatal(err)
	}
	if got := c.leader(); got != f {
		t.Errorf("m%d leads, want m%d", got, f)
	}
	c.put(leader, "k", "v")

	// To one that is down: refused in time, and writes go on meanwhile.
	c.stop(leader)
	short, cancel := context.WithTimeout(t.Context(), 4*testElection)
	defer cancel()
	moved := make(chan error, 1)
	go func() { moved <- c.members[f].MoveLeader(short, c.members[leader].config.Self.ID) }()
	c.put(f, "k", "w")
	if err := <-moved; !errors.Is(err, ErrTransferTimeout) {
		t.Errorf("to one that is down: %v", err)
	}
	c.start(leader)
}

func TestForceNewCluster(t *testing.T) {
	c := startCluster(t, 3)
	c.put(0, "k", "v")
	c.linearize(1)
	for i := range c.members {
		c.stop(i)
	}
	empty := c.members[1].config
	empty.Dir, empty.ForceNewCluster = t.TempDir(), true
	if _, err := Start(empty); err == nil || !strings.Contains(err.Error(), "--force-new-cluster") {
		t.Errorf("without data: %v", err)
	}
	c.start(0)
	c.members[1].config.ForceNewCluster = true
	if err := c.tryStart(1); !errors.Is(err, ErrNotAlone) {
		t.Fatalf("while another member runs: %v", err)
	}
	c.stop(0)
	for range 2 { // the flag is harmless when it is left there
		c.start(1)
		c.awaitReady(1)
		if got := c.members[1].value("k"); got != "v" {
			t.Errorf("k is %q", got)
		}
		members := c.members[1].Machine().Members()
		if len(members) != 1 || members[0].ID != c.members[1].Member() || len(c.members[1].Machine().Membership().Removed()) != 2 {
			t.Errorf("the members are %v, removed %x", members, c.members[1].Machine().Membership().Removed())
		}
		c.put(1, "k", "v")
		c.stop(1)
	}
	c.members[1].config.ForceNewCluster = false
	c.start(1)
	c.awaitReady(1)
	c.start(0) // does not know yet
	awaitFailure(t, c.members[0], peerport.ErrRemoved)
	c.drop(2)
	c.drop(0)
	i := c.add(0, false)
	c.joined(i)
	c.put(i, "k", "w")
}

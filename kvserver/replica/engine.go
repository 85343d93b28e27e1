package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
)

// engine is the raft instance, which another one on the same log can replace,
// and what is known of who leads.
type engine struct {
	*local
	raft      atomic.Pointer[raft.Raft]
	replace   chan struct{} // asks for a new raft instance
	swapping  sync.Mutex    // held while raft is replaced, and while it is stopped for good
	reloading sync.Mutex    // held from reading raft's settings to writing them
	// membersChanged is called when the member list may have changed.
	membersChanged func()
}

// shutDown hands the lead on, if there is somebody, and stops raft. After a
// failed log write raft never returns; then it is not waited for.
func (e *engine) shutDown() error {
	if e.ctx.Err() == nil && e.leadership.current() == e.Member() && e.hasOtherVoters() {
		e.handOn()
	}
	e.stop()
	if e.log.failed.Load() {
		e.currentRaft().Shutdown()
		return errLogFailed
	}
	e.swapping.Lock()
	defer e.swapping.Unlock()
	return e.currentRaft().Shutdown().Error()
}

// handOnTimeout bounds how long a leader that stops waits for another one to
// take over. Nobody might be there, and the others elect without it.
const handOnTimeout = 2 * time.Second

func (e *engine) handOn() {
	handed := make(chan error, 1)
	go func() { handed <- e.currentRaft().LeadershipTransfer().Error() }()
	select {
	case err := <-handed:
		if err != nil {
			e.logger.Info("could not hand leadership on before stopping", "error", err)
		}
	case <-time.After(min(handOnTimeout, e.config.ElectionTimeout)):
		e.logger.Info("nobody has taken leadership over before stopping")
	}
}

func (e *engine) raftConfig() *raft.Config {
	config := raft.DefaultConfig()
	config.LocalID = serverID(e.Member())
	config.HeartbeatTimeout = e.config.ElectionTimeout
	config.ElectionTimeout = e.config.ElectionTimeout
	config.LeaderLeaseTimeout = e.config.ElectionTimeout / 2
	// How often an idle leader repeats itself to each follower: raft's own 50 ms
	// at an election timeout of a second, and less of a load where members are
	// told to be slow. What is committed is pushed, and does not wait for it.
	config.CommitTimeout = e.config.ElectionTimeout / 20
	// The store is at least as durable as the snapshot record says, and it
	// keeps its own applied index.
	config.NoSnapshotRestoreOnStart = true
	// keepSnapshots decides when: raft counts entries, and ours differ in
	// size a thousandfold.
	config.SnapshotThreshold = math.MaxUint64
	config.SnapshotInterval = 24 * time.Hour
	config.TrailingLogs = e.config.TrailingEntries
	// A removed leader goes on as a follower that nobody talks to until it has
	// applied its removal; then the member stops.
	config.ShutdownOnRemove = false
	config.NoLegacyTelemetry = true
	config.Logger = hashicorpLogger("raft", e.logger)
	return config
}

// startRaft makes a raft instance from what is on disk and follows who leads.
func (e *engine) startRaft() error {
	index, term := e.snapshots.position()
	if err := e.log.fit(index, term); err != nil {
		return err
	}
	e.log.late.allowed = e.replicatesFirst
	machineAdapter := &fsm{
		machine: e.machine, snapshots: e.snapshots, log: e.log,
		progress: e.progress, waiters: e.waiters, led: e.leadership.applied,
		replace: e.askForReplacement, fail: e.fail, membersChanged: e.membersChanged, metrics: e.config.Metrics, slow: e.config.SlowApply, logger: e.logger,
	}
	instance, err := newRaft(e.raftConfig(), machineAdapter, e.log, e.snapshots, e.transport)
	if err != nil {
		return fmt.Errorf("start raft from %s: %w", e.config.Dir, err)
	}
	e.raft.Store(instance)
	if alone, err := e.isAlone(instance); err != nil {
		return fmt.Errorf("start raft from %s: %w", e.config.Dir, err)
	} else if alone && e.config.HastenElection {
		if err := e.hasten(instance); err != nil {
			return fmt.Errorf("start raft from %s: %w", e.config.Dir, err)
		}
	}
	observations := make(chan raft.Observation, 64)
	instance.RegisterObserver(raft.NewObserver(observations, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	e.tasks.Add(1)
	go func() {
		defer e.tasks.Done()
		e.followLeadership(instance, observations)
	}()
	return nil
}

// recentEntries is how many entries of the log, each of a megabyte at most
// unless a single request is larger, are kept to be read again.
const recentEntries = 8

// newRaft turns into an error the panic with which raft answers a log entry
// that it cannot read.
func newRaft(config *raft.Config, machineAdapter raft.FSM, log *durableLog, snapshots *snapshots, transport raft.Transport) (instance *raft.Raft, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("the raft log cannot be read: %v; remove the member from the cluster, move its data directory away and add it anew", cause)
		}
	}()
	// What was written last is what the followers are sent and what is applied.
	recent, err := raft.NewLogCache(recentEntries, log)
	if err != nil {
		return nil, err
	}
	return raft.NewRaft(config, machineAdapter, recent, log, snapshots, transport)
}

// followLeadership keeps the view of who leads, until the instance is replaced
// or the member stops. A new leader puts an empty batch into the log: raft's
// own first entry never reaches the state machine, and a read index is valid
// only once an entry of the leader's term is applied. It is put again while it
// does not get through, as during a transfer of leadership that fails.
func (e *engine) followLeadership(instance *raft.Raft, observations <-chan raft.Observation) {
	ticker := time.NewTicker(e.config.ElectionTimeout / 4)
	defer ticker.Stop()
	var claimed time.Time
	claim := func() {
		claimed = time.Now()
		instance.Apply(machine.EncodeBatch(e.Member(), nil), e.config.ElectionTimeout)
	}
	for {
		_, id := instance.LeaderWithID()
		leader, err := memberID(id)
		if id == "" || err != nil {
			leader = 0
		}
		e.leadership.set(leader)
		select {
		case <-observations:
		case <-ticker.C: // an observation may be dropped
			if leader == e.Member() && e.leadership.led() != instance.CurrentTerm() && time.Since(claimed) > e.config.ElectionTimeout {
				claim()
			}
		case gained := <-instance.LeaderCh():
			if gained {
				e.logger.Info("leading the cluster", "member", e.identity.Member, "term", instance.CurrentTerm())
				claim()
			}
		case <-e.ctx.Done():
			return
		}
		if e.raft.Load() != instance {
			return
		}
	}
}

func (e *engine) askForReplacement() {
	select {
	case e.replace <- struct{}{}:
	default:
	}
}

// replaceOnDemand restarts raft inside the process when it is asked for.
func (e *engine) replaceOnDemand(ctx context.Context) {
	for {
		select {
		case <-e.replace:
			e.replaceRaft()
		case <-ctx.Done():
			return
		}
	}
}

// replaceRaft restarts raft on the same log, store and connections.
func (e *engine) replaceRaft() {
	e.swapping.Lock()
	defer e.swapping.Unlock()
	if e.ctx.Err() != nil {
		return
	}
	if err := e.currentRaft().Shutdown().Error(); err != nil {
		e.fail(fmt.Errorf("stop raft after a snapshot: %w", err))
		return
	}
	e.logger.Info("restarting raft after a snapshot replaced a diverged log")
	if err := e.startRaft(); err != nil {
		e.fail(err)
	}
}

// isCurrent tells whether this member still leads the term and has the member
// at the address.
func (e *engine) isCurrent(term uint64, id raft.ServerID, address raft.ServerAddress) bool {
	instance := e.currentRaft()
	if instance == nil || e.leadership.current() != e.Member() || instance.CurrentTerm() != term {
		return false
	}
	servers, err := serversOf(instance)
	return err == nil && slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == id && s.Address == address })
}

func (e *engine) currentRaft() *raft.Raft { return e.raft.Load() }

func (e *engine) hasOtherVoters() bool {
	voters, err := e.voters()
	if err != nil {
		return false
	}
	_, self := voters[e.Member()]
	return len(voters) > 1 && self
}

// replicatesFirst tells whether what this member appends now reaches no quorum
// without a follower.
func (e *engine) replicatesFirst() bool {
	instance := e.currentRaft()
	if instance == nil || instance.State() != raft.Leader {
		return false
	}
	voters, err := e.voters()
	return err == nil && len(voters) > 1
}

// voters returns where every member is that raft lets vote.
func (e *engine) voters() (map[uint64]place, error) {
	servers, err := serversOf(e.currentRaft())
	if err != nil {
		return nil, err
	}
	found := map[uint64]place{}
	for _, server := range servers {
		if server.Suffrage != raft.Voter {
			continue
		}
		member, err := memberID(server.ID)
		if err != nil {
			return nil, err
		}
		if found[member], err = placeOf(server.Address); err != nil {
			return nil, err
		}
	}
	return found, nil
}

var errUnknownMember = errors.New("not a member of this cluster")

func (e *engine) locate(member uint64) (place, error) { return locate(e.currentRaft(), member) }

// others are the ids of the other members.
func (e *engine) others() []uint64 {
	var ids []uint64
	for _, member := range e.machine.Members() {
		if member.ID != e.Member() {
			ids = append(ids, member.ID)
		}
	}
	return ids
}

func locate(instance *raft.Raft, member uint64) (place, error) {
	servers, err := serversOf(instance)
	if err != nil {
		return place{}, err
	}
	server, found := find(servers, member)
	if !found {
		return place{}, fmt.Errorf("member %x: %w", member, errUnknownMember)
	}
	return placeOf(server.Address)
}

func serversOf(instance *raft.Raft) ([]raft.Server, error) {
	if instance == nil {
		return nil, raft.ErrRaftShutdown
	}
	future := instance.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, fmt.Errorf("read raft's configuration: %w", err)
	}
	return future.Configuration().Servers, nil
}

func hostPortOf(peerURL string) string {
	u, err := url.Parse(peerURL)
	if err != nil {
		return ""
	}
	return u.Host
}

func hostOf(peerURL string) string {
	host, _, err := net.SplitHostPort(hostPortOf(peerURL))
	if err != nil {
		return ""
	}
	return host
}

package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
)

func (r *Replica) raftConfig() *raft.Config {
	config := raft.DefaultConfig()
	config.LocalID = serverID(r.Member())
	config.HeartbeatTimeout = r.config.ElectionTimeout
	config.ElectionTimeout = r.config.ElectionTimeout
	config.LeaderLeaseTimeout = r.config.ElectionTimeout / 2
	// The store is at least as durable as the snapshot record says, and it
	// keeps its own applied index.
	config.NoSnapshotRestoreOnStart = true
	// keepSnapshots decides when: raft counts entries, and ours differ in
	// size a thousandfold.
	config.SnapshotThreshold = math.MaxUint64
	config.SnapshotInterval = 24 * time.Hour
	config.TrailingLogs = r.config.TrailingEntries
	// A removed leader goes on as a follower that nobody talks to until it has
	// applied its removal; then the member stops.
	config.ShutdownOnRemove = false
	config.NoLegacyTelemetry = true
	config.Logger = hashicorpLogger("raft", r.logger)
	return config
}

// startRaft makes a raft instance from what is on disk and follows who leads.
func (r *Replica) startRaft() error {
	index, term := r.snapshots.position()
	if err := r.log.fit(index, term); err != nil {
		return err
	}
	machineAdapter := &fsm{
		machine: r.machine, snapshots: r.snapshots, log: r.log,
		progress: r.progress, waiters: r.waiters, led: r.leadership.applied,
		replace: r.askForReplacement, fail: r.fail, membersChanged: r.membersChanged, metrics: r.config.Metrics, slow: r.config.SlowApply, logger: r.logger,
	}
	instance, err := newRaft(r.raftConfig(), machineAdapter, r.log, r.snapshots, r.transport)
	if err != nil {
		return fmt.Errorf("start raft from %s: %w", r.config.Dir, err)
	}
	r.raft.Store(instance)
	observations := make(chan raft.Observation, 64)
	instance.RegisterObserver(raft.NewObserver(observations, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	r.tasks.Add(1)
	go func() {
		defer r.tasks.Done()
		r.followLeadership(instance, observations)
	}()
	return nil
}

// newRaft turns into an error the panic with which raft answers a log entry
// that it cannot read.
func newRaft(config *raft.Config, machineAdapter raft.FSM, log *durableLog, snapshots *snapshots, transport raft.Transport) (instance *raft.Raft, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("the raft log cannot be read: %v; remove the member from the cluster, move its data directory away and add it anew", cause)
		}
	}()
	return raft.NewRaft(config, machineAdapter, log, log, snapshots, transport)
}

// followLeadership keeps the view of who leads, until the instance is replaced
// or the member stops. A new leader puts an empty batch into the log: raft's
// own first entry never reaches the state machine, and a read index is valid
// only once an entry of the leader's term is applied. It is put again while it
// does not get through, as during a transfer of leadership that fails.
func (r *Replica) followLeadership(instance *raft.Raft, observations <-chan raft.Observation) {
	ticker := time.NewTicker(r.config.ElectionTimeout / 4)
	defer ticker.Stop()
	var claimed time.Time
	claim := func() {
		claimed = time.Now()
		instance.Apply(machine.EncodeBatch(r.Member(), nil), r.config.ElectionTimeout)
	}
	for {
		_, id := instance.LeaderWithID()
		leader, err := memberID(id)
		if id == "" || err != nil {
			leader = 0
		}
		r.leadership.set(leader)
		select {
		case <-observations:
		case <-ticker.C: // an observation may be dropped
			if leader == r.Member() && r.leadership.led() != instance.CurrentTerm() && time.Since(claimed) > r.config.ElectionTimeout {
				claim()
			}
		case gained := <-instance.LeaderCh():
			if gained {
				r.logger.Info("leading the cluster", "member", r.identity.Member, "term", instance.CurrentTerm())
				claim()
			}
		case <-r.ctx.Done():
			return
		}
		if r.raft.Load() != instance {
			return
		}
	}
}

func (r *Replica) askForReplacement() {
	select {
	case r.replace <- struct{}{}:
	default:
	}
}

// replaceOnDemand restarts raft inside the process when it is asked for.
func (r *Replica) replaceOnDemand(ctx context.Context) {
	for {
		select {
		case <-r.replace:
			r.replaceRaft()
		case <-ctx.Done():
			return
		}
	}
}

// replaceRaft restarts raft on the same log, store and connections.
func (r *Replica) replaceRaft() {
	r.swapping.Lock()
	defer r.swapping.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	if err := r.currentRaft().Shutdown().Error(); err != nil {
		r.fail(fmt.Errorf("stop raft after a snapshot: %w", err))
		return
	}
	r.logger.Info("restarting raft after a snapshot replaced a diverged log")
	if err := r.startRaft(); err != nil {
		r.fail(err)
	}
}

func (r *Replica) currentRaft() *raft.Raft { return r.raft.Load() }

// voters returns where every member is that raft lets vote.
func (r *Replica) voters() (map[uint64]place, error) {
	servers, err := serversOf(r.currentRaft())
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

func (r *Replica) locate(member uint64) (place, error) { return locate(r.currentRaft(), member) }

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

package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/replica/peerpb"
)

// rollTimeout bounds the question to the other members, before a cluster is
// founded, whether it exists already.
const rollTimeout = time.Second

// restoringDir is where what the cluster begins with is made.
const restoringDir = "restoring"

// raftTermKey is where raft keeps its term in the stable store (its api.go).
var raftTermKey = []byte("CurrentTerm")

// identify returns whose data directory this is. A new one gets its identity
// before anything else, so that a start that is stopped at any point can be
// repeated. It refuses a directory that holds data without an identity.
func (r *Replica) identify() (Identity, error) {
	known, err := LoadIdentity(r.config.Dir)
	if err != nil {
		return Identity{}, err
	}
	snapshot := ""
	if r.config.Restore != nil {
		snapshot = r.config.Restore.Snapshot
	}
	if known != nil {
		err := known.Check(r.config.Dir, r.config.Self.Name, r.config.Cluster.Token)
		if err == nil {
			err = known.checkSnapshot(r.config.Dir, snapshot)
		}
		return *known, err
	}
	entries, err := os.ReadDir(r.config.Dir)
	if err != nil {
		return Identity{}, fmt.Errorf("read the data directory: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == "kv" || entry.Name() == "log" || entry.Name() == "snapshots" || entry.Name() == "member" {
			return Identity{}, fmt.Errorf("%w: %s holds %q but no %s; nothing is started over data of unknown origin: point --data-dir at the right directory, or move this one away", ErrForeignData, r.config.Dir, entry.Name(), identityFile)
		}
	}
	identity := Identity{
		Cluster: ID(r.config.Cluster.ID),
		Member:  ID(r.config.Self.ID),
		Name:    r.config.Self.Name,
		Token:   r.config.Cluster.Token,

		Snapshot: snapshot,
	}
	return identity, identity.save(r.config.Dir)
}

// found makes the cluster's first log entry when this member is new. Every
// founding member writes the same one. The identity is marked after, so that a
// lost log is never mistaken for a new member.
func (r *Replica) found() error {
	last, err := r.log.LastIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	exists := last > 0 || r.snapshots.index() > 0
	switch {
	case r.identity.Founded && !exists:
		return r.lost("raft log")
	case r.identity.Founded && len(r.machine.Members()) == 0:
		return r.lost("store")
	case r.identity.Founded:
		return nil
	case exists:
		return r.markFounded() // stopped between founding and marking
	}
	if err := r.callRoll(); err != nil {
		return err
	}
	if r.config.Restore != nil {
		if err := r.restore(); err != nil {
			return err
		}
	}
	var configuration raft.Configuration
	var members []machine.Member
	for _, peer := range r.config.Cluster.Peers {
		configuration.Servers = append(configuration.Servers, raft.Server{
			Suffrage: raft.Voter, ID: serverID(peer.ID), Address: raft.ServerAddress(hostPortOf(peer.PeerURLs[0])),
		})
		members = append(members, machine.Member{ID: peer.ID, Name: peer.Name, PeerURLs: peer.PeerURLs})
	}
	if err := r.machine.SeedMembers(members); err != nil {
		return fmt.Errorf("write the founding members: %w", err)
	}
	if err := r.machine.Flush(); err != nil {
		return fmt.Errorf("write the founding members: %w", err)
	}
	// An earlier start may have been stopped between raft's term and its first
	// entry; raft calls that existing state and would refuse.
	if err := r.log.SetUint64(raftTermKey, 0); err != nil {
		return fmt.Errorf("found the cluster: %w", err)
	}
	if err := raft.BootstrapCluster(r.raftConfig(), r.log, r.log, r.snapshots, r.transport, configuration); err != nil {
		return fmt.Errorf("found the cluster: %w", err)
	}
	return r.markFounded()
}

// restore gives a new store what the cluster begins with. It replaces the
// store as a whole, whatever an earlier start has left.
func (r *Replica) restore() error {
	dir := filepath.Join(r.config.Dir, restoringDir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("restore a snapshot: %w", err)
	}
	if err := r.config.Restore.Build(r.ctx, dir); err != nil {
		return fmt.Errorf("restore a snapshot: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	if err := r.machine.Install(dir); err != nil {
		return fmt.Errorf("restore a snapshot: %w", err)
	}
	r.logger.Info("restored a snapshot", "sha256", r.config.Restore.Snapshot, "revision", r.machine.Revision())
	return nil
}

// lost refuses to start without what the member had; starting anew would forget
// votes and acknowledged writes.
func (r *Replica) lost(what string) error {
	return fmt.Errorf("%w: %s in %s says that this member has data, but its %s is gone; restore it, or remove the member from the cluster and add it anew", ErrWiped, identityFile, r.config.Dir, what)
}

func (r *Replica) markFounded() error {
	r.identity.Founded = true
	return r.identity.save(r.config.Dir)
}

// callRoll asks the other founding members whether they know this member
// already: then its data is lost, and founding again would forget votes and
// acknowledged writes. Members that do not answer are as new as this one, or
// down; the question is asked once.
func (r *Replica) callRoll() error {
	ctx, cancel := context.WithTimeout(r.ctx, rollTimeout)
	defer cancel()
	answers := make(chan bool, len(r.config.Cluster.Peers))
	asked := 0
	for _, peer := range r.config.Cluster.Peers {
		if peer.ID == r.Member() {
			continue
		}
		asked++
		go func() {
			client, err := r.peers.client(peer.ID, hostPortOf(peer.PeerURLs[0]))
			if err != nil {
				answers <- false
				return
			}
			response, err := client.Roll(ctx, &peerpb.RollRequest{Member: r.Member()})
			answers <- err == nil && response.GetAnnounced()
		}()
	}
	for range asked {
		if <-answers {
			return fmt.Errorf("%w: restore the directory %s, or remove member %s from the cluster and add it as a new one", ErrWiped, r.config.Dir, r.identity.Member)
		}
	}
	return nil
}

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
		replace: r.askForReplacement, fail: r.fail, metrics: r.config.Metrics, slow: r.config.SlowApply, logger: r.logger,
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

// voters returns the peer address of every voting member.
func (r *Replica) voters() (map[uint64]string, error) {
	future := r.currentRaft().GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, fmt.Errorf("read raft's configuration: %w", err)
	}
	found := map[uint64]string{}
	for _, server := range future.Configuration().Servers {
		if server.Suffrage != raft.Voter {
			continue
		}
		member, err := memberID(server.ID)
		if err != nil {
			return nil, err
		}
		found[member] = string(server.Address)
	}
	return found, nil
}

var errUnknownMember = errors.New("not a member of this cluster")

func (r *Replica) addressOf(member uint64) (string, error) {
	servers, err := r.servers()
	if err != nil {
		return "", err
	}
	for _, server := range servers {
		if server.ID == serverID(member) {
			return string(server.Address), nil
		}
	}
	return "", fmt.Errorf("member %x: %w", member, errUnknownMember)
}

func (r *Replica) memberAt(address raft.ServerAddress) (uint64, error) {
	servers, err := r.servers()
	if err != nil {
		return 0, err
	}
	for _, server := range servers {
		if server.Address == address {
			return memberID(server.ID)
		}
	}
	return 0, fmt.Errorf("peer address %s: %w", address, errUnknownMember)
}

func (r *Replica) servers() ([]raft.Server, error) {
	instance := r.currentRaft()
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

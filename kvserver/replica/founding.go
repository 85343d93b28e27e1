package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

// A cluster begins behind an entry that is in no log: the founding members, and
// what they were restored from, are in their stores and not in an entry. Who
// joins later asks for the first entry, cannot have it, and gets a store. The
// entry after it is empty and the same for all; it tells a log from a lost one.
const (
	foundingIndex = 1
	foundingTerm  = 1
)

// raftTermKey is where raft keeps its term in the stable store (its api.go).
var raftTermKey = []byte("CurrentTerm")

// identify returns whose data directory this is. A new one gets its identity
// before anything else, so that a start that is stopped at any point can be
// repeated. It refuses a directory that holds data without an identity.
func identify(config Config) (Identity, error) {
	known, err := LoadIdentity(config.Dir)
	if err != nil {
		return Identity{}, err
	}
	snapshot := ""
	if config.Restore != nil {
		snapshot = config.Restore.Snapshot
	}
	if known != nil {
		err := known.Check(config.Dir, config.Self.Name, config.Cluster.Token)
		if err == nil {
			err = known.checkSnapshot(config.Dir, snapshot)
		}
		if err == nil && known.Removed {
			err = removedError(config.Dir, known.Member)
		}
		if err == nil {
			err = keepEtcdOut(config.Dir)
		}
		return *known, err
	}
	if config.ForceNewCluster {
		return Identity{}, fmt.Errorf("--force-new-cluster goes on with a member's data, and %s has none; point --data-dir at it, or leave the flag out", config.Dir)
	}
	entries, err := os.ReadDir(config.Dir)
	if err != nil {
		return Identity{}, fmt.Errorf("read the data directory: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == "kv" || entry.Name() == "log" || entry.Name() == "snapshots" || entry.Name() == etcdDirectory {
			return Identity{}, fmt.Errorf("%w: %s holds %q but no %s; nothing is started over data of unknown origin: point --data-dir at the right directory, or move this one away", ErrForeignData, config.Dir, entry.Name(), identityFile)
		}
	}
	identity := Identity{
		Cluster: ID(config.Cluster.ID),
		Member:  ID(config.Self.ID),
		Name:    config.Self.Name,
		Token:   config.Cluster.Token,

		Snapshot: snapshot,
		Joined:   config.Join,
	}
	if err := identity.save(config.Dir); err != nil {
		return identity, err
	}
	return identity, keepEtcdOut(config.Dir)
}

// etcdDirectory is the directory in which etcd keeps a member's data. Where there
// is none etcd founds a cluster, and does not mind what else is there: kubeadm
// upgrade, which writes a manifest with etcd's image and this data directory,
// would have the kube-apiserver read an empty store. A file of that name keeps
// etcd from starting, and kubeadm then puts back the manifest that was there.
const etcdDirectory = "member"

const keepEtcdOutText = "The data in this directory is musterd's. etcd would found an empty cluster here;\nthis file keeps it from starting.\n"

func keepEtcdOut(dir string) error {
	path := filepath.Join(dir, etcdDirectory)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		return nil
	}
	if err := writeFileSync(path, []byte(keepEtcdOutText)); err != nil {
		return fmt.Errorf("keep etcd out of the data directory: %w", err)
	}
	return nil
}

// founder makes a new member's first state, and finds out whether an older
// member still has its own.
type founder struct {
	ctx       context.Context // the member's life
	config    Config
	identity  *Identity
	machine   *machine.Machine
	log       *durableLog
	snapshots *snapshots
	logger    *slog.Logger
}

// found founds the cluster when this member is new; every founding member does
// the same. The identity is marked after, so that a lost log is never mistaken
// for a new member. A member that joins waits for what the leader sends.
func (f *founder) found() error {
	switch {
	case f.identity.Founded:
		return f.complete()
	case f.identity.Joined:
		return nil
	case f.snapshots.index() > 0:
		return f.markFounded() // stopped between founding and marking
	}
	if err := f.callRoll(); err != nil {
		return err
	}
	if f.config.Restore != nil {
		if err := f.restore(); err != nil {
			return err
		}
	}
	configuration, members := f.founders()
	position := machine.Position{
		Index: foundingIndex, Term: foundingTerm,
		ConfigurationIndex: foundingIndex, Configuration: raft.EncodeConfiguration(configuration),
	}
	if err := f.machine.Membership().Seed(members, position); err != nil {
		return fmt.Errorf("write the founding members: %w", err)
	}
	if err := f.log.SetUint64(raftTermKey, foundingTerm); err != nil {
		return fmt.Errorf("found the cluster: %w", err)
	}
	if err := f.log.wipe(); err != nil { // of an earlier start that was stopped
		return fmt.Errorf("found the cluster: %w", err)
	}
	if err := f.log.StoreLog(&raft.Log{Index: foundingIndex + 1, Term: foundingTerm, Type: raft.LogNoop}); err != nil {
		return fmt.Errorf("found the cluster: %w", err)
	}
	if err := f.snapshots.found(configuration); err != nil {
		return fmt.Errorf("found the cluster: %w", err)
	}
	return f.markFounded()
}

func (f *founder) founders() (configuration raft.Configuration, members []machine.Member) {
	for _, peer := range f.config.Cluster.Peers {
		configuration.Servers = append(configuration.Servers, raft.Server{
			Suffrage: raft.Voter, ID: serverID(peer.ID), Address: place{peerURLs: peer.PeerURLs}.address(),
		})
		members = append(members, machine.Member{ID: peer.ID, Name: peer.Name, PeerURLs: peer.PeerURLs})
	}
	return configuration, members
}

// complete refuses to start without the log that the member had; starting anew would
// forget votes and acknowledged writes.
func (f *founder) complete() error {
	term, err := f.log.GetUint64(raftTermKey)
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	last, err := f.log.LastIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	if term == 0 || last == 0 && f.snapshots.index() <= foundingIndex {
		return lost(f.config.Dir, "raft log")
	}
	return nil
}

// lost is the error of a member that has data without what.
func lost(dir, what string) error {
	return fmt.Errorf("%w: %s in %s says that this member has data, but its %s is gone; restore it, or remove the member from the cluster and add it anew", ErrWiped, identityFile, dir, what)
}

// restore gives a new store what the cluster begins with. It replaces the
// store as a whole, whatever an earlier start has left.
func (f *founder) restore() error {
	dir := filepath.Join(f.config.Dir, restoringDir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("restore a snapshot: %w", err)
	}
	if err := f.config.Restore.Build(f.ctx, dir); err != nil {
		return fmt.Errorf("restore a snapshot: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	if err := f.machine.Install(dir); err != nil {
		return fmt.Errorf("restore a snapshot: %w", err)
	}
	f.logger.Info("restored a snapshot", "origin", f.config.Restore.Snapshot, "revision", f.machine.Revision())
	return nil
}

func (f *founder) markFounded() error {
	f.identity.Founded = true
	return f.identity.save(f.config.Dir)
}

// callRoll asks the other founding members whether they know this member
// already: then its data is lost, and founding again would forget votes and
// acknowledged writes. Members that do not answer are as new as this one, or
// down; the question is asked once.
func (f *founder) callRoll() error {
	ctx, cancel := context.WithTimeout(f.ctx, rollTimeout)
	defer cancel()
	answers := make(chan error, len(f.config.Cluster.Peers))
	asked := 0
	for _, peer := range f.config.Cluster.Peers {
		if peer.ID == f.config.Self.ID {
			continue
		}
		asked++
		go func() {
			response, err := askMembers(ctx, f.config.ClientTLS, peer.PeerURLs)
			if err != nil {
				answers <- nil
				return
			}
			answers <- f.judgeRoll(response)
		}()
	}
	for range asked {
		if err := <-answers; err != nil {
			return err
		}
	}
	return nil
}

// judgeRoll looks for this member on the list of a running one, by its peer
// URLs too: it may have another id there if it was added later.
func (f *founder) judgeRoll(response *peerpb.MembersResponse) error {
	self := f.config.Self
	if slices.Contains(response.GetRemoved(), self.ID) {
		return fmt.Errorf("%w: member %x was removed from the running cluster; add it anew with `etcdctl member add` and start it with --initial-cluster-state existing", ErrWiped, self.ID)
	}
	for _, member := range response.GetMembers() {
		if member.GetId() == self.ID || sameURLs(member.GetPeerUrls(), self.PeerURLs) {
			if err := judgeStarted(member, f.config.Dir); err != nil {
				return err
			}
		}
	}
	return nil
}

package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"muster/kvserver/peerport"
	"muster/kvserver/replica/peerpb"
)

// ErrNotAlone is returned when a cluster is to be cut down to one member while
// others still run: there would be two clusters with the same id.
var ErrNotAlone = errors.New("other members still run")

// forcer makes a cluster of one from the data of a member.
type forcer struct{ *local }

// force makes this member the only one, with everything that is in its log:
// what was acknowledged may be there and nowhere else any more. The others are
// removed by an entry like any other, which this member alone commits.
func (f *forcer) force() error {
	index, term := f.snapshots.position()
	if err := f.log.fit(index, term); err != nil {
		return err
	}
	last, err := f.log.LastIndex()
	if err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	last = max(last, index)
	configuration, err := f.latestConfiguration(last)
	if err != nil {
		return err
	}
	self, found := find(configuration.Servers, f.Member())
	if !found {
		return fmt.Errorf("%w; its data cannot become a cluster of its own under the old id: restore a snapshot with --restore-snapshot instead", peerport.ErrRemoved)
	}
	if len(configuration.Servers) == 1 && self.Suffrage == raft.Voter {
		f.logger.Warn("--force-new-cluster: this member is the only one already; start it without the flag from now on")
		return nil
	}
	if err := f.othersAreGone(configuration); err != nil {
		return err
	}
	at, err := placeOf(self.Address)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: self.ID, Address: place{peerURLs: at.peerURLs}.address()}}}
	if term, err = f.log.GetUint64(raftTermKey); err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	if err := f.log.StoreLog(&raft.Log{Index: last + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone)}); err != nil {
		return fmt.Errorf("--force-new-cluster: %w", err)
	}
	f.logger.Warn("--force-new-cluster: every other member is removed for good; start this one without the flag from now on, and add new members", "members", len(configuration.Servers), "index", last+1)
	return nil
}

// latestConfiguration is that of the last membership entry up to last, which
// need not have been committed.
func (f *forcer) latestConfiguration(last uint64) (raft.Configuration, error) {
	snapshots, err := f.snapshots.List()
	if err != nil {
		return raft.Configuration{}, err
	}
	var first uint64
	var latest raft.Configuration
	if len(snapshots) > 0 {
		first, latest = snapshots[0].Index, snapshots[0].Configuration
	}
	for index := last; index > first; index-- {
		var entry raft.Log
		if err := f.log.GetLog(index, &entry); err != nil {
			return latest, fmt.Errorf("read the raft log: %w", err)
		}
		if entry.Type == raft.LogConfiguration {
			return raft.DecodeConfiguration(entry.Data), nil
		}
	}
	return latest, nil
}

func (f *forcer) othersAreGone(configuration raft.Configuration) error {
	ctx, cancel := context.WithTimeout(f.ctx, askTimeout)
	defer cancel()
	others := slices.DeleteFunc(slices.Clone(configuration.Servers), func(s raft.Server) bool { return s.ID == serverID(f.Member()) })
	answers := make(chan error, len(others))
	for _, server := range others {
		go func() { answers <- f.isGone(ctx, server) }()
	}
	var errs []error
	for range others {
		errs = append(errs, <-answers)
	}
	return errors.Join(errs...)
}

func (f *forcer) isGone(ctx context.Context, server raft.Server) error {
	member, err := memberID(server.ID)
	if err != nil {
		return err
	}
	at, err := placeOf(server.Address)
	if err != nil {
		return err
	}
	client, err := f.peers.client(member, at.peerURLs)
	if err != nil {
		return err
	}
	if _, err := client.Term(ctx, &peerpb.TermRequest{}); err != nil {
		return nil //nolint:nilerr // whatever it is, nobody answers there as this member
	}
	return fmt.Errorf("%w: --force-new-cluster is for a member whose others are lost, and member %x answers at %s; stop it for good first, or use `etcdctl member remove`", ErrNotAlone, member, at.peerURLs)
}

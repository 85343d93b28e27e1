package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/dustin/go-humanize"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/member"
	"muster/provision/snapshot"
)

// Snapshot saves a snapshot of the cluster on the workstation, checked, as
// TakeSnapshot does. It belongs before the first step that can lose data.
func Snapshot(place snapshot.Place) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		_, err := TakeSnapshot(ctx, r, place)
		return err
	}
}

// errNoMember is the error of a cluster of which no member can be asked.
var errNoMember = errors.New("no member answers that could save a snapshot; see muster status")

// TakeSnapshot saves a snapshot of the cluster to a place on the workstation. It
// asks the members whose host is connected, the followers first, until one has
// sent a whole one. Everything that was acknowledged before is in it. The run's
// bundle must hold the CA and the healthcheck client's pair.
func TakeSnapshot(ctx context.Context, r *Run, place snapshot.Place) (*snapshot.Saved, error) {
	failed := []error{}
	for _, h := range candidates(ctx, r) {
		saved, err := h.saveSnapshot(ctx, place)
		if err == nil {
			r.report(Note, h.step, "", fmt.Sprintf("saved %s: revision %d, %d keys, %s, from %s",
				saved.Path, saved.Revision, saved.Keys, humanize.IBytes(uint64(saved.Size)), h.Name)) //nolint:gosec // not negative
			return saved, nil
		}
		if saved != nil || errors.Is(err, snapshot.ErrPlace) {
			return saved, &localError{err}
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failed = append(failed, &hostError{h.Name, err})
	}
	if len(failed) == 0 {
		return nil, errNoMember
	}
	return nil, errors.Join(failed...)
}

// candidates are the hosts of the voting members that answer and have a leader,
// the leader's last.
func candidates(ctx context.Context, r *Run) []*Host {
	var mu sync.Mutex
	var followers, leader []*Host
	var wg sync.WaitGroup
	for _, h := range r.Hosts {
		if h.Remote == nil {
			continue
		}
		wg.Go(func() {
			s, err := h.status(ctx)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil || s.IsLearner || s.Leader == 0:
				r.Log.Debug("not asked for a snapshot", "host", h.Name, "error", err)
			case s.Leader == s.Header.MemberId:
				leader = append(leader, h)
			default:
				followers = append(followers, h)
			}
		})
	}
	wg.Wait()
	slices.SortFunc(followers, func(a, b *Host) int { return slices.Index(r.Hosts, a) - slices.Index(r.Hosts, b) })
	return append(followers, leader...)
}

// status asks the host's member how it is. No leader is needed for that.
func (h *Host) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if !knock(ctx, h, h.Want.Member.ClientURL) {
		return nil, errors.New("nobody listens there")
	}
	client, err := h.client()
	if err != nil {
		return nil, err
	}
	defer client.Close() //nolint:errcheck // nothing is lost
	return client.Status(ctx, client.Endpoints()[0])
}

// client is one of the host's member, through the connection of the host.
func (h *Host) client() (*clientv3.Client, error) {
	config, err := member.TLS(h.run.Bundle.CA, h.run.Bundle.HealthcheckClient)
	if err != nil {
		return nil, err
	}
	return member.Connect(h.Want.Member.ClientURL, config, h.Remote.DialContext)
}

func (h *Host) saveSnapshot(ctx context.Context, place snapshot.Place) (*snapshot.Saved, error) {
	client, err := h.client()
	if err != nil {
		return nil, err
	}
	defer client.Close() //nolint:errcheck // what it has sent is checked
	place.Progress = h.progress("snapshot")
	return place.Save(ctx, client, snapshot.Origin{Cluster: h.run.Cluster.Name, Member: h.Name})
}

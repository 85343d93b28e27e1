package step

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/observed"
	"muster/provision/snapshot"
)

// Loss is what a restore takes away.
type Loss struct {
	Cluster string `json:"cluster"`
	// Snapshot is what there will be, Origin where it was taken as far as that
	// is recorded.
	Snapshot snapshot.Contents `json:"snapshot"`
	Origin   snapshot.Origin   `json:"origin"`
	// Begins is the revision at which the restored cluster begins.
	Begins int64 `json:"begins"`
	// Current is what there is; nil when no member answers, so that nobody
	// knows.
	Current *Current `json:"current,omitempty"`
	// Aside are the data directories that are moved aside.
	Aside []Aside `json:"aside"`
}

// Current is the state of a cluster as one of its members knows it.
type Current struct {
	Member    string `json:"member"`
	ClusterID string `json:"clusterID"` // hexadecimal
	Revision  int64  `json:"revision"`
	Keys      int64  `json:"keys"`
}

// Aside is a data directory that is in the way of a restore.
type Aside struct {
	Host string `json:"host"`
	Dir  string `json:"dir"`
}

// Confirm shows what will be lost, and goes on only if that is accepted. Where
// there is no data, nobody is asked.
func (s *Restore) Confirm(ask func(Loss) (bool, error)) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		loss := Loss{Cluster: r.Cluster.Name, Snapshot: s.Saved, Origin: s.Origin, Begins: s.Contents.Revision}
		for _, h := range r.Hosts {
			if h.Facts.Data == observed.DataFilled && !s.continues(h) {
				loss.Aside = append(loss.Aside, Aside{h.Name, h.Want.Member.DataDir})
			}
		}
		if len(loss.Aside) == 0 {
			return nil
		}
		loss.Current = current(ctx, r)
		ok, err := ask(loss)
		if err != nil {
			return &localError{err}
		}
		if !ok {
			return ErrDeclined
		}
		return nil
	}
}

// current asks every member what it has, and returns the most advanced one.
func current(ctx context.Context, r *Run) *Current {
	var mu sync.Mutex
	var most *Current
	var wg sync.WaitGroup
	for _, h := range r.Hosts {
		if !h.Facts.Unit.Running() {
			continue
		}
		wg.Go(func() {
			c, err := h.current(ctx)
			if err != nil {
				r.Log.Debug("the member does not say what it has", "host", h.Name, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if most == nil || c.Revision > most.Revision {
				most = c
			}
		})
	}
	wg.Wait()
	return most
}

// current asks without a leader: what a member has is what can be lost.
func (h *Host) current(ctx context.Context) (*Current, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client, err := h.client()
	if err != nil {
		return nil, err
	}
	defer client.Close() //nolint:errcheck // nothing is lost
	got, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly(), clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	return &Current{Member: h.Name, ClusterID: fmt.Sprintf("%x", got.Header.ClusterId), Revision: got.Header.Revision, Keys: got.Count}, nil
}

// Preflight is the Preflight of a restore: data that is there may go aside, if
// it is this cluster's.
func (s *Restore) Preflight(ctx context.Context, r *Run) error {
	var found PreflightError
	trusted, err := trustedCAs(r.Cluster.PKI.Dir)
	if err != nil {
		return err
	}
	for _, h := range r.Hosts {
		e := examination{Host: h, found: &found}
		e.machine()
		if err := e.pod(); err != nil {
			return &localError{err}
		}
		e.space()
		e.clock(r.Hosts)
		s.room(e)
		if h.Remote.Privilege().Problem == "" {
			e.ports()
			e.ownData()
			e.record(r.Cluster.PKI.Dir, trusted)
		}
		e.warnings()
	}
	if len(found.Problems) > 0 {
		return &found
	}
	return findPrograms(ctx, r)
}

// copies is how often a snapshot lies on a host at most: as it is, and in the
// store that is made of it, which takes more while it is made.
const copies = 3

func (s *Restore) room(e examination) {
	need := copies*s.Contents.Size + dataMinimum
	if free, known := e.Facts.Free["data"]; known && free < need && !s.continues(e.Host) {
		e.problem("%d MiB are free for %s, and restoring the snapshot needs %d MiB beside the old data; make room", free>>20, e.Want.Member.DataDir, need>>20)
	}
}

// ownData refuses data that nothing says to be this cluster's.
func (e examination) ownData() {
	switch {
	case e.Facts.Data == observed.DataLink:
		e.problem("%s is a symbolic link; name the real directory as dataDir", e.Want.Member.DataDir)
	case e.Facts.Data == observed.DataFilled && e.Facts.Record == (observed.Record{}):
		e.problem("%s holds data and nothing says whose; if nobody needs it, move it away, or name another dataDir", e.Want.Member.DataDir)
	}
}

// returning refuses to go on beside an etcd that is being given back.
func (e examination) returning() bool {
	if e.Facts.Adoption.Returning == "" {
		return false
	}
	e.problem("giving back the etcd of this host was interrupted; run muster adopt --undo again")
	return true
}

// restoring refuses to go on beside a restore that was interrupted.
func (e examination) restoring() {
	r := e.Facts.Restoring
	switch {
	case e.returning():
	case e.Facts.Adoption.Begun() || r.Adopts:
		e.problem("taking over the etcd of this host was interrupted; run muster adopt again, or muster adopt --undo")
	case r != (observed.Restoring{}):
		e.problem("a restore that began at %s was interrupted; run muster restore again with the same file (SHA-256 %.16s...) and --bump-revision %d", r.Begun.Format(time.RFC3339), cmp.Or(r.Saved, r.Snapshot), r.Bump)
	}
}

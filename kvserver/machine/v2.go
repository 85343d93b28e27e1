package machine

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"

	"muster/kvserver/v2tree"
	"muster/kvserver/v2tree/v2pb"
)

// V2 is the data of etcd's API version 2, which has nothing to do with the keys
// of version 3. Members keep it whether or not they serve that API.
type V2 struct{ m *Machine }

// V2 gives the data of version 2.
func (m *Machine) V2() V2 { return V2{m: m} }

// Get is v2tree.Tree.Get. The error can be ErrClosed, too.
func (v V2) Get(path string, recursive bool, now time.Time) (e *v2store.Event, err error) {
	err = v.read(func(t *v2tree.Tree) error {
		e, err = t.Get(path, recursive, now)
		return err
	})
	return e, err
}

// Find is v2tree.Tree.Find, with the index that the tree is at. The error can be
// ErrClosed, too.
func (v V2) Find(path string, recursive bool, since uint64) (e *v2store.Event, index uint64, err error) {
	err = v.read(func(t *v2tree.Tree) error {
		index = t.Index()
		if since == 0 {
			return nil
		}
		e, err = t.Find(path, recursive, since)
		return err
	})
	return e, index, err
}

// Stats is what the writes came to.
func (v V2) Stats() (stats v2store.Stats, err error) {
	err = v.read(func(t *v2tree.Tree) error {
		stats = t.Stats()
		return nil
	})
	return stats, err
}

// NextExpiry is v2tree.Tree.NextExpiry. The error can be ErrClosed, too.
func (v V2) NextExpiry() (at time.Time, ok bool, err error) {
	err = v.read(func(t *v2tree.Tree) error {
		at, ok, err = t.NextExpiry()
		return err
	})
	return at, ok, err
}

func (v V2) read(fn func(*v2tree.Tree) error) (err error) {
	g, err := v.m.stores.acquire()
	if err != nil {
		return err
	}
	defer g.release()
	snapshot := g.store.DB().NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	tree, err := v2tree.Open(snapshot)
	if err != nil {
		return err
	}
	return fn(tree)
}

// Observe has fn told of every change, in order and when it is visible, in place
// of any other observer; nil ends it. The rules for fn are those of Observer. It
// is called without changes when a checkpoint was installed.
func (v V2) Observe(fn func([]v2tree.Change)) {
	v.m.applying.Lock()
	defer v.m.applying.Unlock()
	v.m.v2Observer = fn
}

// v2Request carries out a request of version 2. Neither version 3's alarms nor
// its users have a meaning for it, as in etcd.
func (s *step) v2Request(r *v2pb.Request) (v2tree.Result, error) {
	if s.v2 == nil {
		w, err := v2tree.NewWriter(s.w.Batch())
		if err != nil {
			return v2tree.Result{}, err
		}
		s.v2 = w
	}
	return s.v2.Apply(r)
}

// finishV2 completes what requests of version 2 wrote and returns the changes.
func (s *step) finishV2() ([]v2tree.Change, error) {
	if s.v2 == nil {
		return nil, nil
	}
	changes, err := s.v2.Finish()
	if err != nil {
		return nil, fmt.Errorf("write version 2's tree: %w", err)
	}
	return changes, nil
}

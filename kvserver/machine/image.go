package machine

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/machine/auth"
	"muster/kvserver/mvcc"
	"muster/kvserver/v2tree"
)

// Image is the whole state at one moment, for saving it in another form. It
// does not change while entries are applied. Close it soon: it keeps deleted
// data on disk.
type Image struct {
	g     *generation
	view  *mvcc.PinnedView
	state *state
}

// Image of the present state. The error is ErrClosed or a failure of the
// store.
func (m *Machine) Image() (*Image, error) {
	g, err := m.stores.acquire()
	if err != nil {
		return nil, err
	}
	view, err := g.store.PinAll()
	if err != nil {
		g.release()
		return nil, fmt.Errorf("take an image of the state: %w", err)
	}
	i := &Image{g: g, view: view}
	if i.state, err = loadState(view.Reader()); err != nil {
		return nil, errors.Join(fmt.Errorf("take an image of the state: %w", err), i.Close())
	}
	return i, nil
}

// Close releases the image.
func (i *Image) Close() error {
	defer i.g.release()
	return i.view.Close()
}

// Position is the last entry that is in the image.
func (i *Image) Position() Position { return i.state.Position }

// Head is where the keys stand.
func (i *Image) Head() mvcc.Head { return i.view.Head() }

// Members is the member list, by ID. The caller must not change it.
func (i *Image) Members() []Member { return i.state.members }

// Removed are the ids of former members, ascending.
func (i *Image) Removed() []uint64 { return i.state.removed }

// Alarms are the alarms raised, by type and member.
func (i *Image) Alarms() []*pb.AlarmMember { return i.state.alarmsOf(pb.AlarmType_NONE) }

// Auth is what is known of users and their permissions.
func (i *Image) Auth() *auth.State { return i.state.auth }

// Changes is mvcc.PinnedView.Changes.
func (i *Image) Changes(ctx context.Context, fn func(mvcc.Change) error) error {
	return i.view.Changes(ctx, fn)
}

// EachLease calls fn with every lease, by ID taken for unsigned.
func (i *Image) EachLease(fn func(Lease) error) error {
	return leaseTable{i.view.Reader()}.each(fn)
}

// EachV2 calls fn with the records of version 2's data, as they are stored, in
// order. They are valid only during the call.
func (i *Image) EachV2(fn func(key, value []byte) error) error {
	return eachBelow(i.view.Reader(), []byte(v2tree.Prefix), fn)
}

package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
	"muster/kvserver/mvcc"
	"muster/kvserver/v2tree"
)

// Builder makes a state for Install from what was saved elsewhere: one without
// members, before the first entry of a log. The same calls make the same
// state.
type Builder struct {
	store  *mvcc.Store
	loader *mvcc.Loader
	batch  *pebble.Batch
	bytes  int64 // of the leases
}

func (b *Builder) leases() *leaseWriter {
	return &leaseWriter{batch: b.batch, charge: func(bytes int64) { b.bytes += bytes }}
}

// NewBuilder begins a state in dir, which must not exist. It must end with
// Finish or Discard.
func NewBuilder(dir string, opts Options) (*Builder, error) {
	store, err := mvcc.Open(dir, mvcc.Options{
		Logger: opts.Logger, OnFatal: opts.OnFatal, FS: opts.FS,
		CacheBytes: opts.CacheBytes, MemTableBytes: opts.MemTableBytes,
	})
	if err != nil {
		return nil, err
	}
	b := &Builder{store: store}
	if b.loader, err = store.NewLoader(); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	b.batch = store.DB().NewBatch()
	return b, nil
}

// Change adds a change of the keys; see mvcc.Loader.Add.
func (b *Builder) Change(c mvcc.Change) error { return b.loader.Add(c) }

// Lease adds a lease.
func (b *Builder) Lease(l Lease) error {
	if err := b.leases().add(l); err != nil {
		return err
	}
	return b.flushIfLarge()
}

// Alarm adds an alarm.
func (b *Builder) Alarm(a *pb.AlarmMember) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err == nil {
		err = b.batch.Set(alarmKey(a), value, nil)
	}
	if err != nil {
		return fmt.Errorf("write an alarm: %w", err)
	}
	return nil
}

// Auth sets what is known of users and their permissions. The caller must not
// change them any more.
func (b *Builder) Auth(enabled bool, revision uint64, users []*authpb.User, roles []*authpb.Role) error {
	if !enabled && revision <= 1 && len(users) == 0 && len(roles) == 0 {
		return nil // as in a new state
	}
	return storeAuth(b.batch, auth.Load(false, 0, nil, nil), auth.Load(enabled, revision, users, roles))
}

// V2 adds a record of version 2's data, as Image.EachV2 gave it.
func (b *Builder) V2(key, value []byte) error {
	if err := b.batch.Set(append([]byte(v2tree.Prefix), key...), value, nil); err != nil {
		return fmt.Errorf("write a record of version 2: %w", err)
	}
	return b.flushIfLarge()
}

// Finish completes the state and closes it; compacted is as in
// mvcc.Loader.Finish. On return it is durable.
func (b *Builder) Finish(compacted int64) error {
	err := b.loader.Finish(compacted)
	b.loader = nil
	if err == nil {
		err = b.flush()
	}
	if err == nil {
		err = b.attach()
	}
	if err == nil {
		err = b.store.Charge(b.batch, b.bytes)
	}
	if err == nil {
		err = b.flush()
	}
	if err == nil {
		err = b.store.Flush()
	}
	return errors.Join(err, b.Discard())
}

// attach gives the leases their keys: those whose newest version names them.
// As in etcd a lease that does not exist is ignored.
func (b *Builder) attach() error {
	var known []int64
	if err := (leaseTable{b.store.DB()}).each(func(l Lease) error {
		known = append(known, l.ID)
		return nil
	}); err != nil {
		return err
	}
	slices.Sort(known)
	view := b.store.Pin()
	err := view.Visit(context.Background(), []byte{0}, []byte{0}, func(r mvcc.Record) (bool, error) {
		if _, found := slices.BinarySearch(known, r.Lease); !found {
			return true, nil
		}
		if err := b.leases().move(r.Key, 0, r.Lease); err != nil {
			return false, err
		}
		return true, b.flushIfLarge()
	})
	return errors.Join(err, view.Close())
}

// buildBatchBytes is about how much a Builder keeps in memory.
const buildBatchBytes = 4 << 20

func (b *Builder) flushIfLarge() error {
	if b.batch.Len() < buildBatchBytes {
		return nil
	}
	return b.flush()
}

func (b *Builder) flush() error {
	if err := b.store.DB().Apply(b.batch, pebble.NoSync); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	if err := b.batch.Close(); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	b.batch = b.store.DB().NewBatch()
	return nil
}

// Discard releases the builder. Without Finish the directory is of no use.
func (b *Builder) Discard() error {
	var err error
	if b.loader != nil {
		err = b.loader.Discard()
	}
	return errors.Join(err, b.batch.Close(), b.store.Close())
}

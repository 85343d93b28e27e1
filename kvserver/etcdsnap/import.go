package etcdsnap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// Restore makes dir, which must not exist, a state of what the snapshot holds,
// for machine.Install. Memory is bounded. The same snapshot makes the same
// state everywhere. Errors are ErrForeign, mvcc.ErrDamaged, the context's and
// failures of the disk; dir is of no use then.
func (f *File) Restore(ctx context.Context, dir string, opts machine.Options) error {
	builder, err := machine.NewBuilder(dir, opts)
	if err != nil {
		return fmt.Errorf("restore %s: %w", f.path, err)
	}
	compacted, err := f.read(ctx, builder)
	if err != nil {
		return errors.Join(fmt.Errorf("restore %s: %w", f.path, err), builder.Discard())
	}
	if err := builder.Finish(compacted); err != nil {
		return fmt.Errorf("restore %s: %w", f.path, err)
	}
	return nil
}

// read turns into an error the panic, or the fault, with which bbolt answers a
// database that contradicts itself although its checksum is right.
func (f *File) read(ctx context.Context, to *machine.Builder) (compacted int64, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: the database is damaged: %v", ErrForeign, cause)
		}
	}()
	err = f.db.View(func(tx *bbolt.Tx) error {
		r := &reader{ctx: ctx, tx: tx, to: to}
		for _, step := range []func() error{r.meta, r.history, r.leases, r.alarms, r.auth, r.v2} {
			if err := step(); err != nil {
				return err
			}
		}
		compacted = r.compacted
		return nil
	})
	return compacted, err
}

// reader hands the buckets of a snapshot to a builder.
type reader struct {
	ctx       context.Context
	tx        *bbolt.Tx
	to        *machine.Builder
	compacted int64
}

// required returns a bucket that every etcd has.
func (r *reader) required(b backend.Bucket) (*bbolt.Bucket, error) {
	found := r.tx.Bucket(b.Name())
	if found == nil {
		return nil, fmt.Errorf("%w: there is no bucket %q", ErrForeign, b.Name())
	}
	return found, nil
}

// each calls fn with what is in a bucket, which may be missing.
func (r *reader) each(b backend.Bucket, fn func(key, value []byte) error) error {
	bucket := r.tx.Bucket(b.Name())
	if bucket == nil {
		return nil
	}
	return bucket.ForEach(func(key, value []byte) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := fn(key, value); err != nil {
			return fmt.Errorf("bucket %s, key %x: %w", b.Name(), key, err)
		}
		return nil
	})
}

// meta finds the compacted revision. Like etcd after a restart it takes a
// compaction that was scheduled for one that has been made; what it should
// have removed goes when the store is scrubbed.
func (r *reader) meta() error {
	meta, err := r.required(schema.Meta)
	if err != nil {
		return err
	}
	r.compacted = -1
	for _, name := range [][]byte{schema.FinishedCompactKeyName, schema.ScheduledCompactKeyName} {
		value := meta.Get(name)
		if value == nil {
			continue
		}
		rev, _, err := parseRevision(value)
		if err != nil {
			return fmt.Errorf("bucket meta, %s: %w", name, err)
		}
		r.compacted = max(r.compacted, rev.Main)
	}
	// Versions before 3.6 store none, and the same buckets.
	value := meta.Get(schema.MetaStorageVersionName)
	if value == nil {
		return nil
	}
	has, err := semver.NewVersion(string(value))
	if err != nil {
		return fmt.Errorf("%w: its storage version is %q", ErrForeign, value)
	}
	if known := semver.New(Version); has.Major != known.Major || has.Minor > known.Minor {
		return fmt.Errorf("%w: its storage version is %s, and the newest known is %s; use a newer musterd", ErrForeign, has, known)
	}
	return nil
}

func (r *reader) history() error {
	if _, err := r.required(schema.Key); err != nil {
		return err
	}
	return r.each(schema.Key, func(key, value []byte) error {
		rev, tombstone, err := parseRevision(key)
		if err != nil {
			return err
		}
		record, err := mvcc.ParseRecord(value)
		if err != nil {
			return err
		}
		change := mvcc.Change{Rev: rev, Tombstone: tombstone, Key: record.Key}
		if !tombstone {
			change.Record = value
			// A record of nothing at all is what "etcdutl snapshot restore
			// --bump-revision" leaves.
			if len(value) > 0 && (len(record.Key) == 0 || record.ModRevision != rev.Main) {
				return fmt.Errorf("%w: it holds key %q of revision %d", ErrForeign, record.Key, record.ModRevision)
			}
		}
		return r.to.Change(change)
	})
}

func (r *reader) leases() error {
	return r.each(schema.Lease, func(_, value []byte) error {
		var l leasepb.Lease
		if err := proto.Unmarshal(value, &l); err != nil {
			return fmt.Errorf("%w: %w", ErrForeign, err)
		}
		return r.to.Lease(machine.Lease{ID: l.ID, TTL: l.TTL, Remaining: l.RemainingTTL})
	})
}

func (r *reader) alarms() error {
	return r.each(schema.Alarm, func(key, _ []byte) error {
		alarm := &pb.AlarmMember{}
		if err := proto.Unmarshal(key, alarm); err != nil {
			return fmt.Errorf("%w: %w", ErrForeign, err)
		}
		return r.to.Alarm(alarm)
	})
}

func (r *reader) auth() error {
	var enabled bool
	var revision uint64
	if bucket := r.tx.Bucket(schema.Auth.Name()); bucket != nil {
		value := bucket.Get(schema.AuthEnabledKeyName)
		enabled = len(value) == 1 && value[0] == 1
		if value := bucket.Get(schema.AuthRevisionKeyName); len(value) == 8 {
			revision = binary.BigEndian.Uint64(value)
		}
	}
	var users []*authpb.User
	err := r.each(schema.AuthUsers, func(_, value []byte) error {
		user := &authpb.User{}
		users = append(users, user)
		return proto.Unmarshal(value, user)
	})
	if err != nil {
		return err
	}
	var roles []*authpb.Role
	err = r.each(schema.AuthRoles, func(_, value []byte) error {
		role := &authpb.Role{}
		roles = append(roles, role)
		return proto.Unmarshal(value, role)
	})
	if err != nil {
		return err
	}
	return r.to.Auth(enabled, revision, users, roles)
}

func (r *reader) v2() error { return r.each(v2Bucket{}, r.to.V2) }

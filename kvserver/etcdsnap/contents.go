package etcdsnap

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// Version is that of the storage schema: the etcd whose buckets these are.
// While a downgrade is enabled snapshots say that they are of the version
// before, whose schema is the same.
const Version = machine.Version

// sink receives the buckets of a snapshot in the order of their names, and
// what is in each in the order of the keys.
type sink interface {
	// bucket begins a bucket, which may stay empty.
	bucket(b backend.Bucket) error
	// put may keep key and value.
	put(key, value []byte) error
}

// contents writes an image as etcd would have stored it, without what version 2
// has.
func contents(ctx context.Context, image *machine.Image, to sink) error {
	for _, b := range []struct {
		bucket backend.Bucket
		write  func() error
	}{
		{schema.Alarm, func() error { return alarms(image, to) }},
		{schema.Auth, func() error { return authState(image, to) }},
		{schema.AuthRoles, func() error { return named(image.Auth().Roles(), to) }},
		{schema.AuthUsers, func() error { return named(image.Auth().Users(), to) }},
		{schema.Cluster, func() error { return to.put(schema.ClusterClusterVersionKeyName, []byte(image.Version())) }},
		{schema.Key, func() error { return history(ctx, image, to) }},
		{schema.Lease, func() error { return leases(image, to) }},
		{schema.Members, func() error { return members(image, to) }},
		{schema.MembersRemoved, func() error { return removed(image, to) }},
		{schema.Meta, func() error { return meta(image, to) }},
	} {
		err := to.bucket(b.bucket)
		if err == nil {
			err = b.write()
		}
		if err != nil {
			return fmt.Errorf("bucket %s: %w", b.bucket.Name(), err)
		}
	}
	return nil
}

// v2Bucket holds version 2's data, in musterd's own form. etcd has none in its
// snapshots, and takes no notice of it.
type v2Bucket struct{}

func (v2Bucket) ID() backend.BucketID    { return -1 }
func (v2Bucket) Name() []byte            { return []byte("muster_v2") }
func (v2Bucket) String() string          { return "muster_v2" }
func (v2Bucket) IsSafeRangeBucket() bool { return false }

// v2 writes the bucket of version 2 if there is anything to write: the snapshot
// of a cluster that does not use version 2 has etcd's buckets only.
func v2(image *machine.Image, to sink) error {
	begun := false
	err := image.EachV2(func(key, value []byte) error {
		if !begun {
			begun = true
			if err := to.bucket(v2Bucket{}); err != nil {
				return err
			}
		}
		return to.put(bytes.Clone(key), bytes.Clone(value))
	})
	if err != nil {
		return fmt.Errorf("bucket %s: %w", v2Bucket{}.Name(), err)
	}
	return nil
}

func alarms(image *machine.Image, to sink) error {
	var keys [][]byte
	for _, alarm := range image.Alarms() {
		key, err := proto.Marshal(alarm)
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	slices.SortFunc(keys, bytes.Compare)
	for _, key := range keys {
		if err := to.put(key, nil); err != nil {
			return err
		}
	}
	return nil
}

func authState(image *machine.Image, to sink) error {
	enabled := []byte{0}
	if image.Auth().Enabled() {
		enabled = []byte{1}
	}
	if err := to.put(schema.AuthEnabledKeyName, enabled); err != nil {
		return err
	}
	return to.put(schema.AuthRevisionKeyName, binary.BigEndian.AppendUint64(nil, image.Auth().Revision()))
}

// named writes users or roles, which come in the order of their names.
func named[T interface {
	proto.Message
	GetName() []byte
}](items []T, to sink) error {
	for _, item := range items {
		value, err := proto.Marshal(item)
		if err != nil {
			return err
		}
		if err := to.put(item.GetName(), value); err != nil {
			return err
		}
	}
	return nil
}

func history(ctx context.Context, image *machine.Image, to sink) error {
	return image.Changes(ctx, func(c mvcc.Change) error {
		if !c.Tombstone {
			return to.put(revisionKey(c.Rev, false), bytes.Clone(c.Record))
		}
		value, err := proto.Marshal(&mvccpb.KeyValue{Key: c.Key})
		if err != nil {
			return err
		}
		return to.put(revisionKey(c.Rev, true), value)
	})
}

func leases(image *machine.Image, to sink) error {
	return image.EachLease(func(l machine.Lease) error {
		value, err := proto.Marshal(&leasepb.Lease{ID: l.ID, TTL: l.TTL, RemainingTTL: l.Remaining})
		if err != nil {
			return err
		}
		return to.put(binary.BigEndian.AppendUint64(nil, uint64(l.ID)), value)
	})
}

func members(image *machine.Image, to sink) error {
	type entry struct{ key, value []byte }
	var entries []entry
	for _, m := range image.Members() {
		value, err := json.Marshal(&membership.Member{
			ID:             types.ID(m.ID),
			RaftAttributes: membership.RaftAttributes{PeerURLs: m.PeerURLs, IsLearner: m.Learner},
			Attributes:     membership.Attributes{Name: m.Name, ClientURLs: m.ClientURLs},
		})
		if err != nil {
			return err
		}
		entries = append(entries, entry{schema.BackendMemberKey(types.ID(m.ID)), value})
	}
	slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(a.key, b.key) })
	for _, e := range entries {
		if err := to.put(e.key, e.value); err != nil {
			return err
		}
	}
	return nil
}

// removed writes who is no member any more, in the order of the keys, which are
// hexadecimal without leading zeros.
func removed(image *machine.Image, to sink) error {
	var keys [][]byte
	for _, id := range image.Removed() {
		keys = append(keys, schema.BackendMemberKey(types.ID(id)))
	}
	slices.SortFunc(keys, bytes.Compare)
	for _, key := range keys {
		if err := to.put(key, []byte("removed")); err != nil {
			return err
		}
	}
	return nil
}

func meta(image *machine.Image, to sink) error {
	state := &raftpb.ConfState{}
	for _, m := range image.Members() {
		if m.Learner {
			state.Learners = append(state.Learners, m.ID)
		} else {
			state.Voters = append(state.Voters, m.ID)
		}
	}
	conf, err := json.Marshal(state)
	if err != nil {
		return err
	}
	entries := map[string][]byte{
		string(schema.MetaConfStateName):      conf,
		string(schema.MetaStorageVersionName): []byte(image.Version()),
	}
	if position := image.Position(); position.Index > 0 { // etcd never stores a zero
		entries[string(schema.MetaConsistentIndexKeyName)] = binary.BigEndian.AppendUint64(nil, position.Index)
		entries[string(schema.MetaTermKeyName)] = binary.BigEndian.AppendUint64(nil, position.Term)
	}
	if compacted := image.Head().Compacted; compacted >= 0 {
		// All that the compaction removes is missing: it was scheduled, and it
		// has finished.
		rev := revisionKey(mvcc.Revision{Main: compacted}, false)
		entries[string(schema.ScheduledCompactKeyName)] = rev
		entries[string(schema.FinishedCompactKeyName)] = rev
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if err := to.put([]byte(key), entries[key]); err != nil {
			return err
		}
	}
	return nil
}

// The form in which etcd stores a revision (server/storage/mvcc/revision.go):
// main and sub with an underscore in between, and a t after a deletion's.
const (
	revisionLen   = 8 + 1 + 8
	separator     = '_'
	tombstoneMark = 't'
)

func revisionKey(rev mvcc.Revision, tombstone bool) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, revisionLen+1), uint64(rev.Main))
	b = append(b, separator)
	b = binary.BigEndian.AppendUint64(b, uint64(rev.Sub))
	if tombstone {
		b = append(b, tombstoneMark)
	}
	return b
}

func parseRevision(b []byte) (rev mvcc.Revision, tombstone bool, err error) {
	tombstone = len(b) == revisionLen+1 && b[revisionLen] == tombstoneMark
	if len(b) != revisionLen && !tombstone || b[8] != separator {
		return rev, false, fmt.Errorf("%w: %x is not a revision", ErrForeign, b)
	}
	main, sub := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[9:])
	if main > 1<<62 || sub >= 1<<32 {
		return rev, false, fmt.Errorf("%w: revision %d.%d is out of range", ErrForeign, main, sub)
	}
	return mvcc.Revision{Main: int64(main), Sub: uint32(sub)}, tombstone, nil
}

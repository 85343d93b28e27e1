package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
)

// Keys of the leases. On disk: do not change.
const (
	leasePrefix    = "s/lease/"    // id: 8 bytes -> TTL, remaining TTL: 8 bytes each
	attachedPrefix = "s/attached/" // id: 8 bytes, key -> nothing
)

// maxLeaseTTL is etcd's limit (server/lease/lessor.go), in seconds.
const maxLeaseTTL = 9_000_000_000

// Lease is what the members agree on about a lease. When it expires is not
// part of it: the leader measures that with its own clock and proposes to
// revoke.
type Lease struct {
	ID int64
	// TTL is what was granted, in seconds.
	TTL int64
	// Remaining is how much of it a leader said was left, in seconds, so that
	// the next leader does not begin anew; 0 when none did since the lease was
	// granted or renewed.
	Remaining int64
}

// LeaseChange tells of a lease that was granted or whose remaining TTL was
// set, or, when Gone, that was revoked.
type LeaseChange struct {
	Lease
	Gone bool
}

// Leases gives the leases of a machine.
type Leases struct{ m *Machine }

// Leases of the machine.
func (m *Machine) Leases() Leases { return Leases{m: m} }

// All returns the leases, by ID. The error is ErrClosed or a failure of the
// store.
func (l Leases) All() ([]Lease, error) {
	var all []Lease
	err := l.read(func(t leaseTable) (err error) {
		all, err = t.all()
		return err
	})
	return all, err
}

// Get returns a lease. The error can be ErrLeaseNotFound.
func (l Leases) Get(id int64) (Lease, error) {
	var lease Lease
	err := l.read(func(t leaseTable) (err error) {
		lease, err = t.get(id)
		return err
	})
	return lease, err
}

// Keys returns the keys attached to a lease, in order. The error can be
// ErrLeaseNotFound.
func (l Leases) Keys(id int64) ([][]byte, error) {
	var keys [][]byte
	err := l.read(func(t leaseTable) error {
		if _, err := t.get(id); err != nil {
			return err
		}
		var err error
		keys, err = t.keys(id)
		return err
	})
	return keys, err
}

func (l Leases) read(fn func(leaseTable) error) (err error) {
	g, err := l.m.stores.acquire()
	if err != nil {
		return err
	}
	defer g.release()
	snapshot := g.store.DB().NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	return fn(leaseTable{snapshot})
}

// Observe returns the leases and has fn told of every later change, in order
// and when it is visible, in place of any other observer; nil ends it. The
// rules for fn are those of Observer. It is called without changes when a
// checkpoint was installed: the leases have to be read again. The error is
// ErrClosed or a failure of the store.
func (l Leases) Observe(fn func([]LeaseChange)) ([]Lease, error) {
	l.m.applying.Lock()
	defer l.m.applying.Unlock()
	all, err := l.All()
	if err != nil {
		return nil, err
	}
	l.m.leaseObserver = fn
	return all, nil
}

// leaseTable reads the leases of a store, or of what is being written to it.
type leaseTable struct{ r pebble.Reader }

func leaseKey(id int64) []byte {
	return binary.BigEndian.AppendUint64([]byte(leasePrefix), uint64(id))
}

func attachedKey(id int64, key []byte) []byte {
	b := make([]byte, 0, len(attachedPrefix)+8+len(key))
	b = binary.BigEndian.AppendUint64(append(b, attachedPrefix...), uint64(id))
	return append(b, key...)
}

func (t leaseTable) get(id int64) (Lease, error) {
	v, closer, err := t.r.Get(leaseKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return Lease{}, ErrLeaseNotFound
	}
	if err != nil {
		return Lease{}, fmt.Errorf("read lease %x: %w", id, err)
	}
	l, err := decodeLease(id, v)
	return l, errors.Join(err, closer.Close())
}

func decodeLease(id int64, v []byte) (Lease, error) {
	if len(v) != 16 {
		return Lease{}, fmt.Errorf("read lease %x: %d bytes, want 16", id, len(v))
	}
	return Lease{
		ID:        id,
		TTL:       int64(binary.BigEndian.Uint64(v)),
		Remaining: int64(binary.BigEndian.Uint64(v[8:])),
	}, nil
}

func (t leaseTable) all() ([]Lease, error) {
	var leases []Lease
	err := t.each(func(l Lease) error {
		leases = append(leases, l)
		return nil
	})
	return leases, err
}

// each calls fn with every lease, by ID taken for unsigned.
func (t leaseTable) each(fn func(Lease) error) error {
	return eachBelow(t.r, []byte(leasePrefix), func(rest, value []byte) error {
		if len(rest) != 8 {
			return fmt.Errorf("an ID of %d bytes", len(rest))
		}
		l, err := decodeLease(int64(binary.BigEndian.Uint64(rest)), value)
		if err != nil {
			return err
		}
		return fn(l)
	})
}

func (t leaseTable) keys(id int64) ([][]byte, error) {
	var keys [][]byte
	err := eachBelow(t.r, attachedKey(id, nil), func(rest, _ []byte) error {
		keys = append(keys, append([]byte{}, rest...))
		return nil
	})
	return keys, err
}

// leaseWriter changes leases in a step.
type leaseWriter struct {
	batch   *pebble.Batch
	charge  func(bytes int64) // for what the store has in use
	changes []LeaseChange
}

const (
	leaseSize    = int64(len(leasePrefix) + 8 + 16)
	attachedSize = int64(len(attachedPrefix) + 8) // without the key
)

// add stores a lease that did not exist.
func (w *leaseWriter) add(l Lease) error {
	w.charge(leaseSize)
	return w.put(l)
}

func (w *leaseWriter) table() leaseTable { return leaseTable{w.batch} }

// put stores a lease that exists.
func (w *leaseWriter) put(l Lease) error {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(l.TTL))
	value = binary.BigEndian.AppendUint64(value, uint64(l.Remaining))
	if err := w.batch.Set(leaseKey(l.ID), value, nil); err != nil {
		return fmt.Errorf("write lease %x: %w", l.ID, err)
	}
	w.changes = append(w.changes, LeaseChange{Lease: l})
	return nil
}

func (w *leaseWriter) remove(l Lease) error {
	if err := w.batch.Delete(leaseKey(l.ID), nil); err != nil {
		return fmt.Errorf("remove lease %x: %w", l.ID, err)
	}
	w.charge(-leaseSize)
	w.changes = append(w.changes, LeaseChange{Lease: l, Gone: true})
	return nil
}

// move is an mvcc.LeaseChange.
func (w *leaseWriter) move(key []byte, before, after int64) error {
	if before != 0 {
		if err := w.batch.Delete(attachedKey(before, key), nil); err != nil {
			return fmt.Errorf("detach a key from lease %x: %w", before, err)
		}
		w.charge(-attachedSize - int64(len(key)))
	}
	if after != 0 {
		if err := w.batch.Set(attachedKey(after, key), nil, nil); err != nil {
			return fmt.Errorf("attach a key to lease %x: %w", after, err)
		}
		w.charge(attachedSize + int64(len(key)))
	}
	return nil
}

func (s *step) leaseRequest(r *pb.InternalRaftRequest, who auth.Identity) (proto.Message, error) {
	if r.LeaseCheckpoint != nil {
		return s.checkpoint(r.LeaseCheckpoint)
	}
	if err := s.admit(r.LeaseGrant != nil); err != nil {
		return nil, err
	}
	if r.LeaseGrant != nil {
		return s.grant(r.LeaseGrant)
	}
	if err := s.state.auth.Of(who).UseLease(r.LeaseRevoke.ID, s.leases.table().keys); err != nil {
		return nil, err
	}
	return s.revoke(r.LeaseRevoke)
}

// grant adds a lease. The proposer has chosen the ID and has raised the TTL to
// its minimum.
func (s *step) grant(r *pb.LeaseGrantRequest) (proto.Message, error) {
	if r.ID == 0 {
		return nil, ErrLeaseNotFound
	}
	if r.TTL > maxLeaseTTL {
		return nil, ErrLeaseTTLTooLarge
	}
	_, err := s.leases.table().get(r.ID)
	if err == nil {
		return nil, ErrLeaseExists
	}
	if !errors.Is(err, ErrLeaseNotFound) {
		return nil, err
	}
	if err := s.leases.add(Lease{ID: r.ID, TTL: r.TTL}); err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{Header: s.header(), ID: r.ID, TTL: r.TTL}, nil
}

// revoke removes a lease and the keys attached to it, in key order and in one
// revision.
func (s *step) revoke(r *pb.LeaseRevokeRequest) (proto.Message, error) {
	lease, err := s.leases.table().get(r.ID)
	if err != nil {
		return nil, err
	}
	keys, err := s.leases.table().keys(r.ID)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if _, err := s.w.Delete(context.Background(), key, nil, nil); err != nil {
			return nil, fmt.Errorf("%w: %w", errHalfWritten, err)
		}
	}
	if err := s.leases.remove(lease); err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: s.header()}, nil
}

// checkpoint notes how much is left of leases. Those that are gone meanwhile
// are skipped.
func (s *step) checkpoint(r *pb.LeaseCheckpointRequest) (proto.Message, error) {
	for _, c := range r.GetCheckpoints() {
		lease, err := s.leases.table().get(c.GetID())
		if errors.Is(err, ErrLeaseNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		lease.Remaining = c.GetRemaining_TTL()
		if err := s.leases.put(lease); err != nil {
			return nil, err
		}
	}
	return &pb.LeaseCheckpointResponse{Header: s.header()}, nil
}

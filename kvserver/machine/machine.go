package machine

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/mvcc"
	"muster/kvserver/v2tree"
)

// Options of a machine. The zero value is usable.
type Options struct {
	// Logger receives what happens to the store; nil discards it.
	Logger *slog.Logger
	// OnFatal is as in mvcc.Options.
	OnFatal func(error)
	// FS holds the files; nil is the operating system's.
	FS vfs.FS
	// CacheBytes and MemTableBytes are as in mvcc.Options.
	CacheBytes    int64
	MemTableBytes uint64
	// Operations is what is counted; nil counts for nobody.
	Operations *Operations
}

// Machine is the state machine of one member, in one directory.
//
// All methods may be called at any time from any goroutine. Those that change
// the state wait for each other; reads never wait for them.
type Machine struct {
	dir        *directory
	log        *slog.Logger
	opts       mvcc.Options
	operations *Operations

	applying      sync.Mutex            // held by Apply, Install, Membership.Seed and Close
	closed        bool                  // guarded by applying
	observer      Observer              // guarded by applying; nil when nobody observes
	leaseObserver func([]LeaseChange)   // guarded by applying; nil when nobody observes
	tokenObserver func([]TokenChange)   // guarded by applying; nil when nobody observes
	v2Observer    func([]v2tree.Change) // guarded by applying; nil when nobody observes
	scrubbing     sync.Mutex            // held by Space.ScrubStep
	state         atomic.Pointer[state]
	stores        stores
}

// Open opens the machine in dir, which it makes and locks against other
// processes. It does not read the data.
func Open(dir string, opts Options) (*Machine, error) {
	if opts.Operations == nil {
		opts.Operations = &Operations{}
	}
	m := &Machine{
		operations: opts.Operations,
		log:        opts.Logger,
		opts: mvcc.Options{
			Logger:        opts.Logger,
			OnFatal:       opts.OnFatal,
			FS:            opts.FS,
			CacheBytes:    opts.CacheBytes,
			MemTableBytes: opts.MemTableBytes,
		},
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.opts.FS == nil {
		m.opts.FS = vfs.Default
	}
	d, err := openDirectory(m.opts.FS, dir, func(path string) error { return createStore(path, m.opts) })
	if err != nil {
		return nil, err
	}
	m.dir = d
	g, s, err := openGeneration(d.current, m.opts)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	m.stores.swap(g)
	m.state.Store(s)
	if err := d.removeOthers(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Applied is the index and term of the last entry applied, zero when there is
// none. What it covers is visible to reads.
func (m *Machine) Applied() (index, term uint64) {
	s := m.state.Load()
	return s.Index, s.Term
}

// Members is the member list, by ID.
func (m *Machine) Members() []Member {
	members := slices.Clone(m.state.Load().members)
	for i := range members {
		members[i] = members[i].clone()
	}
	return members
}

// Alarms are the alarms raised, by type and member.
func (m *Machine) Alarms() []*pb.AlarmMember {
	return m.state.Load().alarmsOf(pb.AlarmType_NONE)
}

// Range answers r from the present state; the header has the revision only.
// The request must have passed CheckRange. Errors are ErrCompacted,
// ErrFutureRev, ErrClosed, the context's, and failures of the store.
func (m *Machine) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	g, err := m.stores.acquire()
	if err != nil {
		return nil, err
	}
	defer g.release()
	m.operations.Ranges.Add(1)
	return g.store.Range(ctx, r)
}

// ReadTxn answers a transaction that TxnIsReadOnly, all of it from the same
// state; otherwise the error is ErrNotReadOnly. The request must have passed
// CheckTxn. Other errors are those of Range.
func (m *Machine) ReadTxn(ctx context.Context, r *pb.TxnRequest) (resp *pb.TxnResponse, err error) {
	g, err := m.stores.acquire()
	if err != nil {
		return nil, err
	}
	defer g.release()
	m.operations.Txns.Add(1)
	view := g.store.Pin()
	defer func() { err = errors.Join(err, view.Close()) }()
	return readTxn(ctx, view.View, r)
}

// Revision is the current revision of the keys; 1 in a new store.
func (m *Machine) Revision() int64 { return m.stores.head().Current }

// CompactedRevision is the lowest revision that can be read, -1 when nothing
// was ever compacted.
func (m *Machine) CompactedRevision() int64 { return m.stores.head().Compacted }

// Flush returns once everything applied before the call is durable.
func (m *Machine) Flush() error {
	g, err := m.stores.acquire()
	if err != nil {
		return err
	}
	defer g.release()
	return g.store.Flush()
}

// Close waits for the calls under way and releases the directory. What was
// not flushed has to be applied again after the next Open.
func (m *Machine) Close() error {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	return errors.Join(m.stores.end(), m.dir.close())
}

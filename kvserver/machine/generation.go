package machine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"muster/kvserver/mvcc"
)

// generation is one store of a machine, from when it is opened until the last
// call that uses it has returned.
type generation struct {
	store  *mvcc.Store
	refs   atomic.Int64
	onLast func() error  // runs when the store was closed
	closed chan struct{} // closed when the store is
	err    error         // of closing; read it after closed
}

func openGeneration(path string, opts mvcc.Options) (*generation, *state, error) {
	opts.MustExist = true
	store, err := mvcc.Open(path, opts)
	if err != nil {
		return nil, nil, err
	}
	s, err := loadState(store.DB())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open the store in %s: %w", path, err), store.Close())
	}
	g := &generation{store: store, closed: make(chan struct{})}
	g.refs.Store(1) // the machine's own
	return g, s, nil
}

// stores hands out the present generation.
type stores struct {
	mu         sync.RWMutex // never held for long
	generation *generation  // nil when there is nothing to use any more
	last       *generation  // the one before nil
}

// acquire returns the present generation, which stays open until it is
// released. The error is ErrClosed.
func (s *stores) acquire() (*generation, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.generation == nil {
		return nil, ErrClosed
	}
	s.generation.refs.Add(1)
	return s.generation, nil
}

// head is where the present generation stands.
func (s *stores) head() mvcc.Head {
	g, err := s.acquire()
	if err != nil {
		return mvcc.Head{}
	}
	defer g.release()
	return g.store.Head()
}

// swap makes g the present generation and returns the one before, whose
// release by the caller ends it.
func (s *stores) swap(g *generation) *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.generation
	s.generation = g
	return old
}

// drop lets go of the present generation without another to follow.
func (s *stores) drop() {
	if g := s.swap(nil); g != nil {
		s.last = g
		g.release()
	}
}

// end is drop; it returns once the last use has ended.
func (s *stores) end() error {
	s.drop()
	<-s.last.closed
	return s.last.err
}

// release ends one use. The last one closes the store: no new use can begin,
// because the machine releases its own only after it let go of the generation.
func (g *generation) release() {
	if g.refs.Add(-1) > 0 {
		return
	}
	g.err = g.store.Close()
	if g.onLast != nil {
		g.err = errors.Join(g.err, g.onLast())
	}
	close(g.closed)
}

// createStore makes a new store in path and closes it again.
func createStore(path string, opts mvcc.Options) error {
	store, err := mvcc.Open(path, opts)
	if err != nil {
		return err
	}
	return store.Close()
}

// Checkpoint writes the present state to dir, which must not exist, and tells
// how far in the log it is. It holds everything applied before the call and
// perhaps some of what is applied meanwhile; the position is exactly that of
// the checkpoint. Files are hard links where the file system allows. Remove
// dir when it is no longer needed.
func (m *Machine) Checkpoint(dir string) (Position, error) {
	g, err := m.stores.acquire()
	if err != nil {
		return Position{}, err
	}
	defer g.release()
	if err := g.store.Checkpoint(dir); err != nil {
		return Position{}, err
	}
	p, err := readPosition(dir, m.opts)
	if err != nil {
		return Position{}, errors.Join(fmt.Errorf("read back the checkpoint: %w", err), m.opts.FS.RemoveAll(dir))
	}
	return p, nil
}

// readPosition looks into a checkpoint.
func readPosition(dir string, opts mvcc.Options) (Position, error) {
	opts.ReadOnly = true
	opts.CacheBytes = 1 << 20
	store, err := mvcc.Open(dir, opts)
	if err != nil {
		return Position{}, err
	}
	s, err := loadState(store.DB())
	if err := errors.Join(err, store.Close()); err != nil {
		return Position{}, err
	}
	return s.Position, nil
}

// Install replaces the whole state by the checkpoint in dir, which must be on
// the same file system and is gone afterwards. Reads go on meanwhile and see
// the state before or after; observers are told. A crash leaves the one or
// the other; after an error it is the one before. When not even that can be
// said, the machine returns ErrClosed from then on.
func (m *Machine) Install(dir string) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	old, err := m.stores.acquire()
	if err != nil {
		return err
	}
	defer old.release()

	staged, err := m.dir.stage(dir)
	if err != nil {
		return fmt.Errorf("install the checkpoint in %s: %w", dir, err)
	}
	g, s, err := openGeneration(staged.path, m.opts)
	if err != nil {
		return errors.Join(fmt.Errorf("install the checkpoint in %s: %w", dir, err), staged.remove())
	}
	replaced, err := staged.makeCurrent()
	if errors.Is(err, errInDoubt) {
		g.release()
		m.stores.drop()
		return errors.Join(fmt.Errorf("install the checkpoint in %s: %w", dir, err), g.err)
	}
	if err != nil {
		g.onLast = staged.remove
		g.release()
		return errors.Join(fmt.Errorf("install the checkpoint in %s: %w", dir, err), g.err)
	}
	old.onLast = func() error {
		err := replaced.remove()
		if err != nil {
			m.log.Warn("cannot remove the replaced store; the next start will", "path", replaced.path, "error", err)
		}
		return nil
	}
	m.stores.swap(g).release()
	m.state.Store(s)
	if m.observer != nil {
		m.observer(g.store.Head().Current, nil)
	}
	if m.leaseObserver != nil {
		m.leaseObserver(nil)
	}
	if m.tokenObserver != nil {
		m.tokenObserver(nil)
	}
	if m.v2Observer != nil {
		m.v2Observer(nil)
	}
	return nil
}

package machine

import (
	"errors"
	"fmt"
)

// Membership is who belongs to the cluster, and who did.
type Membership struct{ m *Machine }

// Membership of the cluster.
func (m *Machine) Membership() Membership { return Membership{m: m} }

// IsLearner tells whether a member is one.
func (p Membership) IsLearner(id uint64) bool {
	s := p.m.state.Load()
	i, found := s.member(id)
	return found && s.members[i].Learner
}

// Removed are the ids of former members, ascending. The caller must not change
// them.
func (p Membership) Removed() []uint64 { return p.m.state.Load().removed }

// Index is that of the last membership entry applied, zero when there is none.
func (p Membership) Index() uint64 { return p.m.state.Load().ConfigurationIndex }

// Seed gives a new store its member list and its place in the log, both
// of which must be the same on every member. On return it is durable.
// Repeating it is harmless as long as nothing was applied; after that, and for
// a different list, the error is ErrNotNew.
func (p Membership) Seed(members []Member, founding Position) error {
	m := p.m
	m.applying.Lock()
	defer m.applying.Unlock()
	g, err := m.stores.acquire()
	if err != nil {
		return err
	}
	defer g.release()

	next := *m.state.Load()
	if next.Index != 0 && (next.Index != founding.Index || next.Term != founding.Term) {
		return fmt.Errorf("seed the member list: %w", ErrNotNew)
	}
	next.Position = founding
	seeded := next.members
	w := g.store.NewWriter()
	for _, member := range members {
		if _, found := next.member(member.ID); !found && len(seeded) > 0 {
			return errors.Join(fmt.Errorf("seed the member list: %w, of other members", ErrNotNew), w.Discard())
		}
		if err := next.setMember(w.Batch(), member.clone()); err != nil {
			return errors.Join(fmt.Errorf("seed the member list: %w", err), w.Discard())
		}
	}
	if len(seeded) > 0 && len(next.members) != len(members) {
		return errors.Join(fmt.Errorf("seed the member list: %w, of other members", ErrNotNew), w.Discard())
	}
	if founding.Index != 0 {
		if err := errors.Join(putPosition(w.Batch(), founding), putConfiguration(w.Batch(), founding)); err != nil {
			return errors.Join(fmt.Errorf("seed the member list: %w", err), w.Discard())
		}
	}
	if err := g.store.Commit(w); err != nil {
		return fmt.Errorf("seed the member list: %w", err)
	}
	if err := g.store.Flush(); err != nil {
		return fmt.Errorf("seed the member list: %w", err)
	}
	m.state.Store(&next)
	return nil
}

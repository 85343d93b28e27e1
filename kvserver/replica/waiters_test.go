package replica

import (
	"errors"
	"testing"
)

// A request whose leader was lost is answered once an entry of a later term is
// applied: not before, since the entry may still commit, and not long after.
func TestDoubtEndsWithTheNextTerm(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps func(*waiters)
		want  error
		told  bool
	}{
		{"nothing known yet", func(w *waiters) { w.applied(2); w.doubt(1, 2) }, nil, false},
		{"the next term came after", func(w *waiters) { w.doubt(1, 2); w.applied(3) }, ErrLeaderLost, true},
		{"the next term came before", func(w *waiters) { w.applied(3); w.doubt(1, 2) }, ErrLeaderLost, true},
		{"it was applied after all", func(w *waiters) {
			w.doubt(1, 2)
			w.deliver([]Outcome{{ID: 1}})
			w.applied(3)
		}, nil, true},
		{"an older entry is applied", func(w *waiters) { w.doubt(1, 2); w.applied(1) }, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWaiters()
			outcome := w.register(1)
			c.steps(w)
			select {
			case got := <-outcome:
				if !c.told || !errors.Is(got.Err, c.want) {
					t.Errorf("told %v", got.Err)
				}
			default:
				if c.told {
					t.Error("not told")
				}
			}
			w.forget(1)
			w.doubt(1, 2)
			if len(w.waiting)+len(w.inDoubt) != 0 {
				t.Errorf("left behind: %d waiting, %d in doubt", len(w.waiting), len(w.inDoubt))
			}
		})
	}
}

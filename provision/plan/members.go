package plan

import (
	"fmt"
	"slices"
	"strings"

	"muster/provision/desired"
)

// Listed is one entry of the cluster's member list, and what is known of the
// member.
type Listed struct {
	ID         uint64
	Name       string // empty until it has started
	PeerURLs   []string
	ClientURLs []string // empty until it has started
	Learner    bool
	// Alive says that it answers and knows a leader.
	Alive bool
	// Replaced says that it is to make room for a new member of its name.
	Replaced bool
}

// Members is the member list of a running cluster.
type Members []Listed

// Move is one change of the members.
type Move struct {
	Action Action // Add, Start, Promote, Update or Remove
	ID     uint64 // not of Add
	Name   string // the inventory's, or of a member that is not in it the cluster's
	// PeerURL is where the member will be reached; of Remove, was.
	PeerURL string
	// Of Remove: it answers, and a new member takes its place.
	Alive, Replaced bool
}

// Change is the move as a part of a plan; a Start is one of the host's own
// changes and has none.
func (m Move) Change() (Change, bool) {
	c := Change{Action: m.Action, Kind: Member, Name: m.Name}
	switch m.Action {
	case Add:
		c.Details = []string{"as a learner, with the peer URL " + m.PeerURL}
	case Promote:
		c.Details = []string{"to a voter, once it has caught up"}
	case Update:
		c.Details = []string{"peer URL: " + m.PeerURL}
	case Remove:
		c.Details = []string{fmt.Sprintf("%x at %s, which is not in the inventory", m.ID, m.PeerURL)}
		if m.Replaced {
			c.Details[0] = fmt.Sprintf("%x at %s, which is replaced", m.ID, m.PeerURL)
		}
		if !m.Alive {
			c.Details[0] += " and does not answer"
		}
	}
	return c, m.Action != Start
}

// QuorumError is a move that would leave too few members to go on.
type QuorumError struct {
	What  string // "removing controller-2"
	Alive int    // voters that would answer
	Need  int
}

func (e *QuorumError) Error() string {
	return fmt.Sprintf("%s would leave %d voting members that answer, and %d are needed; bring the others up first (muster status)", e.What, e.Alive, e.Need)
}

// voters counts the voting members and those that answer.
func (m Members) voters() (all, alive int) {
	for _, l := range m {
		if !l.Learner {
			all++
			if l.Alive {
				alive++
			}
		}
	}
	return all, alive
}

func majority(voters int) int { return voters/2 + 1 }

// MayStop says whether the cluster goes on while one member is down: the other
// voters that answer must be a majority of all. In a cluster of one or two
// there is no such majority; there, the others must all answer.
func (m Members) MayStop(id uint64, what string) error {
	all, alive := m.voters()
	if i := m.index(id); i >= 0 && !m[i].Learner && m[i].Alive {
		alive--
	}
	if need := min(majority(all), all-1); alive < need {
		return &QuorumError{What: what, Alive: alive, Need: need}
	}
	return nil
}

func (m Members) index(id uint64) int {
	return slices.IndexFunc(m, func(l Listed) bool { return l.ID == id })
}

// Find returns the entry of an inventory member: the one at its peer URL, or
// else the one of its name.
func (m Members) Find(want desired.Member) (Listed, bool) {
	i := slices.IndexFunc(m, func(l Listed) bool { return !l.Replaced && slices.Contains(l.PeerURLs, want.PeerURL) })
	if i < 0 {
		i = slices.IndexFunc(m, func(l Listed) bool { return !l.Replaced && l.Name == want.Name })
	}
	if i < 0 {
		return Listed{}, false
	}
	return m[i], true
}

// Next returns the next move towards the members that are wanted, or nil when
// there is none. One move is made at a time, so that at no time a majority is
// needed that is not there: who is dead goes first, then everybody new joins,
// and who is alive and not wanted goes last. An empty list is one that nobody
// could tell: there is no move.
func (m Members) Next(want []desired.Member) (*Move, error) {
	if len(m) == 0 {
		return nil, nil
	}
	if move := m.removal(want, false); move != nil {
		return move, m.mayRemove(move)
	}
	for _, w := range want {
		l, ok := m.Find(w)
		switch {
		case !ok:
		case !slices.Contains(l.PeerURLs, w.PeerURL):
			return &Move{Action: Update, ID: l.ID, Name: w.Name, PeerURL: w.PeerURL}, nil
		case l.Name == "":
			return &Move{Action: Start, ID: l.ID, Name: w.Name, PeerURL: w.PeerURL}, nil
		case l.Learner:
			return &Move{Action: Promote, ID: l.ID, Name: w.Name, PeerURL: w.PeerURL}, nil
		}
	}
	for _, w := range want {
		if _, ok := m.Find(w); !ok {
			return &Move{Action: Add, Name: w.Name, PeerURL: w.PeerURL}, nil
		}
	}
	if move := m.removal(want, true); move != nil {
		return move, m.mayRemove(move)
	}
	return nil, nil
}

// Prune is Next when only members that do not answer are to be removed.
func (m Members) Prune(want []desired.Member) (*Move, error) {
	move := m.removal(want, false)
	if move == nil {
		return nil, nil
	}
	return move, m.mayRemove(move)
}

// removal finds a member that is not wanted.
func (m Members) removal(want []desired.Member, alive bool) *Move {
	for _, l := range m {
		wanted := slices.ContainsFunc(want, func(w desired.Member) bool {
			found, ok := m.Find(w)
			return ok && found.ID == l.ID
		})
		if wanted || l.Alive != alive {
			continue
		}
		name := l.Name
		if name == "" {
			name = fmt.Sprintf("%x", l.ID)
		}
		return &Move{Action: Remove, ID: l.ID, Name: name, PeerURL: strings.Join(l.PeerURLs, ","), Alive: l.Alive, Replaced: l.Replaced}
	}
	return nil
}

// mayRemove says whether those who are left are a majority of themselves.
func (m Members) mayRemove(move *Move) error {
	all, alive := m.After(*move, desired.Member{}).voters()
	if need := majority(all); alive < need {
		return &QuorumError{What: "removing " + move.Name, Alive: alive, Need: need}
	}
	return nil
}

// After is the list when a move has been made. The member is the inventory's
// of the move's name.
func (m Members) After(move Move, want desired.Member) Members {
	next := slices.Clone(m)
	i := next.index(move.ID)
	switch move.Action {
	case Add:
		id := uint64(1) // any that is free
		for next.index(id) >= 0 {
			id++
		}
		return append(next, Listed{ID: id, PeerURLs: []string{move.PeerURL}, Learner: true})
	case Start:
		next[i].Name, next[i].ClientURLs, next[i].Alive = want.Name, []string{want.ClientURL}, true
	case Promote:
		next[i].Learner = false
	case Update:
		next[i].PeerURLs = []string{move.PeerURL}
	case Remove:
		return slices.Delete(next, i, i+1)
	}
	return next
}

// Moves returns all moves towards the members that are wanted.
func (m Members) Moves(want []desired.Member) ([]Move, error) {
	var moves []Move
	for {
		move, err := m.Next(want)
		if err != nil || move == nil {
			return moves, err
		}
		moves = append(moves, *move)
		i := slices.IndexFunc(want, func(w desired.Member) bool { return w.Name == move.Name })
		var w desired.Member
		if i >= 0 {
			w = want[i]
		}
		m = m.After(*move, w)
	}
}

// Joining is the Bootstrap of a member on the list that starts now.
func (m Members) Joining(want []desired.Member) desired.Bootstrap {
	var all []string
	for _, l := range m {
		name := l.Name
		for _, w := range want {
			if name == "" && slices.Contains(l.PeerURLs, w.PeerURL) {
				name = w.Name
			}
		}
		for _, url := range l.PeerURLs {
			all = append(all, name+"="+url)
		}
	}
	slices.Sort(all)
	return desired.Bootstrap{InitialCluster: strings.Join(all, ","), State: "existing"}
}

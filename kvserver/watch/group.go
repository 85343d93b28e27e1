package watch

import (
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// group is a set of watchers, found by key.
type group struct {
	all    map[*watcher]struct{}
	keys   map[string]map[*watcher]struct{} // of a single key
	ranges adt.IntervalTree                 // of map[*watcher]struct{}
}

func newGroup() *group {
	return &group{
		all:    map[*watcher]struct{}{},
		keys:   map[string]map[*watcher]struct{}{},
		ranges: adt.NewIntervalTree(),
	}
}

func (g *group) has(w *watcher) bool {
	_, ok := g.all[w]
	return ok
}

func (g *group) add(w *watcher) {
	g.all[w] = struct{}{}
	if w.single {
		set := g.keys[string(w.key)]
		if set == nil {
			set = map[*watcher]struct{}{}
			g.keys[string(w.key)] = set
		}
		set[w] = struct{}{}
		return
	}
	if found := g.ranges.Find(w.interval()); found != nil {
		found.Val.(map[*watcher]struct{})[w] = struct{}{}
		return
	}
	g.ranges.Insert(w.interval(), map[*watcher]struct{}{w: {}})
}

// remove does nothing when w is not in the group.
func (g *group) remove(w *watcher) {
	if !g.has(w) {
		return
	}
	delete(g.all, w)
	if w.single {
		set := g.keys[string(w.key)]
		delete(set, w)
		if len(set) == 0 {
			delete(g.keys, string(w.key))
		}
		return
	}
	set := g.ranges.Find(w.interval()).Val.(map[*watcher]struct{})
	delete(set, w)
	if len(set) == 0 {
		g.ranges.Delete(w.interval())
	}
}

// covers tells whether any watcher watches key.
func (g *group) covers(key []byte) bool {
	return len(g.keys[string(key)]) > 0 || g.ranges.Intersects(adt.NewBytesAffinePoint(key))
}

// match gives every watcher the events of a revision that it wants, and
// returns those that got any.
func (g *group) match(rev int64, events []*mvccpb.Event) (matched []*watcher) {
	for _, e := range events {
		var plain *mvccpb.Event
		give := func(set map[*watcher]struct{}) {
			for w := range set {
				if rev < w.next || w.drops(e) {
					continue
				}
				if len(w.matched) == 0 {
					matched = append(matched, w)
				}
				if w.PrevKV {
					w.matched = append(w.matched, e)
					continue
				}
				if plain == nil {
					plain = withoutPrevious(e)
				}
				w.matched = append(w.matched, plain)
			}
		}
		give(g.keys[string(e.Kv.Key)])
		for _, found := range g.ranges.Stab(adt.NewBytesAffinePoint(e.Kv.Key)) {
			give(found.Val.(map[*watcher]struct{}))
		}
	}
	return matched
}

package mvcc

import (
	"bytes"
	"context"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const (
	countsKept     = 64     // intervals
	countsWorth    = 2000   // keys; fewer are counted anew
	countStepsMost = 20_000 // changes or keys to go over; a few milliseconds
)

// counted is how many keys there were in an interval at a revision.
type counted struct {
	start, end []byte
	rev        int64
	count      int64
	page       bool // found with the help of an interval that begins before
}

func (c counted) has(key []byte) bool {
	return bytes.Compare(key, c.start) >= 0 && (isUnbounded(c.end) || bytes.Compare(key, c.end) < 0)
}

// countCache remembers how many keys were counted in an interval, so that
// neither the next count of it nor the next page of a list has to begin anew.
type countCache struct {
	worth int64 // intervals with fewer keys are not remembered

	mu    sync.Mutex
	known []counted // the last one first
}

// find returns what helps to count [start, end): the same interval, or the one
// with the same end that begins least before it.
func (c *countCache) find(start, end []byte) (best counted, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.known {
		if bytes.Equal(k.end, end) && bytes.Compare(k.start, start) <= 0 && (!ok || bytes.Compare(k.start, best.start) > 0) {
			best, ok = k, true
		}
	}
	return best, ok
}

func (c *countCache) remember(k counted) {
	if k.count < c.worth || len(k.end) == 0 {
		return
	}
	k.start, k.end = bytes.Clone(k.start), bytes.Clone(k.end)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = slices.DeleteFunc(c.known, func(o counted) bool {
		// Of the pages of a list only the last helps with the next.
		return bytes.Equal(o.end, k.end) && (bytes.Equal(o.start, k.start) || o.page && k.page && o.rev == k.rev)
	})
	if len(c.known) == countsKept {
		c.known = c.known[:countsKept-1]
	}
	c.known = slices.Insert(c.known, 0, k)
}

// knownCounts is what is known before a count begins, the most helpful first.
type knownCounts []counted

// knownFor finds what helps to count the interval of a request; nil when it
// need not be counted apart.
func (c *countCache) knownFor(r *pb.RangeRequest, t *tally) (known knownCounts) {
	if len(r.RangeEnd) == 0 || r.Limit <= 0 && !r.CountOnly {
		return nil
	}
	if k, ok := c.find(r.Key, r.RangeEnd); ok {
		known = append(known, k)
	}
	if k, ok := t.inside(r.Key, r.RangeEnd); ok {
		known = append(known, k)
	}
	return known
}

// countFrom counts the keys in [start, end) at rev, which must be readable,
// from what is known. It gives up when there is nothing, or when going from
// there takes about as long as counting.
func (v View) countFrom(ctx context.Context, known knownCounts, start, end []byte, rev int64) (c counted, ok bool, err error) {
	for _, k := range known {
		// What was counted by somebody who saw more than this view is of no use.
		if k.rev < v.head.Compacted || k.rev > v.head.Current {
			continue
		}
		if c, ok, err = v.countOver(ctx, k, start, end, rev); err != nil || ok {
			return c, ok, err
		}
	}
	return counted{}, false, nil
}

// countOver goes from the count k to that of [start, end) at rev. Its interval
// begins before start and ends with end, or it lies inside.
//
// Between two revisions that are not compacted, the history has every creation
// and every deletion, which is all it takes to get from one count to another.
func (v View) countOver(ctx context.Context, k counted, start, end []byte, rev int64) (c counted, ok bool, err error) {
	most := min(countStepsMost, k.count/2)
	c = counted{start: start, end: end, rev: rev, count: k.count}
	if rev != k.rev {
		first, last, sign := k.rev+1, rev, int64(1)
		if rev < k.rev {
			first, last, sign = rev+1, k.rev, -1
		}
		grown, ok, err := v.growth(ctx, k, first, last, most)
		if err != nil || !ok {
			return counted{}, false, err
		}
		c.count += sign * grown
	}
	type edge struct {
		start, end []byte
		by         int64
	}
	var edges []edge
	switch order := bytes.Compare(k.start, start); {
	case order < 0:
		edges, c.page = append(edges, edge{k.start, start, -1}), true
	case order > 0:
		edges = append(edges, edge{start, k.start, +1})
	}
	if !bytes.Equal(k.end, end) {
		edges = append(edges, edge{k.end, end, +1})
	}
	for _, edge := range edges {
		err := v.scan(ctx, edge.start, edge.end, rev, func([]byte) (bool, error) {
			c.count += edge.by
			most--
			return most >= 0, nil
		})
		if err != nil || most < 0 {
			return counted{}, false, err
		}
	}
	return c, true, nil
}

// growth is by how many keys an interval grew in the revisions from first to
// last.
func (v View) growth(ctx context.Context, k counted, first, last, most int64) (n int64, ok bool, err error) {
	history, err := v.openHistory(ctx, first, last)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = closeIter(history.it, err) }()
	for range most {
		record, more, err := history.next()
		if err != nil || !more {
			return n, err == nil, err
		}
		if !k.has(record.key) {
			continue
		}
		switch record.kind {
		case kindCreate:
			n++
		case kindTombstone:
			n--
		}
	}
	return 0, false, nil
}

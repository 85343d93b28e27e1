package watch

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

var (
	randomSeed   = flag.Uint64("watch.seed", 0, "seed of the random test; 0 draws one")
	randomWrites = flag.Int("watch.writes", 3000, "transactions of the random test")
)

// TestRandom has clients with random habits watch random ranges from random
// revisions, with so little room that most fall behind again and again, while
// the history is written and compacted. Another machine, which nobody watches
// and nothing is compacted on, says what each had to see.
func TestRandom(t *testing.T) {
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -watch.seed=%d -watch.writes=%d", seed, *randomWrites)
	b := newBed(t, Options{StreamBytes: 3000, FeedBytes: 8000, Scans: 2})
	reference := openMachine(t, vfs.NewMem())
	defer func() {
		if err := reference.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	var final atomic.Int64 // the last revision, once everything is written
	var clients []*client
	var running sync.WaitGroup
	for i := range uint64(8) {
		c := &client{
			t: t, name: fmt.Sprintf("client %d", i), bed: b, final: &final,
			asks: rand.New(rand.NewPCG(seed, 2*i+1)), pauses: rand.New(rand.NewPCG(seed, 2*i+2)),
			stream: b.registry.NewStream(), watches: map[int64]*watched{}, finished: make(chan struct{}),
		}
		clients = append(clients, c)
		running.Go(func() { c.ask(ctx) })
		running.Go(func() { c.read(ctx) })
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range *randomWrites {
		if i%10 == 0 {
			wait(ctx, time.Duration(rng.IntN(10))*time.Millisecond)
		}
		text := randomWrite(rng)
		apply(t, reference, text)
		b.apply(text)
		if to := b.machine.Revision() - 200 - rng.Int64N(300); rng.IntN(100) == 0 && to > b.machine.CompactedRevision() {
			b.apply(fmt.Sprintf("compact %d", to))
		}
		if _, err := b.machine.Space().ScrubStep(context.Background(), rng.IntN(10)); err != nil {
			t.Fatal(err)
		}
	}
	final.Store(b.machine.Revision())
	running.Wait()

	total := map[string]int{}
	for _, c := range clients {
		c.stream.Close()
		total["progress"] += c.progress
		for id, w := range c.watches {
			if err := w.check(reference, b.machine.CompactedRevision(), total); err != nil {
				t.Errorf("%s, watch %d of %q to %q from %d: %v", c.name, id, w.request.Key, w.request.End, w.request.Start, err)
			}
		}
	}
	t.Logf("%v", total)
	if *randomWrites >= 3000 && (total["events"] < 1000 || total["compacted"] == 0 || total["complete"] == 0 || total["progress"] <= len(clients)) {
		t.Error("the test is worth little")
	}
}

func randomWrite(rng *rand.Rand) string {
	key := func() string { return string(rune('a' + rng.IntN(6))) }
	switch rng.IntN(6) {
	case 0:
		return "del " + key()
	case 1:
		return "del " + key() + " " + key()
	case 2:
		return fmt.Sprintf("put a%s %d;put b%s %d;del c", key(), rng.IntN(9), key(), rng.IntN(9))
	default:
		return fmt.Sprintf("put %s %x", key(), bytes.Repeat([]byte{byte(rng.IntN(256))}, rng.IntN(60)))
	}
}

// watched is one watch and what it saw.
type watched struct {
	request   Request
	created   bool
	begin     int64 // the first revision it was to see
	end       int64 // up to here it was told that it saw everything
	events    []*mvccpb.Event
	canceled  bool
	compacted int64
}

type client struct {
	t            *testing.T
	name         string
	bed          *bed
	final        *atomic.Int64
	asks, pauses *rand.Rand
	stream       *Stream
	finished     chan struct{}

	mu       sync.Mutex // guards what follows
	watches  map[int64]*watched
	progress int
}

func (c *client) must(err error) {
	if err != nil {
		c.t.Errorf("%s: %v", c.name, err)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// ask creates and cancels watches until everything is written, and then asks
// for progress until the reader heard that there is nothing more.
func (c *client) ask(ctx context.Context) {
	for id := int64(1); c.final.Load() == 0 && ctx.Err() == nil; {
		switch n := c.asks.IntN(30); {
		case n < 3 && id < 60:
			c.create(ctx, c.request(id))
			id++
		case n == 3:
			c.must(c.stream.Cancel(ctx, 1+c.asks.Int64N(id)))
		case n < 6:
			c.must(c.stream.RequestProgress(ctx))
		default:
			wait(ctx, time.Duration(c.asks.IntN(3000))*time.Microsecond)
		}
	}
	c.create(ctx, Request{ID: 1000, Key: []byte("zz")}) // the others may all have ended
	for ctx.Err() == nil {
		for _, id := range c.unfinished() {
			c.must(c.stream.Cancel(ctx, id))
		}
		c.must(c.stream.RequestProgress(ctx))
		select {
		case <-c.finished:
			return
		default:
			wait(ctx, time.Millisecond)
		}
	}
}

func (c *client) request(id int64) Request {
	r := Request{
		ID: id, Key: []byte{byte('a' + c.asks.IntN(6))}, PrevKV: c.asks.IntN(2) == 0,
		NoPut: c.asks.IntN(6) == 0, NoDelete: c.asks.IntN(6) == 0,
	}
	switch c.asks.IntN(3) {
	case 0:
		r.End = []byte{r.Key[0] + 1 + byte(c.asks.IntN(3))}
	case 1:
		r.End = []byte{0}
	}
	if c.asks.IntN(2) == 0 {
		r.Start = max(0, c.bed.machine.Revision()+20-c.asks.Int64N(500))
	}
	return r
}

func (c *client) create(ctx context.Context, r Request) {
	c.mu.Lock()
	c.watches[r.ID] = &watched{request: r}
	c.mu.Unlock()
	c.must(c.stream.Create(ctx, r))
}

// unfinished are the watches that keep the stream from being complete: those
// that ended, and those that have not begun.
func (c *client) unfinished() (ids []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, w := range c.watches {
		if !w.canceled && (w.compacted > 0 || w.request.Start > c.final.Load()) {
			ids = append(ids, id)
		}
	}
	return ids
}

// read follows the stream, with pauses while there is writing, until it has
// everything.
func (c *client) read(ctx context.Context) {
	defer close(c.finished)
	for {
		responses, err := c.stream.Next(ctx)
		if err != nil {
			c.must(err)
			return
		}
		for _, r := range responses {
			if err := c.take(r); err != nil {
				c.t.Errorf("%s: %s: %v", c.name, line(r), err)
				return
			}
			if r.WatchID == noID && r.Revision == c.final.Load() {
				return
			}
		}
		if c.final.Load() == 0 && c.pauses.IntN(3) == 0 {
			wait(ctx, time.Duration(c.pauses.IntN(40))*time.Millisecond)
		}
	}
}

// take checks what can be said of a response by itself.
func (c *client) take(r Response) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.WatchID == noID {
		c.progress++
		for _, w := range c.watches {
			if w.created && !w.canceled {
				w.end = max(w.end, r.Revision)
			}
		}
		return nil
	}
	w := c.watches[r.WatchID]
	switch {
	case w.canceled:
		return fmt.Errorf("the watch has ended")
	case r.Created:
		w.created, w.begin = true, r.Revision+1
		if w.request.Start > 0 {
			w.begin = w.request.Start
		}
		return nil
	case !w.created:
		return fmt.Errorf("the watch has not begun")
	case r.CompactRevision > 0:
		w.compacted = r.CompactRevision
		return nil
	case r.Canceled:
		w.canceled = true
		return nil
	case w.compacted > 0:
		return fmt.Errorf("the watch was compacted away")
	case len(r.Events) == 0:
		return fmt.Errorf("the response says nothing")
	}
	if n := len(w.events); n > 0 && r.Events[0].Kv.ModRevision <= w.events[n-1].Kv.ModRevision {
		return fmt.Errorf("it goes back, or a revision came in two parts, after revision %d", w.events[n-1].Kv.ModRevision)
	}
	w.events = append(w.events, r.Events...)
	if last := r.Events[len(r.Events)-1].Kv.ModRevision; w.end > 0 && r.Events[0].Kv.ModRevision <= w.end || r.Revision < last {
		return fmt.Errorf("it has revision %d in the header, and everything up to %d had come", r.Revision, w.end)
	}
	return nil
}

// check compares what was seen with what there was.
func (w *watched) check(reference *machine.Machine, compacted int64, total map[string]int) error {
	if !w.created {
		return fmt.Errorf("never created")
	}
	all := newGroup()
	expected := newWatcher(nil, 0, w.request)
	expected.PrevKV, expected.next = true, w.begin
	all.add(expected)
	_, err := reference.History().Events(context.Background(), mvcc.EventQuery{From: 1, PrevKV: true}, func(rev int64, events []*mvccpb.Event) (bool, error) {
		all.match(rev, events)
		return true, nil
	})
	if err != nil {
		return err
	}
	want := expected.matched
	for i, got := range w.events {
		if i >= len(want) {
			return fmt.Errorf("event %v is one too many", got)
		}
		wanted := proto.CloneOf(want[i])
		if !w.request.PrevKV || got.PrevKv == nil && got.Kv.ModRevision-1 < compacted {
			wanted.PrevKv = nil
		}
		if !proto.Equal(got, wanted) {
			return fmt.Errorf("event %v, want %v", got, wanted)
		}
	}
	total["events"] += len(w.events)
	missing := want[len(w.events):]
	switch {
	case w.compacted > 0:
		total["compacted"]++
		if w.begin >= w.compacted {
			return fmt.Errorf("ended by the compaction at %d, and began at %d", w.compacted, w.begin)
		}
	case !w.canceled:
		total["complete"]++
		if len(missing) > 0 {
			return fmt.Errorf("event %v did not come", missing[0])
		}
	}
	if len(missing) > 0 && missing[0].Kv.ModRevision <= w.end {
		return fmt.Errorf("told that everything up to %d had come, and %v did not", w.end, missing[0])
	}
	return nil
}

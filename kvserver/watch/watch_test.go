package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/kvserver/machine"
)

func TestPresent(t *testing.T) {
	b := newBed(t, Options{})
	b.apply("put a 0")
	s := b.stream()
	s.create(key("a"))
	s.create(between("a", "c"))
	s.create(everything)
	s.expect("0 @2 created", "1 @2 created", "2 @2 created")
	for _, step := range []struct {
		apply string
		n     int
		want  map[int64]string
	}{
		{"put a 1", 3, map[int64]string{0: "a=1", 1: "a=1", 2: "a=1"}},
		{"put c 1", 1, map[int64]string{2: "c=1"}},
		{"put a 2;put b 2;del c", 6, map[int64]string{0: "a=2", 1: "a=2 b=2", 2: "a=2 b=2 c-"}},
		{"del a c", 5, map[int64]string{0: "a-", 1: "a- b-", 2: "a- b-"}},
		{"put \xff x", 1, map[int64]string{2: "\xff=x"}},
	} {
		b.apply(step.apply)
		if got := s.collect(step.n); !maps.Equal(got, step.want) {
			t.Errorf("%s: %v, want %v", step.apply, got, step.want)
		}
	}
}

// What happened before, however long, comes first, and then what happens.
func TestHistory(t *testing.T) {
	b := newBed(t, Options{})
	b.apply("put a 1", "put b 1;put a 2", "del a")
	s := b.stream()
	s.create(from(1, key("a")))
	s.expect("0 @4 created", "0 @4 a=1 a=2 a-")
	b.apply("put a 3")
	s.expect("0 @5 a=3")
	s.create(from(3, everything))
	s.expect("1 @5 created", "1 @5 b=1 a=2 a- a=3")

	// The start is yet to come.
	s.create(from(7, key("b")))
	s.expect("2 @5 created")
	b.apply("put b 6", "put b 7", "put b 8")
	other := b.stream()
	other.create(from(6, between("b", "c")))
	other.expect("0 @8 created", "0 @8 b=6 b=7 b=8")
	want := map[int64]string{1: "b=6 b=7 b=8", 2: "b=7 b=8"}
	if got := s.collect(5); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLongHistoryComesInParts(t *testing.T) {
	b := newBed(t, Options{})
	for i := range batchRevisions + 3 {
		b.apply(fmt.Sprintf("put a %d", i))
	}
	s := b.stream()
	s.create(from(1, key("a")))
	var sizes []int
	for len(sizes) < 3 {
		for _, r := range s.next() {
			sizes = append(sizes, len(r.Events))
			if r.Revision != 1004 {
				t.Errorf("revision %d in the header", r.Revision)
			}
		}
	}
	if want := []int{0, batchRevisions, 3}; !slices.Equal(sizes, want) {
		t.Errorf("responses with %d events, want %d", sizes, want)
	}
	s.progressed()
	s.expect("-1 @1004")
}

func TestPreviousAndFilters(t *testing.T) {
	history := []string{"put a 1", "put a 2", "del a", "put a 3", "put a 4;put b 1", "put x 1"}
	const all = "a=1 a=2 a- a=3 a=4 b=1 x=1"
	for name, test := range map[string]struct {
		request Request
		want    string
	}{
		"previous":               {Request{PrevKV: true}, "a=1 a=2(1) a-(2) a=3 a=4(3) b=1 x=1"},
		"no previous":            {Request{}, all},
		"no puts":                {Request{NoPut: true}, "a-"},
		"no deletions, previous": {Request{NoDelete: true, PrevKV: true}, "a=1 a=2(1) a=3 a=4(3) b=1 x=1"},
		"nothing at all":         {Request{NoPut: true, NoDelete: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Options{})
			live, late := b.stream(), b.stream()
			test.request.End = []byte{0}
			live.create(test.request)
			live.create(everything)
			b.apply(history...)
			late.create(from(1, test.request))
			late.create(from(1, everything))
			want := map[int64]string{0: test.want, 1: all}
			if test.want == "" {
				delete(want, 0)
			}
			n := len(strings.Fields(test.want)) + len(strings.Fields(all))
			if got := live.collect(n); !maps.Equal(got, want) {
				t.Errorf("live: %v, want %v", got, want)
			}
			if got := late.collect(n); !maps.Equal(got, want) {
				t.Errorf("late: %v, want %v", got, want)
			}
		})
	}
}

func TestIDs(t *testing.T) {
	b := newBed(t, Options{})
	s := b.stream()
	with := func(id int64) Request { return Request{ID: id, Key: []byte("a")} }
	for _, id := range []int64{0, 2, 0, 0, -7} {
		s.create(with(id))
	}
	s.expect("0 @1 created", "2 @1 created", "1 @1 created", "3 @1 created", "-7 @1 created")
	s.create(with(2))
	s.expect("-1 @1 created canceled: mvcc: duplicate watch ID provided on the WatchStream")
	s.cancel(2)
	s.cancel(2)
	s.cancel(99)
	s.create(with(2))
	s.create(with(0))
	s.expect("2 @1 canceled", "2 @1 created", "4 @1 created")
}

func TestRefused(t *testing.T) {
	b := newBed(t, Options{})
	s := b.stream()
	s.create(from(-1, between("b", "a")))
	s.create(between("a", "a"))
	s.create(between("", "\x00\x00"))
	s.create(between("b", "a"))
	s.create(between("b", "\x00"))
	s.expect(
		"-1 @1 created canceled: etcdserver: mvcc: required revision has been compacted",
		"-1 @1 created canceled: mvcc: watcher range is empty",
		"0 @1 created",
		"-1 @1 created canceled: mvcc: watcher range is empty",
		"1 @1 created",
	)
}

func TestCompaction(t *testing.T) {
	b := newBed(t, Options{})
	b.apply("put a 1", "put a 2", "put a 3", "put a 4", "compact 4")
	s := b.stream()
	s.create(from(3, key("a")))
	s.create(from(4, key("a")))
	s.expect("0 @5 created", "1 @5 created", "0 @0 canceled compacted 4", "1 @5 a=3 a=4")
	// The ID is taken and the stream not complete until the client agrees.
	s.progressed()
	s.create(Request{ID: 0, Key: []byte("b")})
	s.cancel(0)
	s.progressed()
	s.expect("2 @5 created", "0 @5 canceled", "-1 @5")
}

// A watcher that could not follow ends only when the history it needs is gone.
func TestCompactionWhileBehind(t *testing.T) {
	b := newBed(t, Options{StreamBytes: 2000})
	s := b.stream()
	s.create(key("a"))
	s.create(key("b"))
	b.apply("put b 2")
	for range 10 {
		b.apply("put a " + strings.Repeat("x", 100))
	}
	behind := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.lagging) == 1
	}
	for deadline := time.Now().Add(patience); !behind(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("there is still room")
		}
	}
	b.apply("compact 12", "put b 3")
	var got []string
	for !slices.Contains(got, "0 @0 canceled compacted 12") || !slices.Contains(got, "1 @13 b=3") {
		for _, r := range s.next() {
			got = append(got, line(r))
		}
	}
	if !slices.Contains(got, "1 @2 b=2") {
		t.Errorf("got %q", got)
	}
}

func TestRequestProgress(t *testing.T) {
	b := newBed(t, Options{Scans: 1})
	s := b.stream()
	s.progressed() // nothing to tell about no watcher
	s.create(key("a"))
	s.progressed()
	s.expect("0 @1 created", "-1 @1")
	b.apply("put a 1", "put b 1")
	s.progressed()
	s.progressed()
	s.expect("0 @2 a=1", "-1 @3", "-1 @3")

	// Nobody speaks for a watcher that has not begun, or is behind.
	s.create(from(5, key("b")))
	s.progressed()
	b.apply("put c 1", "put b 2")
	s.progressed()
	s.expect("1 @3 created", "1 @5 b=2", "-1 @5")
	s.create(from(1, key("a")))
	s.progressed()
	s.expect("2 @5 created", "2 @5 a=1")
	s.progressed()
	s.expect("-1 @5")
}

func TestNotifyProgress(t *testing.T) {
	b := newBed(t, Options{})
	s := b.stream()
	notify := func() {
		t.Helper()
		if err := s.NotifyProgress(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.create(Request{Key: []byte("a"), Progress: true})
	s.create(Request{Key: []byte("b")})
	s.create(Request{Key: []byte("c"), Progress: true, Start: 4})
	notify()
	s.expect("0 @1 created", "1 @1 created", "2 @1 created", "0 @1")
	b.apply("put a 1")
	notify() // too soon after the event
	b.apply("put b 1")
	notify()
	s.expect("0 @2 a=1", "1 @3 b=1", "0 @3")
}

// One client does not read. It holds a bounded amount, another one is not
// affected, and when it reads on it misses nothing.
func TestSlowStream(t *testing.T) {
	const limit = 4000
	b := newBed(t, Options{StreamBytes: limit})
	slow, quick := b.stream(), b.stream()
	for range 3 {
		slow.create(everything)
	}
	quick.create(everything)
	quick.expect("0 @1 created")
	value := strings.Repeat("x", 100)
	const writes = 300
	for i := range writes {
		b.apply("put a " + value)
		quick.expect(fmt.Sprintf("0 @%d a=%s", i+2, value))
		slow.mu.Lock()
		size, held := slow.queue.size, len(slow.queue.responses)
		slow.mu.Unlock()
		if size > limit || held*responseOverhead > limit {
			t.Fatalf("%d responses of %d bytes wait", held, size)
		}
	}
	if err := slow.NotifyProgress(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[int64]int64{}
	largest := 0
	for done := 0; done < 3; {
		for _, r := range slow.next() {
			if r.Created {
				seen[r.WatchID] = 1
			}
			largest = max(largest, eventsSize(r.Events))
			for _, e := range r.Events {
				if seen[r.WatchID]++; e.Kv.ModRevision != seen[r.WatchID] {
					t.Fatalf("watcher %d was given revision %d, not %d", r.WatchID, e.Kv.ModRevision, seen[r.WatchID])
				}
			}
			if len(r.Events) > 0 && seen[r.WatchID] == writes+1 {
				done++
			}
		}
	}
	if largest > limit+1000 {
		t.Errorf("a response of %d bytes", largest)
	}
}

// A client that asks and does not read has to wait.
func TestCreateWaitsForRoom(t *testing.T) {
	b := newBed(t, Options{StreamBytes: 5 * responseOverhead})
	s := b.stream()
	for range 5 {
		s.create(key("a"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Create(ctx, key("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("created without room: %v", err)
	}
	created := make(chan error, 1)
	go func() { created <- s.Create(t.Context(), key("a")) }()
	s.expect("0 @1 created", "1 @1 created", "2 @1 created", "3 @1 created", "4 @1 created")
	s.expect("5 @1 created")
	if err := <-created; err != nil {
		t.Error(err)
	}
}

// What the dispatcher cannot take in time is read from the history.
func TestFeedOverflow(t *testing.T) {
	const limit = 2000
	b := newBed(t, Options{FeedBytes: limit})
	s := b.stream()
	s.create(key("a"))
	s.create(key("b"))
	s.expect("0 @1 created", "1 @1 created")
	b.registry.mu.Lock() // the dispatcher stands still, the machine does not
	for i := range 50 {
		b.apply(fmt.Sprintf("put a %d", i))
		b.registry.feed.mu.Lock()
		size := b.registry.feed.size
		b.registry.feed.mu.Unlock()
		if size > limit {
			t.Fatalf("%d bytes wait for the dispatcher", size)
		}
	}
	b.apply("put b 1")
	b.registry.mu.Unlock()
	got := s.collect(51)
	for i, event := range strings.Fields(got[0]) {
		if event != fmt.Sprintf("a=%d", i) {
			t.Fatalf("event %d is %s", i, event)
		}
	}
	if got[1] != "b=1" {
		t.Errorf("the other watcher got %q", got[1])
	}
	s.progressed()
	s.expect("-1 @52")
}

// A member that was too far behind receives the state as a whole.
func TestInstall(t *testing.T) {
	fs := vfs.NewMem()
	ahead := openMachine(t, fs)
	b := newBed(t, Options{})
	for _, m := range []*machine.Machine{ahead, b.machine} {
		apply(t, m, "put a 1", "put b 1")
	}
	s := b.stream()
	s.create(key("a"))
	s.create(from(7, key("b")))
	s.expect("0 @3 created", "1 @3 created")
	apply(t, ahead, "put a 2", "put b 2", "put a 3")
	install(t, b, ahead, fs)
	b.apply("put b 3", "put a 4")
	want := map[int64]string{0: "a=2 a=3 a=4", 1: "b=3"}
	if got := s.collect(4); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// install replaces the state of b's machine by that of another.
func install(t *testing.T, b *bed, ahead *machine.Machine, fs vfs.FS) {
	t.Helper()
	const incoming = machineDir + "/incoming"
	if _, err := ahead.Checkpoint(incoming); err != nil {
		t.Fatal(err)
	}
	if err := ahead.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.Clone(fs, b.fs, incoming, incoming, vfs.CloneSync); err != nil {
		t.Fatal(err)
	}
	if err := b.machine.Install(incoming); err != nil {
		t.Fatal(err)
	}
}

// Everything ends when the member stops, whoever waits for what.
func TestClose(t *testing.T) {
	b := newBed(t, Options{StreamBytes: responseOverhead})
	waiting, full := b.stream(), b.stream()
	waiting.create(key("a"))
	full.create(key("a"))
	waiting.expect("0 @1 created")
	errs := make(chan error)
	go func() { _, err := waiting.Next(context.Background()); errs <- err }()
	go func() { errs <- full.Create(context.Background(), key("b")) }()
	b.registry.Close()
	b.registry.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("waited and got %v", err)
		}
	}
	late := b.stream()
	if err := late.Create(t.Context(), key("a")); !errors.Is(err, ErrClosed) {
		t.Errorf("created after the end: %v", err)
	}
	if _, err := late.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("read after the end: %v", err)
	}
	waiting.Close()
	if err := waiting.RequestProgress(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("progress after the end: %v", err)
	}
}

// Without watchers the machine has nobody to tell.
func TestUnobserved(t *testing.T) {
	b := newBed(t, Options{})
	s := b.stream()
	s.create(key("a"))
	s.cancel(0)
	s.expect("0 @1 created", "0 @1 canceled")
	b.apply("put a 1")
	if left := b.registry.feed.take(); len(left) > 0 {
		t.Errorf("%d revisions were fed to nobody", len(left))
	}
	s.create(key("a"))
	b.apply("put a 2")
	s.expect("1 @2 created", "1 @3 a=2")
	s.Close()
	b.apply("put a 3")
	if left := b.registry.feed.take(); len(left) > 0 {
		t.Errorf("%d revisions were fed to nobody", len(left))
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("read after the end: %v", err)
	}
}

// The machine is gone first: no harm, and no answer.
func TestMachineClosedFirst(t *testing.T) {
	b := newBed(t, Options{})
	b.apply("put a 1")
	s := b.stream()
	s.create(from(1, key("a")))
	if err := b.machine.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("read from a closed machine: %v", err)
	}
	s.cancel(0)
	if err := s.Create(t.Context(), key("a")); !errors.Is(err, ErrClosed) {
		t.Errorf("created on a closed machine: %v", err)
	}
}

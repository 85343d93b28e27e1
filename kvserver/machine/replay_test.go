package machine

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/proto"
)

var seededMembers = []Member{
	{ID: 11, PeerURLs: []string{"https://127.0.0.1:2380"}},
	{ID: 12, PeerURLs: []string{"https://127.0.0.2:2380"}, Learner: true},
}

// history is a log and what came of it.
type history struct {
	entries  []Entry
	outcomes []Outcome
	dumps    map[uint64][]string // the whole state after some of the entries, by index
}

// randomHistory makes a random log of n entries by applying it, with all kinds
// of requests and entries.
func randomHistory(t *testing.T, g *generator, n int) *history {
	t.Helper()
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Fatal(err)
	}
	h := &history{dumps: map[uint64][]string{0: dump(t, m)}}
	id := uint64(1)
	index := uint64(0)
	for range n {
		index += 1 + g.Uint64N(2)
		e := Entry{Index: index, Term: 1 + index/50}
		g.revision, g.compacted = m.Revision(), m.CompactedRevision()
		switch g.IntN(12) {
		case 0:
			e.Configuration = fmt.Appendf(nil, "configuration at %d", index)
		case 1: // no payload
		default:
			var group []*pb.InternalRaftRequest
			for range g.IntN(4) {
				group = append(group, g.anyRequest())
			}
			e.Payload = batchOf(t, id, group...)
			id += uint64(len(group))
		}
		outcomes, err := m.Apply([]Entry{e}, all)
		if err != nil {
			t.Fatal(err)
		}
		h.entries = append(h.entries, e)
		h.outcomes = append(h.outcomes, outcomes...)
		h.dumps[index] = dump(t, m)
	}
	return h
}

// anyRequest also makes what does not change keys.
func (g *generator) anyRequest() *pb.InternalRaftRequest {
	switch g.IntN(40) {
	case 0:
		return &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			Action: pb.AlarmRequest_AlarmAction(g.IntN(4)), MemberID: 11 + g.Uint64N(2), Alarm: pb.AlarmType(g.IntN(2)),
		}}
	case 1, 2, 3:
		return &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			Action: pb.AlarmRequest_DEACTIVATE, MemberID: 11 + g.Uint64N(2), Alarm: pb.AlarmType_NOSPACE,
		}}
	case 4:
		return &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
			Member_ID: 11 + g.Uint64N(3), MemberAttributes: &membershippb.Attributes{Name: string(g.value()), ClientUrls: []string{"https://127.0.0.1:2379"}},
		}}
	case 5:
		return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{TTL: 5}}
	case 6, 7, 8, 9:
		return g.v2Request()
	default:
		return g.request()
	}
}

// dump is everything a machine stores, without what scrubbing may change: the
// progress of scrubbing, which it completes first.
func dump(t *testing.T, m *Machine) []string {
	t.Helper()
	for done := false; !done; {
		var err error
		if done, err = m.Space().ScrubStep(context.Background(), 100); err != nil {
			t.Fatal(err)
		}
	}
	g, err := m.stores.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer g.release()
	it, err := g.store.DB().NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	var inUse int64
	for valid := it.First(); valid; valid = it.Next() {
		switch key := string(it.Key()); {
		case key == "mscrub", key == "mwritten", key == "mremoved":
			continue // how it came to this
		case key[0] == 'k', key[0] == 'r', strings.HasPrefix(key, leasePrefix), strings.HasPrefix(key, attachedPrefix):
			inUse += int64(len(it.Key()) + len(it.Value()))
		}
		lines = append(lines, fmt.Sprintf("%q = %q", it.Key(), it.Value()))
	}
	if got := m.Space().InUse(); got != inUse {
		t.Errorf("%d bytes are in use, the store says %d", inUse, got)
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return lines
}

func sameDump(t *testing.T, what string, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("%s: record %d\n     %s\nwant %s", what, i, g, w)
		}
	}
}

func sameOutcomes(t *testing.T, got, want []Outcome) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d outcomes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].ID != want[i].ID || got[i].Index != want[i].Index || got[i].Err != want[i].Err || !proto.Equal(got[i].Response, want[i].Response) || !reflect.DeepEqual(got[i].V2, want[i].V2) {
			t.Fatalf("outcome %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

// TestGrouping applies one log in random groups, with scrubbing and reopening
// in between, and demands the same store and the same outcomes as entry by
// entry.
func TestGrouping(t *testing.T) {
	g := newGenerator(t)
	h := randomHistory(t, g, min(*randomOps/8, 1000))
	last := h.entries[len(h.entries)-1].Index
	for round := range 4 {
		fs := vfs.NewMem()
		m := openMem(t, fs)
		if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
			t.Fatal(err)
		}
		var outcomes []Outcome
		for rest := h.entries; len(rest) > 0; {
			n := min(len(rest), 1+g.IntN(1<<g.IntN(7)))
			// Some of the entries applied before come again.
			from := max(0, len(h.entries)-len(rest)-g.IntN(3))
			out, err := m.Apply(h.entries[from:len(h.entries)-len(rest)+n], all)
			if err != nil {
				t.Fatal(err)
			}
			outcomes = append(outcomes, out...)
			rest = rest[n:]
			switch g.IntN(12) {
			case 0:
				if _, err := m.Space().ScrubStep(context.Background(), 1+g.IntN(10)); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := m.Flush(); err != nil {
					t.Fatal(err)
				}
				closeMachine(t, m)
				m = openMem(t, fs)
			}
		}
		sameOutcomes(t, outcomes, h.outcomes)
		sameDump(t, fmt.Sprintf("round %d", round), dump(t, m), h.dumps[last])

		if out, err := m.Apply(h.entries, all); err != nil || out != nil {
			t.Fatalf("the same entries again: %v, %v", out, err)
		}
		sameDump(t, "after the same entries again", dump(t, m), h.dumps[last])
		closeMachine(t, m)
	}
}

// TestOutcomesOnlyWhenWanted makes sure that whether somebody waits for the
// response changes nothing but the response.
func TestOutcomesOnlyWhenWanted(t *testing.T) {
	g := newGenerator(t)
	h := randomHistory(t, g, min(*randomOps/8, 500))
	last := h.entries[len(h.entries)-1].Index
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Fatal(err)
	}
	odd := func(id uint64) bool { return id%2 == 1 }
	outcomes, err := m.Apply(h.entries, odd)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(slices.Clone(h.outcomes), func(o Outcome) bool { return !odd(o.ID) })
	sameOutcomes(t, outcomes, want)
	sameDump(t, "with half of the responses", dump(t, m), h.dumps[last])
}

// TestCrash takes copies of the directory as a crash would leave it, with more
// or less of what was not synced, while a log is applied. Each must open at an
// index that is not before the last flush, hold exactly what was there at that
// index, and come to the same end with the rest of the log.
func TestCrash(t *testing.T) {
	g := newGenerator(t)
	h := randomHistory(t, g, min(*randomOps/8, 1000))
	last := h.entries[len(h.entries)-1].Index

	fs := vfs.NewCrashableMem()
	opts := Options{FS: fs, CacheBytes: 1 << 20, MemTableBytes: 64 << 10}
	m, err := Open(machineDir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer closeMachine(t, m)
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Fatal(err)
	}
	type crash struct {
		fs       *vfs.MemFS
		from, to uint64
	}
	var crashes []crash
	var flushed uint64
	for _, e := range h.entries {
		if _, err := m.Apply([]Entry{e}, nil); err != nil {
			t.Fatal(err)
		}
		switch g.IntN(20) {
		case 0:
			if err := m.Flush(); err != nil {
				t.Fatal(err)
			}
			flushed = e.Index
		case 1:
			if _, err := m.Space().ScrubStep(context.Background(), 1+g.IntN(10)); err != nil {
				t.Fatal(err)
			}
		case 2:
			// A flush that nobody waits for.
			generation, err := m.stores.acquire()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := generation.store.DB().AsyncFlush(); err != nil {
				t.Fatal(err)
			}
			generation.release()
		case 3:
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: g.IntN(101), RNG: rand.New(rand.NewPCG(g.Uint64(), 1))})
			crashes = append(crashes, crash{fs: clone, from: flushed, to: e.Index})
		}
	}
	if len(crashes) == 0 {
		t.Fatal("no crash was tried")
	}
	for i, c := range crashes {
		opts.FS = c.fs
		m, err := Open(machineDir, opts)
		if err != nil {
			t.Fatalf("crash %d, between %d and %d: %v", i, c.from, c.to, err)
		}
		index, _ := m.Applied()
		if index < c.from || index > c.to {
			t.Fatalf("crash %d: at index %d, want %d to %d", i, index, c.from, c.to)
		}
		sameDump(t, fmt.Sprintf("crash %d, at index %d", i, index), dump(t, m), h.dumps[index])
		if _, err := m.Apply(h.entries, nil); err != nil {
			t.Fatal(err)
		}
		sameDump(t, fmt.Sprintf("crash %d, after the rest of the log", i), dump(t, m), h.dumps[last])
		closeMachine(t, m)
	}
	t.Logf("%d crashes", len(crashes))
}

// TestConfigurationIsStored makes sure that a membership entry comes back as
// it was, with its index.
func TestConfigurationIsStored(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	if got := m.state.Load().Position; !reflect.DeepEqual(got, Position{}) {
		t.Errorf("new store: %+v", got)
	}
	if _, err := m.Apply([]Entry{
		{Index: 1, Term: 1, Configuration: []byte("one")},
		{Index: 2, Term: 1},
		{Index: 3, Term: 2, Configuration: []byte("two")},
		{Index: 4, Term: 2, Payload: EncodeBatch(1, nil)},
	}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	m = openMem(t, fs)
	defer closeMachine(t, m)
	if got, want := m.state.Load().Position, (Position{Index: 4, Term: 2, ConfigurationIndex: 3, Configuration: []byte("two")}); !reflect.DeepEqual(got, want) {
		t.Errorf("position %+v, want %+v", got, want)
	}
}

// TestEntryLargerThanMemtable makes sure that a step which Pebble does not
// copy into a memtable is as atomic and as readable as any other.
func TestEntryLargerThanMemtable(t *testing.T) {
	opts := Options{FS: vfs.NewCrashableMem(), CacheBytes: 1 << 20, MemTableBytes: 64 << 10}
	m, err := Open(machineDir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { closeMachine(t, m) }()
	var requests []*pb.InternalRaftRequest
	for i := range 400 {
		requests = append(requests, &pb.InternalRaftRequest{Put: &pb.PutRequest{
			Key: fmt.Appendf(nil, "key-%d", i%200), Value: bytes.Repeat([]byte{byte(i)}, 2000), PrevKv: true,
		}})
	}
	outcomes := applyNext(t, m, requests...)
	for i, o := range outcomes {
		if previous := o.Response.(*pb.PutResponse).PrevKv; (previous != nil) != (i >= 200) ||
			previous != nil && !bytes.Equal(previous.Value, bytes.Repeat([]byte{byte(i - 200)}, 2000)) {
			t.Fatalf("put %d: previous %v", i, previous)
		}
	}
	applyNext(t, m, &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("key-1"), RangeEnd: []byte("key-2")}})
	want := dump(t, m)
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	if m, err = Open(machineDir, opts); err != nil {
		t.Fatal(err)
	}
	sameDump(t, "after reopening", dump(t, m), want)
}

package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/mvcc"
)

// seen is what an observer was told: lines such as "3 a+ b- ", one a revision.
type seen []string

func (s *seen) observe(rev int64, events []*mvccpb.Event) {
	line := fmt.Sprintf("%d", rev)
	for _, e := range events {
		switch {
		case e.Type == mvccpb.Event_DELETE:
			line += fmt.Sprintf(" %s-%s", e.Kv.Key, e.PrevKv.GetValue())
		default:
			line += fmt.Sprintf(" %s+%s", e.Kv.Key, e.PrevKv.GetValue())
		}
	}
	*s = append(*s, line)
}

func deleteAll() *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}}
}

func TestObserve(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	applyNext(t, m, put("before"))
	var told seen
	rev, err := m.History().Observe(told.observe)
	if err != nil || rev != 2 {
		t.Fatalf("observing after revision %d: %v", rev, err)
	}
	// One entry with four requests, one of which changes nothing.
	applyNext(t, m, put("a"), deleteAll(), deleteAll(), put("b"))
	applyNext(t, m, put("b"))
	want := seen{"3 a+", "4 a-v before-v", "5 b+", "6 b+v"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}

	var other seen
	if rev, err := m.History().Observe(other.observe); err != nil || rev != 6 {
		t.Fatalf("observing after revision %d: %v", rev, err)
	}
	applyNext(t, m, put("c"))
	if _, err := m.History().Observe(nil); err != nil {
		t.Fatal(err)
	}
	applyNext(t, m, put("d"))
	if len(told) != len(want) || !slices.Equal(other, seen{"7 c+"}) {
		t.Errorf("the first observer was told %q, the second %q", told, other)
	}
}

// An observer never sees what is not yet visible, and what it sees is what the
// history says.
func TestObservedIsVisible(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	ctx := context.Background()
	var told []*mvccpb.Event
	_, err := m.History().Observe(func(rev int64, events []*mvccpb.Event) {
		if m.Revision() < rev {
			t.Errorf("told of revision %d at revision %d", rev, m.Revision())
		}
		told = append(told, events...)
	})
	if err != nil {
		t.Fatal(err)
	}
	g := newGenerator(t)
	for range *randomOps / 10 {
		var group []*pb.InternalRaftRequest
		for range 1 + g.IntN(4) {
			group = append(group, g.request())
		}
		applyNext(t, m, group...)
		g.revision, g.compacted = m.Revision(), m.CompactedRevision()
		told, err = sameAsHistory(ctx, m, told)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sameAsHistory compares events with those in the history that was not
// compacted, and returns none.
func sameAsHistory(ctx context.Context, m *Machine, told []*mvccpb.Event) ([]*mvccpb.Event, error) {
	// Above the compacted revision, so that no previous version is missing.
	first := m.CompactedRevision() + 1
	for len(told) > 0 && told[0].Kv.ModRevision < first {
		told = told[1:]
	}
	if len(told) == 0 {
		return nil, nil
	}
	var read []*mvccpb.Event
	_, err := m.History().Events(ctx, mvcc.EventQuery{From: told[0].Kv.ModRevision, PrevKV: true},
		func(_ int64, events []*mvccpb.Event) (bool, error) {
			read = append(read, events...)
			return true, nil
		})
	if err != nil {
		return nil, err
	}
	if !slices.EqualFunc(told, read, func(a, b *mvccpb.Event) bool { return proto.Equal(a, b) }) {
		return nil, fmt.Errorf("told\n%v\nhistory\n%v", told, read)
	}
	return nil, nil
}

func TestObserveInstall(t *testing.T) {
	fs := vfs.NewMem()
	checkpointAt(t, fs)
	m := openMem(t, fs)
	defer closeMachine(t, m)
	var told seen
	if _, err := m.History().Observe(told.observe); err != nil {
		t.Fatal(err)
	}
	applyNext(t, m, put("a"))
	if err := m.Install(incomingDir); err != nil {
		t.Fatal(err)
	}
	applyNext(t, m, put("a"))
	if want := (seen{"2 a+", "21", "22 a+"}); !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// Two machines that received the same requests in other entries have the same
// hash; one that received others has not.
func TestHashKV(t *testing.T) {
	ctx := context.Background()
	hash := func(entries ...[]*pb.InternalRaftRequest) mvcc.KVHash {
		m := openMem(t, vfs.NewMem())
		defer closeMachine(t, m)
		for _, e := range entries {
			applyNext(t, m, e...)
		}
		h, err := m.History().HashKV(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	requests := func(keys ...string) (out []*pb.InternalRaftRequest) {
		for _, k := range keys {
			out = append(out, put(k))
		}
		return out
	}
	one, same := hash(requests("a", "b", "c")), hash(requests("a"), requests("b", "c"))
	other := hash(requests("a", "b"), requests("d"))
	if one != same || one.Revision != 4 || one.Compacted != -1 {
		t.Errorf("%+v and %+v", one, same)
	}
	if other.Hash == one.Hash {
		t.Errorf("%+v for another history", other)
	}
}

func TestHistoryClosed(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	closeMachine(t, m)
	ctx := context.Background()
	_, hashErr := m.History().HashKV(ctx, 0)
	last, eventsErr := m.History().Events(ctx, mvcc.EventQuery{From: 3}, nil)
	_, observeErr := m.History().Observe(nil)
	for _, err := range []error{hashErr, eventsErr, observeErr} {
		if !errors.Is(err, ErrClosed) || last != 2 {
			t.Errorf("%v, up to %d", err, last)
		}
	}
}

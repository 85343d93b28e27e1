package watch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine"
)

const (
	machineDir = "data"
	patience   = 20 * time.Second
)

// bed is a machine in memory and the registry of its watchers.
type bed struct {
	t        testing.TB
	fs       vfs.FS
	machine  *machine.Machine
	registry *Registry
}

func newBed(t testing.TB, opts Options) *bed {
	t.Helper()
	b := &bed{t: t, fs: vfs.NewMem()}
	b.machine = openMachine(t, b.fs)
	b.registry = Start(b.machine, opts)
	t.Cleanup(func() {
		b.registry.Close()
		if err := b.machine.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func openMachine(t testing.TB, fs vfs.FS) *machine.Machine {
	t.Helper()
	m, err := machine.Open(machineDir, machine.Options{FS: fs, CacheBytes: 8 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// request reads "put a 1", "del a", "del a c" and "compact 3"; operations with
// semicolons between them are a transaction.
func request(text string) *pb.InternalRaftRequest {
	var ops []*pb.RequestOp
	for _, part := range strings.Split(text, ";") {
		f := append(strings.Fields(part), "", "")
		switch f[0] {
		case "put":
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(f[1]), Value: []byte(f[2])}}})
		case "del":
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(f[1]), RangeEnd: []byte(f[2])}}})
		case "compact":
			var rev int64
			if _, err := fmt.Sscan(f[1], &rev); err != nil {
				panic(err)
			}
			return &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}}
		default:
			panic("no such operation: " + part)
		}
	}
	return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: ops}}
}

// apply applies each request by itself.
func apply(t testing.TB, m *machine.Machine, requests ...string) {
	t.Helper()
	for _, text := range requests {
		r := request(text)
		r.Header = &pb.RequestHeader{ID: 1}
		encoded, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		index, _ := m.Applied()
		outcomes, err := m.Apply([]machine.Entry{{Index: index + 1, Term: 1, Payload: machine.EncodeBatch(1, [][]byte{encoded})}}, func(uint64) bool { return true })
		if err != nil || outcomes[0].Err != nil {
			t.Fatalf("%s: %v, %v", text, err, outcomes)
		}
	}
}

func (b *bed) apply(requests ...string) {
	b.t.Helper()
	apply(b.t, b.machine, requests...)
}

// reader is a stream and what came from it and was not looked at yet.
type reader struct {
	*Stream
	b     *bed
	lines []string
}

func (b *bed) stream() *reader {
	s := &reader{Stream: b.registry.NewStream(), b: b}
	b.t.Cleanup(s.Close)
	return s
}

func (s *reader) create(r Request) {
	s.b.t.Helper()
	if err := s.Create(context.Background(), r); err != nil {
		s.b.t.Fatal(err)
	}
}

func (s *reader) cancel(id int64) {
	s.b.t.Helper()
	if err := s.Cancel(context.Background(), id); err != nil {
		s.b.t.Fatal(err)
	}
}

func (s *reader) progressed() {
	s.b.t.Helper()
	if err := s.RequestProgress(context.Background()); err != nil {
		s.b.t.Fatal(err)
	}
}

func (s *reader) next() []Response {
	s.b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	responses, err := s.Next(ctx)
	if err != nil {
		s.b.t.Fatal(err)
	}
	return responses
}

// expect reads as many responses as there are lines and compares.
func (s *reader) expect(want ...string) {
	s.b.t.Helper()
	for len(s.lines) < len(want) {
		for _, r := range s.next() {
			s.lines = append(s.lines, line(r))
		}
	}
	got := s.lines[:len(want)]
	s.lines = s.lines[len(want):]
	if !slices.Equal(got, want) {
		s.b.t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// collect reads n events and tells which each watcher got.
func (s *reader) collect(n int) map[int64]string {
	s.b.t.Helper()
	got := map[int64]string{}
	for n > 0 {
		for _, r := range s.next() {
			if len(r.Events) > 0 {
				n -= len(r.Events)
				got[r.WatchID] = strings.TrimSpace(got[r.WatchID] + eventsText(r.Events))
			}
		}
	}
	return got
}

func eventsText(events []*mvccpb.Event) (text string) {
	for _, e := range events {
		if e.Type == mvccpb.Event_DELETE {
			text += fmt.Sprintf(" %s-", e.Kv.Key)
		} else {
			text += fmt.Sprintf(" %s=%s", e.Kv.Key, e.Kv.Value)
		}
		if e.PrevKv != nil {
			text += fmt.Sprintf("(%s)", e.PrevKv.Value)
		}
	}
	return text
}

// line is "ID @REVISION" and what the response says; events are "a=1", "a-",
// with the previous value in parentheses.
func line(r Response) string {
	text := fmt.Sprintf("%d @%d", r.WatchID, r.Revision)
	if r.Created {
		text += " created"
	}
	if r.Canceled {
		text += " canceled"
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	if r.CompactRevision != 0 {
		text += fmt.Sprintf(" compacted %d", r.CompactRevision)
	}
	if r.Fragment {
		text += " fragment"
	}
	return text + eventsText(r.Events)
}

func key(text string) Request          { return Request{Key: []byte(text)} }
func between(from, end string) Request { return Request{Key: []byte(from), End: []byte(end)} }

var everything = between("", "\x00")

func from(start int64, r Request) Request {
	r.Start = start
	return r
}

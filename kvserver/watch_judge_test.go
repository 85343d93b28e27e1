package kvserver

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

var (
	watchSeed   = flag.Uint64("kvserver.watchseed", 0, "seed of the comparison of watches; 0 draws one")
	watchRounds = flag.Int("kvserver.watchrounds", 4, "streams of the comparison of watches")
	watchSteps  = flag.Int("kvserver.watchsteps", 60, "steps with each stream")
)

// tally counts what came, or has to come, about one watcher.
type tally struct{ created, canceled, compacted, events int }

func (t tally) covers(due tally) bool {
	return t.created >= due.created && t.canceled >= due.canceled && t.compacted >= due.compacted && t.events >= due.events
}

// transcript is one watch stream and what came from it. The order of responses
// about different watchers is nowhere specified, so they are kept apart.
type transcript struct {
	name   string
	client pb.Watch_WatchClient
	late   int // answers to requests for progress that may still come

	mu        sync.Mutex
	responses map[int64][]string // by watcher; -1 has those that were refused
	tallies   map[int64]tally
	progress  []int64 // revisions
	ended     error
	changed   chan struct{} // closed and replaced
}

func openTranscript(t *testing.T, name string, s side) *transcript {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	client, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	tr := &transcript{name: name, client: client, responses: map[int64][]string{}, tallies: map[int64]tally{}, changed: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tr.receive() {
			continue
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return tr
}

func (tr *transcript) receive() bool {
	r, err := tr.client.Recv()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	close(tr.changed)
	tr.changed = make(chan struct{})
	if err != nil {
		tr.ended = err
		return false
	}
	if r.WatchId == -1 && !r.Created {
		tr.progress = append(tr.progress, r.Header.Revision)
		return true
	}
	n := tr.tallies[r.WatchId]
	n.events += len(r.Events)
	switch {
	case r.Created:
		n.created++
	case r.CompactRevision > 0:
		n.compacted++
	case r.Canceled:
		n.canceled++
	}
	tr.tallies[r.WatchId] = n
	mask(r.ProtoReflect(), map[string]bool{})
	tr.responses[r.WatchId] = append(tr.responses[r.WatchId], blanks.ReplaceAllString(prototext.MarshalOptions{}.Format(r), " "))
	return true
}

// await waits until done, which is called with the mutex held, or a response
// is overdue.
func (tr *transcript) await(limit time.Duration, done func() bool) error {
	timeout := time.After(limit)
	for {
		tr.mu.Lock()
		finished, changed, ended := done(), tr.changed, tr.ended
		tr.mu.Unlock()
		switch {
		case finished:
			return nil
		case ended != nil:
			return fmt.Errorf("%s: the stream ended: %w", tr.name, ended)
		}
		select {
		case <-changed:
		case <-timeout:
			return fmt.Errorf("%s: no response came within %v", tr.name, limit)
		}
	}
}

// askProgress asks until there is an answer. etcd has none before it moved
// the watchers that it has nothing to tell, which it does within 100 ms; ours
// has to have one at once.
func (tr *transcript) askProgress() (err error) {
	tr.mu.Lock()
	had := len(tr.progress)
	tr.mu.Unlock()
	limit, attempts := 20*time.Second, 1
	if tr.name == "etcd" {
		limit, attempts = 200*time.Millisecond, 100
	}
	for range attempts {
		if err := tr.client.Send(progressRequest()); err != nil {
			return fmt.Errorf("%s: %w", tr.name, err)
		}
		if err = tr.await(limit, func() bool { return len(tr.progress) > had }); err == nil {
			return nil
		}
		tr.late++
	}
	return err
}

func (tr *transcript) text() map[int64][]string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	text := map[int64][]string{}
	for id, responses := range tr.responses {
		text[id] = slices.Clone(responses)
	}
	return text
}

func createRequest(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}

func cancelRequest(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func progressRequest() *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

// watchComparison drives both servers through the same steps. It follows what
// they do, to know what it has to wait for before it compares.
type watchComparison struct {
	t       *testing.T
	rng     *rand.Rand
	sides   [2]side // etcd and ours
	referee pb.Watch_WatchClient
	counts  map[string]int

	revision, compacted int64
	history             []*mvccpb.Event

	// Of the present streams:
	streams  [2]*transcript
	watchers map[int64]*modelWatcher
	freeID   int64
	due      map[int64]tally
}

type modelWatcher struct {
	*pb.WatchCreateRequest
	begin int64
	dead  bool // ended by compaction and not canceled yet
}

// TestWatchesAreEtcds compares every response about every watcher with
// etcd's, for random watches on a random history.
func TestWatchesAreEtcds(t *testing.T) {
	seed := *watchSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -kvserver.watchseed=%d -kvserver.watchrounds=%d -kvserver.watchsteps=%d", seed, *watchRounds, *watchSteps)
	c := &watchComparison{t: t, rng: rand.New(rand.NewPCG(seed, 0)), revision: 1, counts: map[string]int{}} //nolint:gosec // a test
	c.sides[0], c.sides[1] = bothSides(t)
	var err error
	if c.referee, err = pb.NewWatchClient(c.sides[0].conn).Watch(t.Context()); err == nil {
		if err = c.referee.Send(createRequest(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}})); err == nil {
			_, err = c.referee.Recv()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		c.write()
	}
	for round := 0; round < *watchRounds || round < 10**watchRounds && !c.enough(); round++ {
		c.round()
	}
	t.Logf("%v", c.counts)
	if !c.enough() {
		t.Error("the comparison is worth little")
	}
}

// enough says that all has happened that the comparison is about. Chance leaves
// out the rare in few rounds.
func (c *watchComparison) enough() bool {
	return c.counts["events"] >= 100 && c.counts["ended by compaction"] > 0 && c.counts["refused"] > 0 && c.counts["progress"] > 0
}

func (c *watchComparison) round() {
	c.t.Helper()
	c.streams = [2]*transcript{openTranscript(c.t, "etcd", c.sides[0]), openTranscript(c.t, "ours", c.sides[1])}
	c.watchers, c.freeID, c.due = map[int64]*modelWatcher{}, 0, map[int64]tally{}
	for step := range *watchSteps {
		var did string
		switch n := c.rng.IntN(20); {
		case n < 6:
			did = c.create(c.request())
		case n < 8:
			did = c.cancel(c.rng.Int64N(14) - 3)
		case n < 10:
			did = c.progress()
		case n == 10:
			did = c.compact()
		default:
			did = c.write()
		}
		c.settle(fmt.Sprintf("step %d: %s", step, did))
	}
	did := c.create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	c.settle(did)
	// A client that has nothing more to ask still hears everything.
	for _, tr := range c.streams {
		if err := tr.client.CloseSend(); err != nil {
			c.t.Fatal(err)
		}
	}
	for before := c.revision; c.revision == before; {
		did += ", " + c.write()
	}
	c.settle(did)
}

// settle waits until both have said what they must, and compares.
func (c *watchComparison) settle(after string) {
	c.t.Helper()
	for _, tr := range c.streams {
		for id, due := range c.due {
			if err := tr.await(20*time.Second, func() bool { return tr.tallies[id].covers(due) }); err != nil {
				c.t.Fatalf("%s: watcher %d, has to have %+v: %v", after, id, due, err)
			}
		}
	}
	if diff := cmp.Diff(c.streams[0].text(), c.streams[1].text()); diff != "" {
		c.t.Fatalf("%s: the responses differ (-etcd +ours):\n%s", after, diff)
	}
	for _, tr := range c.streams {
		tr.mu.Lock()
		if len(tr.progress) > tr.late {
			c.t.Fatalf("%s: %s reports progress %v", after, tr.name, tr.progress)
		}
		tr.mu.Unlock()
	}
}

func (c *watchComparison) owe(id int64, more tally) {
	due := c.due[id]
	due.created += more.created
	due.canceled += more.canceled
	due.compacted += more.compacted
	due.events += more.events
	c.due[id] = due
}

func (c *watchComparison) send(r *pb.WatchRequest) {
	c.t.Helper()
	for _, tr := range c.streams {
		if err := tr.client.Send(r); err != nil {
			c.t.Fatalf("%s: %v", tr.name, err)
		}
	}
}

// both has both sides answer, and returns the last answer.
func (c *watchComparison) both(run call) (answer proto.Message) {
	c.t.Helper()
	for _, s := range c.sides {
		ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
		var err error
		answer, err = run.run(ctx, s.conn)
		cancel()
		if err != nil {
			c.t.Fatalf("%s: %v", run.name, err)
		}
	}
	return answer
}

func (c *watchComparison) key() []byte { return []byte{byte('a' + c.rng.IntN(5))} }

func (c *watchComparison) end(key []byte) []byte {
	switch c.rng.IntN(6) {
	case 0:
		return []byte{0}
	case 1, 2:
		return []byte{byte('a' + c.rng.IntN(6))} // may be the wrong way round
	case 3:
		return append(slices.Clone(key), 0)
	default:
		return nil
	}
}

// write changes something, or perhaps not.
func (c *watchComparison) write() string {
	c.t.Helper()
	ops := []*pb.RequestOp{putOp(string(c.key()), fmt.Sprint(c.rng.IntN(100)))}
	switch c.rng.IntN(4) {
	case 0:
		ops = []*pb.RequestOp{deleteOp(string(c.key()), string(c.end([]byte("a"))))}
	case 1:
		ops = []*pb.RequestOp{putOp("a", "1"), putOp("c"+string(c.key()), ""), deleteOp("d", "e"), putOp("e", "2")}
	}
	revision := c.both(txn("write", &pb.TxnRequest{Success: ops})).(*pb.TxnResponse).Header.Revision
	if revision == c.revision {
		return "write nothing"
	}
	c.revision = revision
	response, err := c.referee.Recv()
	if err != nil || response.Header.Revision != revision {
		c.t.Fatalf("the referee has %v, %v; want revision %d", response, err, revision)
	}
	c.history = append(c.history, response.Events...)
	for id := range c.watchers {
		c.expect(id, response.Events)
	}
	return fmt.Sprintf("write revision %d", revision)
}

// expect notes which of the events the watcher has to hear of.
func (c *watchComparison) expect(id int64, events []*mvccpb.Event) {
	w := c.watchers[id]
	for _, e := range events {
		inside := bytes.Equal(e.Kv.Key, w.Key)
		if len(w.RangeEnd) > 0 {
			inside = bytes.Compare(e.Kv.Key, w.Key) >= 0 && (bytes.Equal(w.RangeEnd, []byte{0}) || bytes.Compare(e.Kv.Key, w.RangeEnd) < 0)
		}
		filter := pb.WatchCreateRequest_NOPUT
		if e.Type == mvccpb.Event_DELETE {
			filter = pb.WatchCreateRequest_NODELETE
		}
		if inside && e.Kv.ModRevision >= w.begin && !w.dead && !slices.Contains(w.Filters, filter) {
			c.owe(id, tally{events: 1})
			c.counts["events"]++
		}
	}
}

func (c *watchComparison) request() *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{Key: c.key(), PrevKv: c.rng.IntN(2) == 0, ProgressNotify: c.rng.IntN(2) == 0, Fragment: c.rng.IntN(3) == 0}
	if c.rng.IntN(8) == 0 {
		r.Key = nil
	}
	r.RangeEnd = c.end(r.Key)
	if c.rng.IntN(3) == 0 {
		if r.WatchId = c.rng.Int64N(14) - 3; r.WatchId == -1 {
			r.WatchId = 0
		}
	}
	switch c.rng.IntN(12) {
	case 0, 1, 2, 3, 4:
		r.StartRevision = max(1, c.revision-c.rng.Int64N(60))
	case 5:
		r.StartRevision = c.revision + c.rng.Int64N(5) - 1
	case 6:
		r.StartRevision = -1 - c.rng.Int64N(2)
	case 7:
		r.StartRevision = max(0, c.compacted) // exactly there is not too old
	}
	for range c.rng.IntN(2) {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_FilterType(c.rng.IntN(3))) // 2 means nothing
	}
	return r
}

func (c *watchComparison) create(r *pb.WatchCreateRequest) string {
	c.t.Helper()
	c.send(createRequest(proto.CloneOf(r)))
	did := fmt.Sprintf("create %v", r)
	if len(r.Key) == 0 {
		r.Key = []byte{0}
	}
	empty := len(r.RangeEnd) > 0 && !bytes.Equal(r.RangeEnd, []byte{0}) && bytes.Compare(r.Key, r.RangeEnd) >= 0
	if r.StartRevision < 0 || empty || r.WatchId != 0 && c.watchers[r.WatchId] != nil {
		c.owe(-1, tally{created: 1})
		c.counts["refused"]++
		return did
	}
	id := r.WatchId
	if id == 0 {
		for c.watchers[c.freeID] != nil {
			c.freeID++
		}
		id = c.freeID
		c.freeID++
	}
	w := &modelWatcher{WatchCreateRequest: r, begin: r.StartRevision}
	if w.begin == 0 {
		w.begin = c.revision + 1
	}
	c.watchers[id] = w
	c.owe(id, tally{created: 1})
	if w.dead = w.begin < c.compacted; w.dead {
		c.owe(id, tally{compacted: 1})
		c.counts["ended by compaction"]++
	}
	c.expect(id, c.history)
	return did
}

func (c *watchComparison) cancel(id int64) string {
	c.t.Helper()
	c.send(cancelRequest(id))
	if c.watchers[id] != nil {
		c.owe(id, tally{canceled: 1})
		delete(c.watchers, id)
		c.counts["canceled"]++
	}
	return fmt.Sprintf("cancel %d", id)
}

// complete tells whether there is a progress to report.
func (c *watchComparison) complete() bool {
	for _, w := range c.watchers {
		if w.dead || w.StartRevision > c.revision {
			return false
		}
	}
	return len(c.watchers) > 0
}

// progress asks both how far they are. An answer that must not come is found
// when it has: see settle.
func (c *watchComparison) progress() string {
	c.t.Helper()
	if !c.complete() {
		c.send(progressRequest())
		c.counts["no progress"]++
		// The next answer shows that this request was looked at.
		return "request progress in vain, " + c.create(&pb.WatchCreateRequest{StartRevision: -1})
	}
	for _, tr := range c.streams {
		if err := tr.askProgress(); err != nil {
			c.t.Fatalf("request progress: %v", err)
		}
		tr.mu.Lock()
		if got := tr.progress[len(tr.progress)-1]; got != c.revision {
			c.t.Errorf("%s reports progress %d, want %d", tr.name, got, c.revision)
		}
		tr.progress = nil
		tr.mu.Unlock()
	}
	c.counts["progress"]++
	return "request progress"
}

// compact does so only when etcd has no watcher left that it might end for it.
func (c *watchComparison) compact() string {
	c.t.Helper()
	if !c.complete() || c.revision-c.compacted < 20 {
		return c.write()
	}
	c.progress()
	c.compacted = c.revision - c.rng.Int64N(20)
	c.both(compact("compact", &pb.CompactionRequest{Revision: c.compacted, Physical: c.rng.IntN(2) == 0}))
	for len(c.history) > 0 && c.history[0].Kv.ModRevision < c.compacted {
		c.history = c.history[1:]
	}
	return fmt.Sprintf("compact %d", c.compacted)
}

// watchOnce is the first response about a watch.
func watchOnce(name string, r *pb.WatchCreateRequest) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			return nil, err
		}
		if err := stream.Send(createRequest(proto.CloneOf(r))); err != nil {
			return nil, err
		}
		return stream.Recv()
	}}
}

// Who may watch what, and what the others are told, is as in etcd.
func TestWatchPermissionsAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	l := logins{}
	list := []call{
		addUser("user root", "root", "pass", false), addRole("role root", "root"), grantRole("root gets root", "root", "root"),
		addUser("user u", "u", "pass", false), addRole("role r", "r"), grantRole("u gets r", "u", "r"),
		permit("read a to c", "r", authpb.READ, "a", "c"),
		permit("write x", "r", authpb.WRITE, "x", ""),
		enableAuth(),
		l.authenticate("root", "root", "pass", "root"),
		l.authenticate("u", "u", "pass", "u"),
	}
	watches := []call{
		watchOnce("watch a", &pb.WatchCreateRequest{Key: []byte("a")}),
		watchOnce("watch a to c", &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), WatchId: 5}),
		watchOnce("watch b to d", &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("d")}),
		watchOnce("watch from a", &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte{0}}),
		watchOnce("watch the first key", &pb.WatchCreateRequest{}),
		watchOnce("watch x", &pb.WatchCreateRequest{Key: []byte("x")}),
		watchOnce("watch what may not be, from a revision that cannot be", &pb.WatchCreateRequest{Key: []byte("x"), StartRevision: -1}),
		watchOnce("watch nothing", &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}),
	}
	for _, user := range []string{"", "u", "root"} {
		for _, c := range watches {
			list = append(list, l.as(user, c))
		}
	}
	list = append(list, l.as("root", permit("something changes", "r", authpb.READ, "z", "")), l.as("u", watches[0]),
		call{"garbage: watch a", func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			return watches[0].run(metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, "garbage"), conn)
		}},
		l.as("root", disableAuth()), l.as("", watches[5]),
	)
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
}

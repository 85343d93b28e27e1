package difftest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// watches follows which watchers there are, to know what etcd has to say about
// them before it is taken for etcd's answer.
type watches struct {
	referee  *transcript // etcd's watcher of everything
	revision int64       // that the referee has come to
	history  []event     // since the last compaction

	compacted int64
	streams   map[int]map[int64]*watcher
	late      bool // etcd has watchers to which it has not yet shown the past
}

// watcher is one that was created on both sides.
type watcher struct {
	*pb.WatchCreateRequest
	begin int64 // the first revision that it hears of
	dead  bool  // the compaction of its begin has ended it
	// What its stream has to have, watchers before it of the same ID included.
	events, compactions int
}

func newWatches() *watches { return &watches{revision: 1, streams: map[int]map[int64]*watcher{}} }

// begin has the referee watch, as a user who may.
func (w *watches) begin(p *pair, user string) error {
	tr, err := openTranscript(p.etcd, user)
	if err != nil {
		return err
	}
	p.onStop(func() error { tr.close(); return nil })
	w.referee = tr
	r := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: w.revision + 1}
	if err = tr.send(createRequest(r)); err == nil {
		err = tr.await(countAnswered, 1)
	}
	if err == nil && tr.count(refused) > 0 {
		err = errors.New("the referee may not watch")
	}
	return err
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

// catchUp reads what the referee tells until the revision.
func (w *watches) catchUp(revision int64) error {
	timeout := time.NewTimer(stepTimeout)
	defer timeout.Stop()
	for {
		responses, changed := w.referee.take()
		for _, a := range responses[watcherTopic(0)] {
			r := a.response.(*pb.WatchResponse)
			for _, e := range r.GetEvents() {
				w.happened(event{string(e.GetKv().GetKey()), e.GetKv().GetModRevision(), e.GetType() == mvccpb.Event_DELETE})
			}
			w.revision = max(w.revision, r.GetHeader().GetRevision())
		}
		if w.revision >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			return fmt.Errorf("etcd has shown revision %d, want %d", w.revision, revision)
		}
	}
}

func (w *watches) happened(e event) {
	w.history = append(w.history, e)
	for _, stream := range w.streams {
		for _, watcher := range stream {
			watcher.expect(e)
		}
	}
}

// replaced tells whether one transaction has deleted a key and put it again at
// the revision. Compacted exactly there, etcd 3.7.3 loses the key, and stops
// the process when it is read.
func (w *watches) replaced(revision int64) bool {
	deleted := map[string]bool{}
	for _, e := range w.history {
		if e.revision != revision {
			continue
		}
		if e.deleted {
			deleted[e.key] = true
		} else if deleted[e.key] {
			return true
		}
	}
	return false
}

func (w *watches) wasCompacted(revision int64) {
	w.compacted = max(w.compacted, revision)
	for len(w.history) > 0 && w.history[0].revision < revision {
		w.history = w.history[1:]
	}
}

func (w *watches) created(stream int, id int64, watcher *watcher) {
	watcher.begin = watcher.GetStartRevision()
	if watcher.begin == 0 {
		watcher.begin = w.revision + 1
	}
	w.late = w.late || watcher.begin <= w.revision
	if watcher.dead = watcher.begin < w.compacted; watcher.dead {
		watcher.compactions++
	}
	for _, e := range w.history {
		watcher.expect(e)
	}
	w.streams[stream][id] = watcher
}

func (w *watcher) expect(e event) {
	if !w.dead && e.revision >= w.begin && matches(w.WatchCreateRequest, e) {
		w.events++
	}
}

// complete tells whether a stream has a progress to report.
func (w *watches) complete(stream int) bool {
	for _, watcher := range w.streams[stream] {
		if watcher.dead || watcher.GetStartRevision() > w.revision {
			return false
		}
	}
	return len(w.streams[stream]) > 0
}

// settle waits until etcd has said about every watcher all that it has to, and
// compares that with what ours says.
func (p *pair) settle() error {
	if err := p.watches.catchUp(p.revision); err != nil {
		return err
	}
	for stream, watchers := range p.watches.streams {
		tr := p.etcd.streams[stream]
		for id, watcher := range watchers {
			err := tr.await(countEvents(id), watcher.events)
			if err == nil {
				err = tr.await(countCompacted(id), watcher.compactions)
			}
			if err != nil {
				return fmt.Errorf("etcd: stream %d: watcher %d %v: %w", stream, id, watcher.WatchCreateRequest, err)
			}
		}
	}
	if p.watches.late {
		if err := awaitSynced(); err != nil {
			return err
		}
		p.watches.late = false
	}
	for stream := range p.watches.streams {
		if err := compareTranscripts(p, p.etcd.streams[stream], p.ours.streams[stream]); err != nil {
			return fmt.Errorf("stream %d: %w", stream, err)
		}
	}
	return nil
}

// awaitSynced waits until etcd has no watcher that it still has to show the
// past, which is work that it does at intervals. Until then it joins what
// happens meanwhile to the past.
func awaitSynced() error {
	const unsynced = "etcd_debugging_mvcc_slow_watcher_total"
	timeout := time.NewTimer(stepTimeout)
	defer timeout.Stop()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		families, err := prometheus.DefaultGatherer.Gather()
		if err != nil {
			return err
		}
		found := false
		for _, family := range families {
			if family.GetName() != unsynced {
				continue
			}
			if found = true; family.GetMetric()[0].GetGauge().GetValue() == 0 {
				return nil
			}
		}
		if !found {
			return fmt.Errorf("etcd has no metric %s", unsynced)
		}
		select {
		case <-poll.C:
		case <-timeout.C:
			return errors.New("etcd does not synchronize its watchers")
		}
	}
}

// openStream opens a watch stream under a number that is free.
type openStream struct {
	user   string
	stream int
}

func (o openStream) String() string {
	return fmt.Sprintf("%s: Watch.Watch: stream %d opens", name(o.user), o.stream)
}

func (o openStream) run(_ context.Context, p *pair) (answer, error) {
	for _, s := range []*side{p.etcd, p.ours} {
		if s.streams[o.stream] != nil {
			return answer{}, nil // a stream that was left out when shortening
		}
		tr, err := openTranscript(s, o.user)
		if err != nil {
			return answer{}, fmt.Errorf("%s: %w", s.name, err)
		}
		s.streams[o.stream] = tr
	}
	p.watches.streams[o.stream] = map[int64]*watcher{}
	return answer{}, nil
}

// closeStream ends a stream with all its watchers.
type closeStream struct{ stream int }

func (c closeStream) String() string { return fmt.Sprintf("Watch.Watch: stream %d closes", c.stream) }

func (c closeStream) run(_ context.Context, p *pair) (answer, error) {
	if err := p.settle(); err != nil {
		return answer{}, err
	}
	for _, s := range []*side{p.etcd, p.ours} {
		if tr := s.streams[c.stream]; tr != nil {
			tr.close()
			delete(s.streams, c.stream)
		}
	}
	delete(p.watches.streams, c.stream)
	return answer{}, nil
}

// watch sends one request on a stream.
type watch struct {
	stream  int
	request *pb.WatchRequest
}

func (w watch) String() string {
	return fmt.Sprintf("Watch.Watch: stream %d: %s", w.stream, text(w.request))
}

func (w watch) run(_ context.Context, p *pair) (answer, error) {
	if p.watches.streams[w.stream] == nil {
		return answer{}, nil // see openStream
	}
	if err := p.settle(); err != nil {
		return answer{}, err
	}
	var err error
	switch r := w.request; {
	case r.GetCreateRequest() != nil:
		err = w.create(p, r)
	case r.GetCancelRequest() != nil:
		id := r.GetCancelRequest().GetWatchId()
		if p.watches.streams[w.stream][id] == nil {
			err = w.unanswered(p)
			break
		}
		err = w.answered(p, countCanceled(id))
		delete(p.watches.streams[w.stream], id)
	case r.GetProgressRequest() != nil && p.watches.complete(w.stream):
		err = w.answered(p, progress)
	default:
		err = w.unanswered(p)
	}
	if err == nil {
		err = p.settle()
	}
	return answer{}, err
}

// answered sends the request and waits until both sides have answered.
func (w watch) answered(p *pair, counted string) error {
	for _, s := range []*side{p.etcd, p.ours} {
		tr := s.streams[w.stream]
		had := tr.count(counted)
		err := tr.send(w.request)
		if err == nil {
			err = tr.await(counted, had+1)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// unanswered sends the request, and one whose answer shows that it was looked
// at.
func (w watch) unanswered(p *pair) error {
	for _, s := range []*side{p.etcd, p.ours} {
		if err := s.streams[w.stream].send(w.request); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return watch{w.stream, createRequest(&pb.WatchCreateRequest{StartRevision: -1})}.answered(p, countAnswered)
}

func (w watch) create(p *pair, r *pb.WatchRequest) error {
	etcds := p.etcd.streams[w.stream]
	before, counts := etcds.came()
	if err := w.answered(p, countAnswered); err != nil {
		return err
	}
	after, _ := etcds.came()
	for id, n := range after {
		if n > before[id] {
			p.watches.created(w.stream, id, &watcher{
				WatchCreateRequest: r.GetCreateRequest(),
				events:             counts[countEvents(id)], compactions: counts[countCompacted(id)],
			})
		}
	}
	return nil
}

// restart stops both servers, with all streams, and starts them again. Whoever
// had a token has to get another one: etcd may or may not know it from the last
// entries of its log. Root does so at once, when there is a password.
type restart struct{ password string }

func (r restart) String() string { return fmt.Sprintf("restart, root has the password %q", r.password) }

func (r restart) run(ctx context.Context, p *pair) (answer, error) {
	err := p.settle()
	if err == nil {
		err = p.stop()
	}
	if err != nil {
		return answer{}, err
	}
	p.restarts++
	p.restarted = p.watches.compacted
	clear(p.watches.streams)
	clear(p.etcd.tokens)
	clear(p.ours.tokens)
	if err := p.start(); err != nil {
		return answer{}, err
	}
	if r.password == "" {
		return answer{}, p.watches.begin(p, nobody)
	}
	a, err := login{root, r.password}.run(ctx, p)
	if err != nil {
		return a, err
	}
	return a, p.watches.begin(p, root)
}

// settle compares what the streams have told.
type settle struct{}

func (settle) String() string { return "compare the watch streams" }

func (settle) run(_ context.Context, p *pair) (answer, error) { return answer{}, p.settle() }

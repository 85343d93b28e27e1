package difftest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// transcript is one watch stream of one side, with what came from it that was
// not compared yet. The order of responses about different watchers is nowhere
// specified, so they are kept apart.
type transcript struct {
	client pb.Watch_WatchClient
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex
	responses map[string][]answer // by topic
	counts    map[string]int      // what came at all, by topic; see also countEvents
	creations map[int64]int       // by watcher
	changed   chan struct{}       // closed and replaced
}

// Topics, besides one for each watcher.
const (
	refused  = "refused watches"
	progress = "progress"
	ended    = "end of the stream"
)

func watcherTopic(id int64) string { return fmt.Sprintf("watcher %d", id) }

// What is counted about a watcher.
func countEvents(id int64) string    { return watcherTopic(id) + ": events" }
func countCanceled(id int64) string  { return watcherTopic(id) + ": canceled" }
func countCompacted(id int64) string { return watcherTopic(id) + ": compacted" }

const countAnswered = "created or refused"

func openTranscript(s *side, user string) (*transcript, error) {
	ctx, cancel := context.WithCancel(context.Background())
	client, err := pb.NewWatchClient(s.conn).Watch(s.as(ctx, user))
	if err != nil {
		cancel()
		return nil, err
	}
	tr := &transcript{
		client: client, cancel: cancel, done: make(chan struct{}),
		responses: map[string][]answer{}, counts: map[string]int{}, creations: map[int64]int{}, changed: make(chan struct{}),
	}
	go func() {
		defer close(tr.done)
		for tr.receive() {
			continue
		}
	}()
	return tr, nil
}

func (tr *transcript) close() {
	tr.cancel()
	<-tr.done
}

func (tr *transcript) receive() bool {
	r, err := tr.client.Recv()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	close(tr.changed)
	tr.changed = make(chan struct{})
	if err != nil {
		tr.note(ended, answerOf(nil, err))
		return false
	}
	a := answer{response: r}
	switch id := r.GetWatchId(); {
	case r.GetCreated() && r.GetCanceled():
		tr.note(refused, a)
		tr.counts[countAnswered]++
	case r.GetCreated():
		tr.note(watcherTopic(id), a)
		tr.creations[id]++
		tr.counts[countAnswered]++
	case r.GetCompactRevision() > 0:
		tr.note(watcherTopic(id), a)
		tr.counts[countCompacted(id)]++
	case r.GetCanceled():
		tr.note(watcherTopic(id), a)
		tr.counts[countCanceled(id)]++
	case len(r.GetEvents()) == 0:
		tr.note(progress, a)
	default:
		tr.note(watcherTopic(id), a)
		tr.counts[countEvents(id)] += len(r.GetEvents())
	}
	return true
}

func (tr *transcript) note(topic string, a answer) {
	tr.responses[topic] = append(tr.responses[topic], a)
	tr.counts[topic]++
}

func (tr *transcript) count(what string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.counts[what]
}

// came is how often watchers were created, by their IDs, and what was counted.
func (tr *transcript) came() (creations map[int64]int, counts map[string]int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return maps.Clone(tr.creations), maps.Clone(tr.counts)
}

// await waits until something was counted n times, or the stream has ended.
func (tr *transcript) await(what string, n int) error {
	timeout := time.NewTimer(stepTimeout)
	defer timeout.Stop()
	for {
		tr.mu.Lock()
		had, over, changed := tr.counts[what], tr.counts[ended] > 0, tr.changed
		tr.mu.Unlock()
		switch {
		case had >= n:
			return nil
		case over:
			return fmt.Errorf("the stream ended with %d of %q, want %d", had, what, n)
		}
		select {
		case <-changed:
		case <-timeout.C:
			return fmt.Errorf("there are %d of %q, want %d", had, what, n)
		}
	}
}

// take returns what came and was not taken yet, and a channel that is closed
// when there is more.
func (tr *transcript) take() (responses map[string][]answer, changed <-chan struct{}) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	responses, tr.responses = tr.responses, map[string][]answer{}
	return responses, tr.changed
}

// untake puts back the rest of what was taken.
func (tr *transcript) untake(rest map[string][]answer) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for topic, answers := range rest {
		if len(answers) > 0 {
			tr.responses[topic] = append(answers, tr.responses[topic]...)
		}
	}
}

// compareTranscripts waits until both sides have said the same. Etcd has said
// all that it has to when this begins.
func compareTranscripts(p *pair, etcds, ours *transcript) error {
	timeout := time.NewTimer(stepTimeout)
	defer timeout.Stop()
	for {
		wants, changed := etcds.take()
		gots, ourChange := ours.take()
		topics := slices.Collect(maps.Keys(wants))
		topics = append(topics, slices.Collect(maps.Keys(gots))...)
		slices.Sort(topics)
		var missing error
		for _, topic := range slices.Compact(topics) {
			want, got := wants[topic], gots[topic]
			for len(want) > 0 && len(got) > 0 {
				if shorter := joinable(&want, &got); shorter != nil {
					if join(shorter) {
						continue
					}
					break // the rest may come
				}
				if err := compare(p, nil, want[0], got[0]); err != nil {
					return fmt.Errorf("%s: %w", topic, err)
				}
				want, got = want[1:], got[1:]
			}
			wants[topic], gots[topic] = want, got
			if len(want) > 0 {
				missing = fmt.Errorf("%s: ours has not: %v", topic, want[0])
			} else if len(got) > 0 {
				missing = fmt.Errorf("%s: only ours has: %v", topic, got[0])
			}
		}
		if missing == nil {
			return nil
		}
		etcds.untake(wants)
		ours.untake(gots)
		select {
		case <-changed:
		case <-ourChange:
		case <-timeout.C:
			return missing
		}
	}
}

// matches tells whether a watcher that was asked for hears of an event.
func matches(r *pb.WatchCreateRequest, e event) bool {
	key, end := string(r.GetKey()), string(r.GetRangeEnd())
	if key == "" {
		key = "\x00"
	}
	inside := e.key == key
	if end != "" {
		inside = e.key >= key && (end == "\x00" || e.key < end)
	}
	filter := pb.WatchCreateRequest_NOPUT
	if e.deleted {
		filter = pb.WatchCreateRequest_NODELETE
	}
	return inside && !slices.Contains(r.GetFilters(), filter)
}

// event is what has to be known of one to foresee who hears of it.
type event struct {
	key      string
	revision int64
	deleted  bool
}

// send sends a copy: the request belongs to gRPC then.
func (tr *transcript) send(r *pb.WatchRequest) error { return tr.client.Send(proto.CloneOf(r)) }

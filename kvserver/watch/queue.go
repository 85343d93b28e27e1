package watch

// responseOverhead is what a response takes beside its events, in bytes.
const responseOverhead = 128

// queue is what waits to be read from a stream. It is guarded by the stream's
// mutex.
type queue struct {
	limit     int // of size, for events
	responses []Response
	size      int           // approximate bytes in memory
	counted   int64         // the revision whose events are in size already
	taken     chan struct{} // closed by take; nil while nobody waits for it
}

// push adds whatever the size. Those who push to answer a client see to it
// that there is room; see hasRoom.
func (q *queue) push(r Response) {
	q.responses = append(q.responses, r)
	q.size += responseOverhead
}

func (q *queue) hasRoom() bool { return q.size < q.limit }

// offer adds events of revision, unless there is no room for them. Watchers
// share the events, so they count once.
func (q *queue) offer(r Response, revision revision) bool {
	more := responseOverhead
	if q.counted != revision.rev {
		more += revision.size
	}
	if len(q.responses) > 0 && q.size+more > q.limit {
		return false
	}
	q.counted = revision.rev
	q.size += more - responseOverhead
	q.push(r)
	return true
}

func (q *queue) take() []Response {
	taken := q.responses
	q.responses, q.size, q.counted = nil, 0, 0
	if q.taken != nil {
		close(q.taken)
		q.taken = nil
	}
	return taken
}

// nextTake is closed by the next take.
func (q *queue) nextTake() <-chan struct{} {
	if q.taken == nil {
		q.taken = make(chan struct{})
	}
	return q.taken
}

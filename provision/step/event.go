package step

import "time"

// Kind says what an Event tells.
type Kind string

// The kinds of events. They appear in JSON output: do not rename.
const (
	Started Kind = "started" // a step began on a host
	Done    Kind = "done"    // a step ended on a host
	Changed Kind = "changed" // something was changed
	Note    Kind = "note"    // something worth telling
	Warning Kind = "warning" // something that may be wrong and does not stop the operation
	Failed  Kind = "failed"  // a step failed on a host
	// Progress is how far a long transfer is, at most once a second.
	Progress Kind = "progress"
)

// Event is one thing that happened during an operation.
type Event struct {
	Time    time.Time
	Kind    Kind
	Cluster string // empty unless several are worked on
	Step    string
	Host    string // empty for the cluster as a whole
	Text    string
}

// Reporter receives events from several goroutines at once.
type Reporter interface {
	Report(Event)
}

package main

import (
	"testing"

	"muster/provision/step"
)

// A live display shows how far a transfer is, also of a host that it had no line
// for.
func TestLiveProgress(t *testing.T) {
	out := newWaitingWriter("controller-1  musterd: 12 MiB of 29 MiB, 4.0 MiB/s")
	r := newLiveReporter(out, []string{"controller-0"}, false)
	r.Report(step.Event{Kind: step.Progress, Step: "programs", Host: "controller-1", Text: "musterd: 12 MiB of 29 MiB, 4.0 MiB/s"})
	out.wait(t)
	r.stop(true)
}

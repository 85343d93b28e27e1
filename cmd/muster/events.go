package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"muster/provision/step"
)

// events writes what happens during a command for other programs, whatever a
// person is shown meanwhile.
type events struct {
	command string // "muster apply"
	closer  io.Closer

	mu  sync.Mutex
	enc *json.Encoder
}

// The kinds of lines beside those of the events. Programs read them: do not
// rename.
const (
	eventBegin step.Kind = "begin" // the command begins
	eventEnd   step.Kind = "end"   // it has ended
)

// eventLine is the form of one line.
type eventLine struct {
	jsonEvent
	Command string `json:"command"`
	// Failed and Error say in the last line how the command went.
	Failed bool   `json:"failed,omitempty"`
	Error  string `json:"error,omitempty"`
}

// openEvents opens what --events names. Standard output then belongs to the
// events, and what a person is to read goes to standard error.
func (a *app) openEvents(command string) error {
	if a.eventsFile == "" {
		return nil
	}
	a.events = &events{command: command}
	out := a.out
	switch {
	case a.eventsFile == standardOutput && a.wantsJSON():
		return errors.New("--events - and --output json both want standard output; name a file for one of them")
	case a.eventsFile == standardOutput:
		a.out = a.err
	default:
		f, err := os.OpenFile(a.eventsFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("open the file for events: %w", err)
		}
		out, a.events.closer = f, f
	}
	a.events.enc = json.NewEncoder(out)
	a.events.write(eventLine{jsonEvent: jsonEvent{Kind: eventBegin}})
	return nil
}

// standardOutput is the name of it where a file is named.
const standardOutput = "-"

func (e *events) write(line eventLine) {
	line.Command = e.command
	if line.Time.IsZero() {
		line.Time = time.Now()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = e.enc.Encode(line) // who reads them may be gone
}

// end writes the last line and closes the file.
func (e *events) end(err error) {
	if e == nil || e.enc == nil {
		return
	}
	line := eventLine{jsonEvent: jsonEvent{Kind: eventEnd}}
	if err != nil {
		line.Failed, line.Error = true, err.Error()
	}
	e.write(line)
	if e.closer != nil {
		_ = e.closer.Close()
	}
}

// reporter tells r and the events what happens.
func (a *app) reporter(r reporter) step.Reporter {
	if a.events == nil {
		if r == nil {
			return nil
		}
		return r
	}
	return telling{events: a.events, next: r}
}

type telling struct {
	events *events
	next   step.Reporter // may be nil
}

// Report implements step.Reporter.
func (t telling) Report(e step.Event) {
	t.events.write(eventLine{jsonEvent: jsonEvent(e)})
	if t.next != nil {
		t.next.Report(e)
	}
}

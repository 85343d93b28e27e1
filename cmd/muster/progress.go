package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/text"

	"muster/provision/step"
)

// reporter shows an operation while it runs. Nothing is shown after stop.
type reporter interface {
	step.Reporter
	stop(ok bool)
}

// newReporter returns what suits the output: JSON lines on standard output, a
// live line for each host on a terminal, plain lines elsewhere.
func (a *app) newReporter(hosts []string) reporter {
	switch {
	case a.wantsJSON():
		return &jsonReporter{enc: json.NewEncoder(a.out)}
	case a.terminal():
		return newLiveReporter(&quietWriter{mu: &a.screen, out: a.err}, hosts, a.colors())
	}
	return &plainReporter{out: a.err}
}

// jsonReporter writes one JSON object a line for every event.
type jsonReporter struct {
	mu  sync.Mutex
	enc *json.Encoder
}

// jsonEvent is the form of one line. The last line of an operation has kind
// "result" or "error".
type jsonEvent struct {
	Time    time.Time `json:"time"`
	Kind    step.Kind `json:"kind"`
	Cluster string    `json:"cluster,omitempty"` // when there are several
	Step    string    `json:"step"`
	Host    string    `json:"host,omitempty"`
	Text    string    `json:"text,omitempty"`
}

func (r *jsonReporter) Report(e step.Event) { r.line(jsonEvent(e)) }

func (r *jsonReporter) line(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.enc.Encode(v)
}

func (*jsonReporter) stop(bool) {}

// plainReporter writes a line, beginning with the host, for what is worth
// reading afterwards.
type plainReporter struct {
	mu  sync.Mutex
	out io.Writer
}

func (r *plainReporter) Report(e step.Event) {
	line, ok := plainLine(e)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintln(r.out, line)
}

func (*plainReporter) stop(bool) {}

// quietReporter tells only what is wrong.
type quietReporter struct{ plainReporter }

func (r *quietReporter) Report(e step.Event) {
	if e.Kind == step.Warning || e.Kind == step.Failed {
		r.plainReporter.Report(e)
	}
}

// lateReporter is quiet until resume, for as long as there may be questions,
// and then what begin returns.
type lateReporter struct {
	quietReporter
	begin func() reporter
	mu    sync.Mutex
	now   reporter
}

// newLateReporter is newReporter for an operation that may ask: a live display
// begins only with resume.
func (a *app) newLateReporter(hosts []string) (r reporter, resume func()) {
	if a.wantsJSON() || !a.terminal() {
		return a.newReporter(hosts), func() {}
	}
	late := &lateReporter{quietReporter: quietReporter{plainReporter{out: a.err}}, begin: func() reporter { return a.newReporter(hosts) }}
	return late, late.resume
}

func (r *lateReporter) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.begin()
}

func (r *lateReporter) current() reporter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		return &r.quietReporter
	}
	return r.now
}

func (r *lateReporter) Report(e step.Event) { r.current().Report(e) }
func (r *lateReporter) stop(ok bool)        { r.current().stop(ok) }

// allHosts stands for the host in what concerns the cluster as a whole.
const allHosts = "cluster"

func plainLine(e step.Event) (string, bool) {
	host := e.Host
	switch {
	case host == "" && e.Cluster != "":
		host = e.Cluster
	case host == "":
		host = allHosts
	case e.Cluster != "":
		host = e.Cluster + "/" + host
	}
	switch e.Kind {
	case step.Changed, step.Note:
		return host + ": " + e.Text, true
	case step.Warning:
		return host + ": warning: " + e.Text, true
	case step.Started:
		return host + ": " + e.Step, e.Host == ""
	case step.Failed:
		return host + ": " + e.Step + " failed", true
	}
	return "", false
}

// liveReporter keeps one line for each host: its name, its step and the time
// since the operation began. Notes and warnings scroll by above.
type liveReporter struct {
	writer   progress.Writer
	mu       sync.Mutex // of trackers and hosts
	trackers map[string]*progress.Tracker
	hosts    []string
	width    int
	done     chan struct{}
}

// quietWriter writes while nobody else has the screen.
type quietWriter struct {
	mu  *sync.Mutex
	out io.Writer
}

func (w *quietWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(p)
}

const liveUpdate = 100 * time.Millisecond

func newLiveReporter(out io.Writer, hosts []string, colors bool) *liveReporter {
	r := &liveReporter{writer: progress.NewWriter(), trackers: map[string]*progress.Tracker{}, hosts: hosts, done: make(chan struct{})}
	style := progress.StyleDefault
	style.Visibility = progress.StyleVisibility{Time: true}
	style.Options.Separator = " "
	style.Options.DoneString, style.Options.ErrorString = "", ""
	style.Options.KeepTrackersTogether = true
	style.Options.TimeInProgressPrecision, style.Options.TimeDonePrecision = liveUpdate, liveUpdate
	if colors {
		style.Colors = progress.StyleColors{Message: text.Colors{text.Reset}, Error: text.Colors{text.FgRed}, Time: text.Colors{text.Faint}}
	}
	r.writer.SetStyle(style)
	r.writer.SetOutputWriter(out)
	r.writer.SetUpdateFrequency(liveUpdate)
	r.writer.SetSortBy(progress.SortByIndex)
	r.writer.SetTrackerPosition(progress.PositionRight)
	for _, h := range hosts {
		r.width = max(r.width, len(h))
	}
	for i, h := range hosts {
		r.track(h, uint64(i)) //nolint:gosec // not negative
	}
	go func() {
		defer close(r.done)
		r.writer.Render()
	}()
	return r
}

func (r *liveReporter) track(host string, index uint64) *progress.Tracker {
	t := &progress.Tracker{Index: index, AutoStopDisabled: true, Message: r.line(host, "waiting")}
	r.trackers[host] = t
	r.writer.AppendTracker(t)
	return t
}

func (r *liveReporter) line(host, step string) string {
	return fmt.Sprintf("%-*s  %-14s", r.width, host, step)
}

func (r *liveReporter) Report(e step.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case step.Started:
		for _, h := range r.hosts {
			if e.Host == "" || e.Host == h {
				r.trackers[h].UpdateMessage(r.line(h, e.Step))
			}
		}
	case step.Failed:
		if t := r.trackers[e.Host]; t != nil {
			t.UpdateMessage(r.line(e.Host, e.Step+" failed"))
			t.MarkAsErrored()
		}
	case step.Progress:
		t := r.trackers[e.Host]
		if t == nil { // an operation of which only what takes long is shown
			r.hosts = append(r.hosts, e.Host)
			t = r.track(e.Host, uint64(len(r.hosts)))
		}
		t.UpdateMessage(r.line(e.Host, e.Text))
	case step.Note, step.Warning:
		if line, ok := plainLine(e); ok {
			r.writer.Log("%s", strings.TrimPrefix(line, allHosts+": "))
		}
	}
}

func (r *liveReporter) stop(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.hosts {
		t := r.trackers[h]
		if t.IsErrored() {
			continue
		}
		if ok {
			t.UpdateMessage(r.line(h, "done"))
		}
		t.MarkAsDone()
	}
	r.writer.Stop()
	<-r.done
}

// Package journal reads what systemd's journals of several hosts say, and puts
// it in one order.
package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Entry is one message of one host.
type Entry struct {
	Host    string    `json:"host"`
	Time    time.Time `json:"time"` // by the clock of the host
	Program string    `json:"program,omitempty"`
	PID     int       `json:"pid,omitempty"`
	Message string    `json:"message"`
	// Cursor is the entry's place in the journal of its host.
	Cursor string `json:"-"`
}

// longestLine is what journalctl may print for one entry, in bytes: journald
// cuts messages at 48 KiB, and bytes that are no text are written as numbers.
const longestLine = 1 << 20

// Reader reads what journalctl -o json prints, or the output of a container.
type Reader struct {
	host  string
	lines *bufio.Scanner
	tool  string // that prints
	parse func(line []byte) (Entry, error)
}

// NewReader reads the journal of a host.
func NewReader(host string, r io.Reader) *Reader { return newReader(host, r, "journalctl", parse) }

// NewContainerReader reads lines of the files in which the kubelet keeps the
// output of containers, each behind the name of its file and its number there,
// from 1.
func NewContainerReader(host string, r io.Reader) *Reader {
	return newReader(host, r, "the container", parseContainer)
}

func newReader(host string, r io.Reader, tool string, parse func([]byte) (Entry, error)) *Reader {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), longestLine)
	return &Reader{host: host, lines: lines, tool: tool, parse: parse}
}

// Read hands the entries to emit, until an empty line or the end of the input,
// which is io.EOF. A line that is no entry is the tool's way to say what is
// wrong, and becomes the error.
func (r *Reader) Read(emit func(Entry) error) error {
	for r.lines.Scan() {
		line := r.lines.Bytes()
		if len(line) == 0 {
			return nil
		}
		e, err := r.parse(line)
		if err != nil {
			return fmt.Errorf("%s: %s: %.200s", r.host, r.tool, strings.TrimSpace(string(line)))
		}
		e.Host = r.host
		if err := emit(e); err != nil {
			return err
		}
	}
	if err := r.lines.Err(); err != nil {
		return fmt.Errorf("%s: read the journal: %w", r.host, err)
	}
	return io.EOF
}

// parseContainer reads a line in the format that container runtimes write for
// the kubelet: time, stream, tag, message.
func parseContainer(line []byte) (Entry, error) {
	fields := strings.SplitN(string(line), " ", 6)
	if len(fields) < 5 {
		return Entry{}, errors.New("there are fields missing")
	}
	at, err := time.Parse(time.RFC3339Nano, fields[2])
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Time: at, Program: "etcd", Cursor: fields[0] + " " + fields[1]}
	if len(fields) == 6 {
		e.Message = strings.ToValidUTF8(fields[5], "?")
	}
	return e, nil
}

// parse reads one entry, systemd.journal-fields(7).
func parse(line []byte) (Entry, error) {
	var fields struct {
		Cursor     string          `json:"__CURSOR"`
		Realtime   string          `json:"__REALTIME_TIMESTAMP"` // microseconds
		Identifier string          `json:"SYSLOG_IDENTIFIER"`
		PID        string          `json:"_PID"`
		Message    json.RawMessage `json:"MESSAGE"`
	}
	if err := json.Unmarshal(line, &fields); err != nil {
		return Entry{}, err
	}
	us, err := strconv.ParseInt(fields.Realtime, 10, 64)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Time: time.UnixMicro(us), Program: fields.Identifier, Cursor: fields.Cursor}
	e.PID, _ = strconv.Atoi(fields.PID) // not every entry has one
	e.Message, err = message(fields.Message)
	return e, err
}

// message is a string, or an array of bytes when it is no text, or null when
// it is too long to print.
func message(raw json.RawMessage) (string, error) {
	var text *string
	if err := json.Unmarshal(raw, &text); err == nil || len(raw) == 0 {
		if text == nil {
			return "(a message that journalctl does not print)", nil
		}
		return *text, nil
	}
	var numbers []int
	if err := json.Unmarshal(raw, &numbers); err != nil {
		return "", err
	}
	bytes := make([]byte, len(numbers))
	for i, n := range numbers {
		bytes[i] = byte(n) //nolint:gosec // that is what it is
	}
	return strings.ToValidUTF8(string(bytes), "?"), nil
}

// Merge hands on the entries of sources that are each in order, the oldest
// first, until all are closed. It holds one entry of each source.
func Merge(ctx context.Context, sources []<-chan Entry, emit func(Entry) error) error {
	type head struct {
		entry  Entry
		source <-chan Entry
	}
	var heads []head
	next := func(source <-chan Entry) error {
		select {
		case e, ok := <-source:
			if ok {
				heads = append(heads, head{e, source})
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for _, s := range sources {
		if err := next(s); err != nil {
			return err
		}
	}
	for len(heads) > 0 {
		oldest := 0
		for i, h := range heads {
			if h.entry.Time.Before(heads[oldest].entry.Time) {
				oldest = i
			}
		}
		h := heads[oldest]
		if err := emit(h.entry); err != nil {
			return err
		}
		heads = slices.Delete(heads, oldest, oldest+1)
		if err := next(h.source); err != nil {
			return err
		}
	}
	return nil
}

// Follow hands on entries as they come, each after a while in which older ones
// of other hosts may still come, until in is closed or the context ends.
func Follow(ctx context.Context, in <-chan Entry, while time.Duration, emit func(Entry) error) error {
	var held []Entry
	flush := func() error {
		slices.SortStableFunc(held, func(a, b Entry) int { return a.Time.Compare(b.Time) })
		for _, e := range held {
			if err := emit(e); err != nil {
				return err
			}
		}
		held = held[:0]
		return nil
	}
	var due <-chan time.Time
	for {
		select {
		case e, ok := <-in:
			if !ok {
				return flush()
			}
			held = append(held, e)
			if due == nil {
				due = time.After(while)
			}
		case <-due:
			due = nil
			if err := flush(); err != nil {
				return err
			}
		case <-ctx.Done():
			return flush()
		}
	}
}

package practice

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
)

// journalTime is how journalctl's short-iso-precise writes a time.
const journalTime = "2006-01-02T15:04:05.000000-0700"

// journal keeps what one unit printed, in a file of bounded size. A line is
// "TIME IDENTIFIER[PID]: MESSAGE", which is journalctl's short-iso-precise
// form without the host name.
type journal struct {
	path string

	mu  sync.Mutex
	log *lumberjack.Logger
}

func openJournal(dir, unitName string) *journal {
	p := filepath.Join(dir, unitName+".log")
	return &journal{path: p, log: &lumberjack.Logger{Filename: p, MaxSize: 8, MaxBackups: 1}}
}

// add writes one message. A journal that cannot be written loses the message,
// as the real one does when its disk is full.
func (j *journal) add(identifier string, pid int, message string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, _ = fmt.Fprintf(j.log, "%s %s[%d]: %s\n", time.Now().Format(journalTime), identifier, pid, message)
}

// tail returns the last n lines, oldest first; all of them when n < 0.
// bare leaves the message only.
func (j *journal) tail(n int, bare bool) ([]string, error) {
	j.mu.Lock()
	data, err := os.ReadFile(j.path)
	j.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if n >= 0 && len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	if bare {
		for i, l := range lines {
			if _, message, ok := strings.Cut(l, "]: "); ok {
				lines[i] = message
			}
		}
	}
	return lines, nil
}

func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.log.Close()
}

// journals are those of the units of a host, by the unit's name.
type journals struct {
	dir  string
	mu   sync.Mutex
	open map[string]*journal
}

func newJournals(dir string) *journals { return &journals{dir: dir, open: map[string]*journal{}} }

func (j *journals) of(unitName string) *journal {
	j.mu.Lock()
	defer j.mu.Unlock()
	one, ok := j.open[unitName]
	if !ok {
		one = openJournal(j.dir, unitName)
		j.open[unitName] = one
	}
	return one
}

// close closes the files; the next message opens its own again.
func (j *journals) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var failed []error
	for name, one := range j.open {
		failed = append(failed, one.close())
		delete(j.open, name)
	}
	return errors.Join(failed...)
}

// journalWriter cuts the output of a process into messages.
type journalWriter struct {
	journal    *journal
	identifier string
	pid        atomic.Int64
	rest       []byte
	also       func(line string) // told too; may be nil
}

// longestMessage is where a line without an end is cut, as journald does
// (LineMax=, journald.conf(5)).
const longestMessage = 48 << 10

func (w *journalWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) < longestMessage {
			return len(p), nil
		}
		if i < 0 {
			i = len(w.rest) - 1
		}
		w.add(string(bytes.TrimRight(w.rest[:i+1], "\n")))
		w.rest = w.rest[i+1:]
	}
}

// flush writes what came after the last end of line.
func (w *journalWriter) flush() {
	if len(w.rest) > 0 {
		w.add(string(w.rest))
		w.rest = nil
	}
}

func (w *journalWriter) add(line string) {
	w.journal.add(w.identifier, int(w.pid.Load()), line)
	if w.also != nil {
		w.also(line)
	}
}

package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalHandler sends lines to systemd's journal with their weight, which a
// line on standard error does not have there.
type journalHandler struct {
	slog.Handler // writes to line
	shared       *journalLine
}

type journalLine struct {
	mu   sync.Mutex
	line bytes.Buffer
	send func(message string, priority journal.Priority, fields map[string]string) error
}

func newJournalHandler(lines func(io.Writer) slog.Handler, send func(string, journal.Priority, map[string]string) error) slog.Handler {
	shared := &journalLine{send: send}
	return journalHandler{lines(&shared.line), shared}
}

// Handle implements slog.Handler.
func (h journalHandler) Handle(ctx context.Context, record slog.Record) error {
	h.shared.mu.Lock()
	defer h.shared.mu.Unlock()
	h.shared.line.Reset()
	if err := h.Handler.Handle(ctx, record); err != nil {
		return err
	}
	priority := journal.PriDebug
	switch {
	case record.Level >= slog.LevelError:
		priority = journal.PriErr
	case record.Level >= slog.LevelWarn:
		priority = journal.PriWarning
	case record.Level >= slog.LevelInfo:
		priority = journal.PriInfo
	}
	return h.shared.send(strings.TrimSuffix(h.shared.line.String(), "\n"), priority, map[string]string{"SYSLOG_IDENTIFIER": "musterd"})
}

// WithAttrs implements slog.Handler.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return journalHandler{h.Handler.WithAttrs(attrs), h.shared}
}

// WithGroup implements slog.Handler.
func (h journalHandler) WithGroup(name string) slog.Handler {
	return journalHandler{h.Handler.WithGroup(name), h.shared}
}

package mvcc

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleLogger hands Pebble's messages to slog.
type pebbleLogger struct {
	log     *slog.Logger
	onFatal func(error) // may be nil
}

var _ pebble.Logger = pebbleLogger{}

func newPebbleLogger(log *slog.Logger, onFatal func(error)) pebbleLogger {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return pebbleLogger{log: log, onFatal: onFatal}
}

func (l pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("store: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error("store: " + fmt.Sprintf(format, args...))
}

// errFatal is what Pebble cannot go on after, for example a failed sync of its
// manifest.
var errFatal = errors.New("the store cannot go on")

// Fatalf must not return, and nothing may be acknowledged after it. With
// Options.OnFatal the owner ends the process in good order while the caller
// stays here for good; without, a panic is the only exit that nobody can miss.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	err := fmt.Errorf("%w: %s", errFatal, fmt.Sprintf(format, args...))
	if l.onFatal == nil {
		panic(err)
	}
	l.onFatal(err)
	select {}
}

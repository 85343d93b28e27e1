package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"muster/provision/inventory"
)

// Exit codes. Scripts depend on them: do not renumber.
const (
	exitOK     = 0
	exitFailed = 1 // the operation was tried and failed
	exitUsage  = 2 // the command line or the inventory is wrong; nothing was tried
)

const (
	defaultInventory = "muster.yaml"
	standardInput    = "-"

	outputText = "text"
	outputJSON = "json"
	outputHTML = "html" // of status only
)

// app is what the subcommands share: the streams, the common flags and what
// follows from them.
type app struct {
	streams

	// files are the inventories, or directories of them.
	files []string
	// selected are the names of the clusters meant; empty for all.
	selected []string
	output   string
	json     bool
	logLevel string
	logFile  string
	noColor  bool
	// eventsFile is where events are written, "-" for standard output.
	eventsFile     string
	connectTimeout time.Duration
	// caIdentity is the file of the age identity that opens the CA's key.
	caIdentity string

	started bool // the command line was understood
	// screen is held while a question is asked, and for each piece of a live
	// display.
	screen  sync.Mutex
	log     *slog.Logger
	logSink io.Closer
	events  *events // nil when nobody wants them
}

// start checks the common flags and opens the log. It runs before every
// subcommand, after cobra has accepted the command line.
func (a *app) start(command string) error {
	switch {
	case a.json:
		a.output = outputJSON
	case a.output == outputHTML && command == "muster status":
	case a.output != outputText && a.output != outputJSON:
		return fmt.Errorf("--output is %q; write text or json", a.output)
	}
	if a.connectTimeout <= 0 {
		return fmt.Errorf("--connect-timeout is %v; write a duration such as 5s", a.connectTimeout)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return fmt.Errorf("--log-level is %q; write debug, info, warn or error", a.logLevel)
	}
	console := slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level})
	a.log = slog.New(console)
	if a.logFile != "" {
		f, err := os.OpenFile(a.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("open the log file: %w", err)
		}
		a.logSink = f
		file := slog.NewJSONHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})
		a.log = slog.New(slog.NewMultiHandler(console, file))
	}
	if err := a.openEvents(command); err != nil {
		return err
	}
	a.started = true
	return nil
}

func (a *app) close() {
	if a.logSink != nil {
		a.logSink.Close()
	}
}

// wantsJSON says that standard output must carry JSON and nothing else.
func (a *app) wantsJSON() bool { return a.output == outputJSON }

// terminal says that standard error is a terminal, where progress may move.
func (a *app) terminal() bool {
	f, ok := a.err.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colors says whether standard error may carry color. It follows the
// convention of no-color.org.
func (a *app) colors() bool {
	return a.colorsOn(a.err)
}

// usageError is a mistake in the command line or in a file it names.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
func (e *usageError) Hint() string  { return e.hint }

// hinter is an error that knows what the operator can do about it.
type hinter interface {
	error
	Hint() string
}

// answeredError is an error that follows a whole answer in JSON.
type answeredError struct{ error }

func (e answeredError) Unwrap() error { return e.error }

// answered says that standard output has the answer, which was not a good one.
func answered(err error) bool {
	for _, sentinel := range []error{errUnhealthy, errFindings, errCertificates, errExecFailed} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	var fleet *fleetError
	var other answeredError
	return errors.As(err, &fleet) || errors.As(err, &other)
}

// report prints err, if any, and returns the exit code it stands for.
func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	if a.started && a.wantsJSON() && !answered(err) {
		_ = json.NewEncoder(a.out).Encode(newErrorLine("", err))
	}
	var problems inventory.Problems
	if errors.As(err, &problems) {
		a.reportProblems(problems)
		return exitUsage
	}
	fmt.Fprintf(a.err, "error: %v\n", err)
	var usage *usageError
	wrongUsage := !a.started || errors.As(err, &usage)
	var h hinter
	switch {
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(a.err, "hint: it was interrupted; the same command continues where it ended")
	case errors.As(err, &h) && h.Hint() != "":
		fmt.Fprintf(a.err, "hint: %s\n", h.Hint())
	case wrongUsage:
		fmt.Fprintln(a.err, "hint: muster --help lists the commands and their flags")
	}
	if wrongUsage {
		return exitUsage
	}
	return exitFailed
}

// reportProblems prints one problem a line, each starting with the position,
// so that editors and terminals can jump to it.
func (a *app) reportProblems(problems inventory.Problems) {
	fmt.Fprintf(a.err, "error: the inventory cannot be used: %s\n", problems.Count())
	for _, p := range problems {
		fmt.Fprintln(a.err, p)
	}
	fmt.Fprintln(a.err, "hint: no host was contacted; correct the lines above and run the command again")
}

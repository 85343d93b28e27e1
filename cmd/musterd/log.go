package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"gopkg.in/natefinch/lumberjack.v2"
)

// logOptions say what is logged, how, and where to.
type logOptions struct {
	level  string
	format string
	// outputs are default, stdout, stderr, systemd/journal and paths of files.
	outputs  []string
	rotate   bool
	rotation string // JSON, of the one file among the outputs
}

const (
	defaultOutput = "default"
	journalOutput = "systemd/journal"
)

func defaultLog() logOptions {
	return logOptions{
		level: "info", format: "json", outputs: []string{defaultOutput},
		rotation: `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`,
	}
}

// levels are etcd's. What etcd logs before it panics or gives up is an error
// here, so nothing is heavier than those.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	"panic": slog.LevelError + 1, "fatal": slog.LevelError + 1,
}

// open returns the logger, and what closes its files.
func (o logOptions) open(stdout, stderr io.Writer) (*slog.Logger, func() error, error) {
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	if slices.Contains(o.outputs, journalOutput) {
		if !journal.Enabled() {
			return nil, nil, errors.New("--log-outputs=systemd/journal: there is no journal on this host; write stderr or the path of a file")
		}
		return slog.New(newJournalHandler(o.handler, journal.Send)), func() error { return nil }, nil
	}
	var writers []io.Writer
	var files []io.Closer
	closeAll := func() error {
		var errs []error
		for _, file := range files {
			errs = append(errs, file.Close())
		}
		return errors.Join(errs...)
	}
	for _, output := range o.outputs {
		switch output {
		case defaultOutput, "stderr":
			writers = append(writers, stderr)
		case "stdout":
			writers = append(writers, stdout)
		default:
			file, err := o.file(output)
			if err != nil {
				return nil, nil, errors.Join(fmt.Errorf("--log-outputs: %w", err), closeAll())
			}
			writers, files = append(writers, file), append(files, file)
		}
	}
	return slog.New(o.handler(io.MultiWriter(writers...))), closeAll, nil
}

// onStderr reports whether the log goes to standard error.
func (o logOptions) onStderr() bool {
	return slices.Contains(o.outputs, defaultOutput) || slices.Contains(o.outputs, "stderr")
}

// check refuses what etcd refuses (server/embed/config_logging.go).
func (o logOptions) check() error {
	var paths []string
	for _, output := range o.outputs {
		if !slices.Contains([]string{defaultOutput, "stderr", "stdout"}, output) {
			paths = append(paths, output)
		}
	}
	switch {
	case len(o.outputs) > 1 && slices.Contains(o.outputs, defaultOutput):
		return errors.New(`multi logoutput for "default" is not supported yet; write stderr for it`)
	case len(o.outputs) > 1 && slices.Contains(paths, journalOutput):
		return fmt.Errorf("--log-outputs=%s: systemd/journal does not go with another output; leave the others out", strings.Join(o.outputs, ","))
	case o.rotate && (len(paths) != 1 || paths[0] == journalOutput):
		return errors.New("--log-outputs requires a single file path when --log-rotate-config-json is defined")
	case o.rotate:
		return o.checkRotation()
	}
	return nil
}

func (o logOptions) checkRotation() error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch err := json.Unmarshal([]byte(o.rotation), &lumberjack.Logger{}); {
	case errors.As(err, &syntax):
		return fmt.Errorf("improperly formatted log rotation config: %w", err)
	case errors.As(err, &kind):
		return fmt.Errorf("invalid log rotation config: %w", err)
	case err != nil:
		return fmt.Errorf("fail to unmarshal log rotation config: %w", err)
	}
	return nil
}

func (o logOptions) file(path string) (io.WriteCloser, error) {
	if !o.rotate {
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600) //nolint:gosec // the operator chose it
	}
	rotated := &lumberjack.Logger{}
	if err := json.Unmarshal([]byte(o.rotation), rotated); err != nil {
		return nil, err
	}
	rotated.Filename = path
	return rotated, nil
}

// handler writes lines. In JSON the names and forms of etcd's common fields are
// kept: whoever collects the log finds ts, level and msg.
func (o logOptions) handler(w io.Writer) slog.Handler {
	settings := &slog.HandlerOptions{Level: levels[o.level]}
	if o.format == "console" {
		return slog.NewTextHandler(w, settings)
	}
	settings.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case a.Value.Kind() == slog.KindDuration:
			a.Value = slog.StringValue(a.Value.Duration().String())
		case len(groups) > 0:
		case a.Key == slog.TimeKey:
			return slog.String("ts", a.Value.Time().Format("2006-01-02T15:04:05.000000Z0700"))
		case a.Key == slog.LevelKey:
			a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
		}
		return a
	}
	return slog.NewJSONHandler(w, settings)
}

package main

import (
	"io"
	"log/slog"
)

// logOptions say what is logged, how, and where to.
type logOptions struct {
	level  string
	format string
}

func defaultLog() logOptions { return logOptions{level: "info", format: "json"} }

func (o logOptions) logger(w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	settings := &slog.HandlerOptions{Level: levels[o.level]}
	if o.format == "json" {
		return slog.New(slog.NewJSONHandler(w, settings))
	}
	return slog.New(slog.NewTextHandler(w, settings))
}

package replica

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hashicorpLogger hands what the HashiCorp libraries log to logger.
func hashicorpLogger(name string, logger *slog.Logger) hclog.Logger {
	intercept := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: name, Level: hclog.Debug, Output: io.Discard})
	intercept.RegisterSink(slogSink{logger})
	return intercept
}

// behindMessage is raft's warning when a follower hears of an entry before it
// has it, which pusher causes in ordinary operation.
const behindMessage = "failed to get previous log"

type slogSink struct{ logger *slog.Logger }

// Accept implements hclog.SinkAdapter. What the libraries call info is routine
// here, and their errors are conditions raft recovers from by itself.
func (s slogSink) Accept(name string, level hclog.Level, message string, args ...any) {
	to := slog.LevelDebug
	switch {
	case level >= hclog.Error:
		to = slog.LevelWarn
	case level >= hclog.Warn && message != behindMessage:
		to = slog.LevelInfo
	}
	s.logger.Log(context.Background(), to, message, append([]any{"from", name}, args...)...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		started bool
		err     error
		code    int
		text    string
	}{
		"nothing":      {true, nil, exitOK, ""},
		"failure":      {true, errors.New("reach controller-0: timeout"), exitFailed, "error: reach controller-0: timeout\n"},
		"with a hint":  {true, fmt.Errorf("apply: %w", hinting{"is sshd running?"}), exitFailed, "error: apply: failed\nhint: is sshd running?\n"},
		"empty hint":   {true, hinting{}, exitFailed, "error: failed\n"},
		"usage":        {true, &usageError{errors.New("no such file"), "name one"}, exitUsage, "error: no such file\nhint: name one\n"},
		"command line": {false, errors.New("unknown flag"), exitUsage, "error: unknown flag\nhint: muster --help lists the commands and their flags\n"},
		"interrupt": {true, fmt.Errorf("upload to controller-1: %w", context.Canceled), exitFailed,
			"error: upload to controller-1: context canceled\nhint: it was interrupted; the same command continues where it ended\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out writer
			a := &app{streams: streams{err: &out}, started: c.started}
			if code := a.report(c.err); code != c.code || string(out) != c.text {
				t.Errorf("code %d, want %d; printed\n%swant\n%s", code, c.code, out, c.text)
			}
		})
	}
}

type hinting struct{ hint string }

func (hinting) Error() string  { return "failed" }
func (h hinting) Hint() string { return h.hint }

// A question that nobody answers does not outlive the command.
func TestAnswerEndsWithTheContext(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := answer(ctx, func() (string, error) {
		<-never
		return "", nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	got, err := answer(t.Context(), func() (string, error) { return "y", nil })
	if got != "y" || err != nil {
		t.Errorf("answer %q, error %v", got, err)
	}
}

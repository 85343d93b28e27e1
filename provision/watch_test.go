package provision

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A host that goes away and comes back is seen to, over the same watch.
func TestWatchStatus(t *testing.T) {
	l := newLab(t, 1)
	l.opts.SSH.RetryFor = 100 * time.Millisecond
	l.mustApply()
	ctx, cancel := context.WithCancel(l.context())
	defer cancel()
	var seen []string
	see := func(what string) {
		if len(seen) == 0 || seen[len(seen)-1] != what {
			seen = append(seen, what)
		}
	}
	err := WatchStatus(ctx, l.cluster, l.opts, 20*time.Millisecond, func(s *Status) error {
		switch {
		case s.Healthy && len(seen) == 0:
			see("healthy")
			go l.hosts[0].Reboot()
		case s.Healthy && len(seen) > 1:
			see("healthy again")
			cancel()
		case strings.HasPrefix(s.Members[0].Problem, "host not reached: "):
			see("not reached")
		}
		return nil
	})
	if err != nil || len(seen) != 3 || seen[1] != "not reached" || seen[2] != "healthy again" {
		t.Errorf("seen %q, error %v", seen, err)
	}
	full := errors.New("the disk is full")
	if err := WatchStatus(l.context(), l.cluster, l.opts, time.Hour, func(*Status) error { return full }); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"muster/provision/inventory"
)

type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) Report(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%s %s %s", e.Kind, e.Step, e.Host))
}

func (l *log) has(line string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.lines, line)
}

func testRun(hosts, concurrency int) (*Run, *log) {
	l := &log{}
	r := &Run{Cluster: &inventory.Cluster{}, Operation: "test", Reporter: l, Concurrency: concurrency}
	for i := range hosts {
		r.Hosts = append(r.Hosts, &Host{Host: inventory.Host{Name: fmt.Sprintf("h%d", i)}, run: r})
	}
	return r, l
}

// Between two steps of their own, hosts do not wait for each other.
func TestHostsAreIndependent(t *testing.T) {
	r, _ := testRun(2, 2)
	second := make(chan struct{})
	err := r.Do(t.Context(),
		EachHost("one", func(ctx context.Context, h *Host) error {
			if h.Name == "h1" {
				return nil
			}
			select { // h0 stays here until h1 is a step further
			case <-second:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}),
		EachHost("two", func(_ context.Context, h *Host) error {
			if h.Name == "h1" {
				close(second)
			}
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
}

func TestTogetherWaitsForAll(t *testing.T) {
	r, l := testRun(5, 2)
	err := r.Do(t.Context(),
		EachHost("one", func(context.Context, *Host) error { return nil }),
		Together("all", func(context.Context, *Run) error {
			for _, h := range r.Hosts {
				if !l.has("done one " + h.Name) {
					t.Errorf("%s has not taken the first step", h.Name)
				}
			}
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
}

func TestFailureStopsTheRun(t *testing.T) {
	broken := errors.New("broken")
	r, l := testRun(3, 1)
	err := r.Do(t.Context(),
		EachHost("one", func(_ context.Context, h *Host) error {
			if h.Name == "h1" {
				return broken
			}
			return nil
		}),
		EachHost("two", func(context.Context, *Host) error { return nil }),
		Together("all", func(context.Context, *Run) error {
			t.Error("the run goes on after a failure")
			return nil
		}))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Host != "h1" || errs[0].Step != "one" || !errors.Is(err, broken) {
		t.Fatalf("error %#v", err)
	}
	if !l.has("failed one h1") || l.has("started two h2") {
		t.Errorf("events: %q", l.lines)
	}
}

func TestEveryFailureIsReported(t *testing.T) {
	r, _ := testRun(3, 3)
	var together sync.WaitGroup
	together.Add(3)
	err := r.Do(t.Context(), EachHost("one", func(_ context.Context, h *Host) error {
		together.Done()
		together.Wait()
		return fmt.Errorf("%s is broken", h.Name)
	}))
	const want = "3 hosts failed\n  one: h0 is broken\n  one: h1 is broken\n  one: h2 is broken"
	if err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestCancelledRunTakesNoStep(t *testing.T) {
	r, _ := testRun(1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.Do(ctx, EachHost("one", func(context.Context, *Host) error {
		t.Error("a step was taken")
		return nil
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestFailureTogetherNamesItsHost(t *testing.T) {
	r, _ := testRun(2, 2)
	err := r.Do(t.Context(), Together("all", func(context.Context, *Run) error {
		return fmt.Errorf("wrapped: %w", &hostError{"h1", errors.New("broken")})
	}))
	var errs Errors
	if !errors.As(err, &errs) || errs[0].Host != "h1" {
		t.Errorf("error %#v", err)
	}
}

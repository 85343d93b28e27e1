package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Step is one entry of an operation's list: either done by each host for
// itself, or once for the cluster.
type Step struct {
	Name    string
	host    func(context.Context, *Host) error
	cluster func(context.Context, *Run) error
}

// EachHost is a step that every host takes for itself. Hosts do not wait for
// each other between two such steps.
func EachHost(name string, do func(context.Context, *Host) error) Step {
	return Step{Name: name, host: do}
}

// Together is a step taken once, when every host has come this far.
func Together(name string, do func(context.Context, *Run) error) Step {
	return Step{Name: name, cluster: do}
}

// Error is the failure of one step, on one host or, with Host empty, on the
// cluster as a whole.
type Error struct {
	Step string
	Host string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Errors are the failures that ended a run, one per host at most.
type Errors []*Error

func (e Errors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	text := fmt.Sprintf("%d hosts failed", len(e))
	for _, one := range e {
		text += "\n  " + one.Error()
	}
	return text
}

// Unwrap lets errors.As and errors.Is look into every failure.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, one := range e {
		out[i] = one
	}
	return out
}

// Do takes the steps in order. When a step fails on a host, the other hosts
// finish the step they are in, and no further step begins. The error is of
// type Errors.
func (r *Run) Do(ctx context.Context, steps ...Step) error {
	err := r.beforeOperation(ctx)
	if err == nil {
		err = r.do(ctx, steps)
	}
	r.hooks.err = err
	return err
}

func (r *Run) do(ctx context.Context, steps []Step) error {
	for len(steps) > 0 {
		n := 0
		for n < len(steps) && steps[n].host != nil {
			n++
		}
		var err error
		if n > 0 {
			err = r.eachHost(ctx, steps[:n])
		} else {
			n = 1
			err = r.together(ctx, steps[0])
		}
		if err != nil {
			return err
		}
		steps = steps[n:]
	}
	return nil
}

func (r *Run) together(ctx context.Context, s Step) error {
	for _, h := range slices.Concat(r.Hosts, r.APIServers) {
		h.step = s.Name
	}
	r.report(Started, s.Name, "", "")
	err := s.cluster(ctx, r)
	if err == nil {
		r.report(Done, s.Name, "", "")
		return nil
	}
	var failed Errors
	if !errors.As(err, &failed) {
		failed = Errors{{Step: s.Name, Host: hostOf(err), Err: err}}
	}
	if errors.Is(err, ErrDeclined) { // as the operator wishes
		return failed
	}
	for _, e := range failed {
		r.report(Failed, s.Name, e.Host, e.Err.Error())
	}
	return failed
}

// ErrLocal is what errors.Is finds in a failure of the workstation, about which
// no host has anything to say.
var ErrLocal = errors.New("failed on the workstation")

// localError is such a failure. It reads like its cause.
type localError struct{ error }

func (e *localError) Unwrap() []error { return []error{e.error, ErrLocal} }

// hostError is an error inside a Together step that concerns one host.
type hostError struct {
	host string
	error
}

func (e *hostError) Unwrap() error { return e.error }

func hostOf(err error) string {
	var on *hostError
	if errors.As(err, &on) {
		return on.host
	}
	return ""
}

func (r *Run) eachHost(ctx context.Context, steps []Step) error {
	var stop atomic.Bool
	return r.forAll(func(h *Host) *Error {
		for _, s := range steps {
			if stop.Load() {
				return nil
			}
			if err := h.take(ctx, s); err != nil {
				stop.Store(true)
				return &Error{Step: s.Name, Host: h.Name, Err: err}
			}
		}
		return nil
	})
}

func (h *Host) take(ctx context.Context, s Step) error {
	h.step = s.Name
	h.run.report(Started, s.Name, h.Name, "")
	err := ctx.Err()
	if err == nil {
		err = s.host(ctx, h)
	}
	if err != nil {
		h.run.report(Failed, s.Name, h.Name, err.Error())
		return err
	}
	h.run.report(Done, s.Name, h.Name, "")
	return nil
}

// forAll calls do for every host, Concurrency at a time, and returns what
// failed as Errors in the order of the inventory.
func (r *Run) forAll(do func(*Host) *Error) error { return r.forEach(r.Hosts, do) }

// forEach is forAll for some hosts.
func (r *Run) forEach(hosts []*Host, do func(*Host) *Error) error {
	slots := make(chan struct{}, max(1, r.Concurrency))
	failed := make([]*Error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			failed[i] = do(h)
		})
	}
	wg.Wait()
	var errs Errors
	for _, e := range failed {
		if e != nil {
			errs = append(errs, e)
		}
	}
	if len(errs) == 0 {
		return nil // not a nil Errors in an interface
	}
	return errs
}

package step

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	before = "before-"
	after  = "after-"

	// afterLimit bounds each hook after an operation, which may have been
	// interrupted.
	afterLimit = 5 * time.Minute
	// hookOutput is what is told of a hook's output, in bytes.
	hookOutput = 16 << 10
	// hookKill is how long a hook has to end when the operation is interrupted.
	hookKill = 2 * time.Second
)

// hookState is what of a run its hooks have to know.
type hookState struct {
	begun bool  // the operation's own
	err   error // how it ended
}

// hostHooks are the hooks before the first change, and before the first
// upgrade, of one host.
type hostHooks struct {
	change, upgrade onceHook
}

// onceHook is a hook that is run once, whoever comes first.
type onceHook struct {
	once sync.Once
	run  bool
	err  error
}

func (o *onceHook) do(hook func() error) error {
	o.once.Do(func() { o.run, o.err = true, hook() })
	return o.err
}

// hook runs the inventory's hooks of a moment, in their order. Their output is
// told line by line.
func (r *Run) hook(ctx context.Context, moment string, h *Host, env ...string) error {
	host := ""
	if h != nil {
		host = h.Name
		env = append(env, "MUSTER_HOST="+h.Name, "MUSTER_ADDRESS="+h.Address)
	}
	for _, hook := range r.Cluster.Hooks {
		if hook.On != moment {
			continue
		}
		r.Log.Debug("run a hook", "on", moment, "host", host, "command", string(hook.Run))
		cmd := exec.CommandContext(ctx, "sh", "-c", string(hook.Run))
		cmd.Dir = r.Cluster.Dir()
		cmd.Env = append(os.Environ(), "MUSTER_HOOK="+moment, "MUSTER_OPERATION="+r.Operation, "MUSTER_CLUSTER="+r.Cluster.Name)
		cmd.Env = append(cmd.Env, env...)
		cmd.WaitDelay = hookKill
		output, err := cmd.CombinedOutput()
		for line := range bytes.Lines(output[:min(len(output), hookOutput)]) {
			if text := strings.TrimSpace(string(line)); text != "" {
				r.report(Note, "hook", host, moment+": "+text)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return &localError{fmt.Errorf("the hook %s %q: %w", moment, hook.Run, err)}
		}
	}
	return nil
}

// subject is the operation's name, of which some have several words.
func (r *Run) subject() string {
	name, _, _ := strings.Cut(r.Operation, " ")
	return name
}

// beforeOperation runs the operation's own hooks, the first time.
func (r *Run) beforeOperation(ctx context.Context) error {
	if r.hooks.begun {
		return nil
	}
	r.hooks.begun = true
	if err := r.hook(ctx, before+r.subject(), nil); err != nil {
		return Errors{{Step: "hook", Err: err}}
	}
	return nil
}

// beforeChange runs the hooks of a host that is about to be changed.
func (h *Host) beforeChange(ctx context.Context) error {
	if h.controller != nil {
		return h.controller.beforeChange(ctx)
	}
	return h.hooks.change.do(func() error { return h.run.hook(ctx, before+"host", h) })
}

// beforeUpgrade runs the hooks of a host whose programs are about to be
// replaced.
func (h *Host) beforeUpgrade(ctx context.Context) error {
	if err := h.beforeChange(ctx); err != nil {
		return err
	}
	return h.hooks.upgrade.do(func() error { return h.run.hook(ctx, before+"upgrade", h) })
}

// AfterHooks runs the hooks that come after: those of the hosts that were
// changed, and those of the operation if it has begun. What they were told
// before they are told again with the outcome. A failure is a warning: what it
// comes after has happened.
func (r *Run) AfterHooks() {
	if !r.hooks.begun || len(r.Cluster.Hooks) == 0 {
		return
	}
	env := []string{"MUSTER_RESULT=ok", fmt.Sprintf("MUSTER_CHANGES=%d", r.Changes())}
	if r.hooks.err != nil {
		env[0] = "MUSTER_RESULT=failed"
		env = append(env, "MUSTER_ERROR="+strings.ReplaceAll(r.hooks.err.Error(), "\n", " "))
	}
	run := func(moment string, h *Host) {
		ctx, cancel := context.WithTimeout(context.Background(), afterLimit)
		defer cancel()
		if err := r.hook(ctx, moment, h, env...); err != nil {
			host := ""
			if h != nil {
				host = h.Name
			}
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("the hook %s was ended after %v", moment, afterLimit)
			}
			r.report(Warning, "hook", host, err.Error())
		}
	}
	for _, h := range slices.Concat(r.Hosts, r.APIServers) {
		if h.hooks.upgrade.run {
			run(after+"upgrade", h)
		}
		if h.hooks.change.run {
			run(after+"host", h)
		}
	}
	run(after+r.subject(), nil)
}

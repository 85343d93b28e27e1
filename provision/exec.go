package provision

import (
	"context"
	"errors"
	"sync"

	"muster/provision/inventory"
	"muster/provision/remote"
	"muster/provision/step"
)

// ExecOptions say what is run.
type ExecOptions struct {
	// Command is a program and its arguments, or one text for the shell.
	Command []string
	// AsLogin runs it as the user who logs in, not as root.
	AsLogin bool
}

// ExecResult is how a command went on one host.
type ExecResult struct {
	Host string `json:"host"`
	// ExitStatus is -1 when the command was not run, or did not say.
	ExitStatus int    `json:"exitStatus"`
	Stdout     string `json:"stdout"` // its first remote.OutputLimit bytes
	Stderr     string `json:"stderr"` // the same
	// Lost is how many bytes of both came after that, and were not kept.
	Lost int64 `json:"lost,omitempty"`
	// Error says why there is no exit status.
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Exec runs a command on every host, and calls each, one call at a time, as
// soon as a host has ended.
func Exec(ctx context.Context, cluster *inventory.Cluster, o Options, exec ExecOptions, each func(ExecResult)) error {
	o = o.withDefaults()
	r, err := begin("exec", cluster, o)
	if err != nil {
		return err
	}
	defer finish(r)
	command := remote.Command{Label: "run the command", Script: `"$@"`, Args: exec.Command, AsLogin: exec.AsLogin}
	if len(exec.Command) == 1 {
		command.Script, command.Args = exec.Command[0], nil
	}
	var telling sync.Mutex
	slots := make(chan struct{}, o.Concurrency)
	var wg sync.WaitGroup
	for _, h := range r.Hosts {
		wg.Go(func() {
			slots <- struct{}{}
			result := execOn(ctx, h, command)
			<-slots
			telling.Lock()
			defer telling.Unlock()
			each(result)
		})
	}
	wg.Wait()
	return nil
}

func execOn(ctx context.Context, h *step.Host, command remote.Command) ExecResult {
	out := ExecResult{Host: h.Name, ExitStatus: -1}
	if err := step.Connect(ctx, h); err != nil {
		out.Error = err.Error()
		return out
	}
	if p := h.Remote.Privilege(); p.Problem != "" && !command.AsLogin {
		out.Error = p.User + " cannot become root without a password (" + p.Problem + ")"
		return out
	}
	result, err := h.Remote.Run(ctx, command)
	out.Seconds = result.Elapsed.Seconds()
	var failed *remote.CommandError
	switch {
	case err == nil:
		out.ExitStatus, out.Stdout, out.Stderr, out.Lost = 0, result.Stdout, result.Stderr, result.Lost
	case errors.As(err, &failed):
		out.Stdout, out.Stderr, out.Lost = failed.Stdout, failed.Stderr, failed.Lost
		if out.ExitStatus = failed.ExitStatus; failed.Err != nil {
			out.ExitStatus, out.Error = -1, failed.Err.Error()
		}
	default:
		out.Error = err.Error()
	}
	return out
}

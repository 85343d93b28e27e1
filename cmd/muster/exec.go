package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/remote"
)

func newExecCommand(a *app) *cobra.Command {
	var flags operationFlags
	var exec provision.ExecOptions
	cmd := &cobra.Command{
		Use:   "exec [HOST...] -- COMMAND",
		Short: "run a command on every host",
		Long: `exec runs a command on every host of the inventory, or on the named ones, as
root, and prints what it says behind the name of the host, host by host as they
end. The exit code is 1 when it fails anywhere.

Several words are a program and its arguments; one word is for the shell:

  muster exec -- systemctl is-active musterd
  muster exec controller-0 -- 'df -h /var/lib | tail -n 1'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			if dash < 0 || dash == len(args) {
				return &usageError{errors.New("there is no command"), "write it after --: muster exec [HOST...] -- COMMAND"}
			}
			exec.Command = args[dash:]
			return a.exec(cmd.Context(), flags, exec, args[:dash])
		},
	}
	f := cmd.Flags()
	f.BoolVar(&exec.AsLogin, "as-login", false, "run it as the user who logs in, not as root")
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	return cmd
}

// errExecFailed makes exec exit with 1. Everything about it was printed.
var errExecFailed = errors.New("the command failed")

func (a *app) exec(ctx context.Context, flags operationFlags, exec provision.ExecOptions, hosts []string) error {
	if err := flags.check(); err != nil {
		return err
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	if cluster, err = provision.Select(cluster, hosts); err != nil {
		return &usageError{err, "muster validate lists the hosts"}
	}
	names := hostNames(cluster)
	width := len(slices.MaxFunc(names, func(a, b string) int { return len(a) - len(b) }))
	results := make([]provision.ExecResult, len(names))
	err = provision.Exec(ctx, cluster, a.options(ctx, flags, &plainReporter{out: a.err}), exec, func(r provision.ExecResult) {
		results[slices.Index(names, r.Host)] = r
		if !a.wantsJSON() {
			a.printExec(r, width)
		}
	})
	if err != nil {
		return err
	}
	if a.wantsJSON() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(results); err != nil {
			return err
		}
	}
	var failed []string
	for _, r := range results {
		if r.ExitStatus != 0 {
			failed = append(failed, r.Host)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w on %s", errExecFailed, strings.Join(failed, ", "))
	}
	return nil
}

func (a *app) printExec(r provision.ExecResult, width int) {
	prefixed := func(w io.Writer, text string) {
		for line := range strings.Lines(text) {
			fmt.Fprintf(w, "%-*s  %s\n", width, r.Host, strings.TrimRight(line, "\r\n"))
		}
	}
	prefixed(a.out, r.Stdout)
	prefixed(a.err, r.Stderr)
	if r.Lost > 0 {
		prefixed(a.err, fmt.Sprintf("warning: %s more of output were not kept, only the first %s; write it to a file on the host",
			humanize.IBytes(uint64(r.Lost)), humanize.IBytes(remote.OutputLimit))) //nolint:gosec // not negative
	}
	switch {
	case r.Error != "":
		prefixed(a.err, "error: "+r.Error)
	case r.ExitStatus != 0:
		prefixed(a.err, fmt.Sprintf("exit status %d", r.ExitStatus))
	}
}

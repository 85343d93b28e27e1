package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/journal"
)

func newLogsCommand(a *app) *cobra.Command {
	var since string
	logs := provision.LogOptions{}
	cmd := &cobra.Command{
		Use:   "logs [HOST...]",
		Short: "what the members have logged, of all hosts in the order of time",
		Long: `logs reads the journal of the server's unit on every host, or on the named ones,
and prints the entries in the order of time, each behind the name of its host.
The order is that of the hosts' own clocks.

  muster logs --since 1h
  muster logs controller-0 -n 200
  muster logs --follow`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("lines") && since != "" {
				logs.Lines = -1
			}
			return a.logs(cmd.Context(), logs, since, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", `begin so long ago, such as 90s, 1h or 2d, or at a time, such as "2026-01-31 15:04"`)
	f.BoolVarP(&logs.Follow, "follow", "F", false, "go on with what comes, until interrupted")
	f.IntVarP(&logs.Lines, "lines", "n", 50, "how many entries of each host at most; -1 for all, which is the default with --since")
	return cmd
}

func (a *app) logs(ctx context.Context, logs provision.LogOptions, since string, hosts []string) error {
	var err error
	if logs.Since, err = parseSince(since, time.Now()); err != nil {
		return &usageError{err, "write a duration such as 1h or 2d, or a time such as \"2026-01-31 15:04\""}
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	if cluster, err = provision.Select(cluster, hosts); err != nil {
		return &usageError{err, "muster validate lists the hosts"}
	}
	width := 0
	for _, name := range hostNames(cluster) {
		width = max(width, len(name))
	}
	enc := json.NewEncoder(a.out)
	err = provision.Logs(ctx, cluster, a.options(ctx, operationFlags{}, &plainReporter{out: a.err}), logs, func(e journal.Entry) error {
		if a.wantsJSON() {
			return enc.Encode(e)
		}
		return printEntry(a.out, e, width)
	})
	if logs.Follow && errors.Is(ctx.Err(), context.Canceled) {
		return nil // that is how it ends
	}
	return err
}

func printEntry(w io.Writer, e journal.Entry, width int) error {
	_, err := fmt.Fprintf(w, "%-*s  %s  %s\n", width, e.Host, e.Time.Format("2006-01-02 15:04:05.000"), e.Message)
	return err
}

// parseSince understands how long ago, or when.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := model.ParseDuration(text); err == nil {
		return now.Add(-time.Duration(d)), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since is %q", text)
}

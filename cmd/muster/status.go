package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"muster/provision"
)

// errUnhealthy makes status exit with 1. Everything about it was printed.
var errUnhealthy = errors.New("the cluster is not healthy")

func newStatusCommand(a *app) *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "ask every member how it is",
		Long: `status asks every member of the inventory, through its host, and prints a line
for each one. It changes nothing. A host that is down is reported like any other
problem. The exit code is 1 unless every member is healthy.

With --watch it asks again and again until it is interrupted. With -o html it
writes one page for a browser, with the certificates and the backups beside the
members, that needs no other file and can be sent to somebody. Both are for one
cluster; without them an inventory may have several.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watchStatus(cmd.Context(), interval)
			}
			return a.status(cmd.Context())
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "ask again and again")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "with --watch, the time between two times")
	return cmd
}

func (a *app) status(ctx context.Context) error {
	clusters, err := a.loadInventories()
	switch {
	case err != nil:
		return err
	case len(clusters) > 1:
		return a.statusFleet(ctx, clusters)
	}
	cluster := clusters[0]
	status, err := provision.GetStatus(ctx, cluster, a.options(ctx, operationFlags{}, nil))
	if err != nil {
		return err
	}
	switch a.output {
	case outputHTML:
		err = a.writePage(ctx, cluster, status)
	case outputJSON:
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(status)
	default:
		a.printStatus(*status)
	}
	if err != nil {
		return err
	}
	if !status.Healthy {
		return errUnhealthy
	}
	return nil
}

func (a *app) printStatus(s provision.Status) {
	fmt.Fprintf(a.out, "cluster %s (%s)\n\n", s.Cluster, orDash(s.ClusterID))
	a.printMembers(s)
}

// clearScreen moves to the upper left corner and clears what is below.
const clearScreen = "\x1b[H\x1b[J"

// watchStatus shows the status until it is interrupted: on a terminal always in
// the same place, elsewhere one below the other, as JSON one a line.
func (a *app) watchStatus(ctx context.Context, interval time.Duration) error {
	switch {
	case a.output == outputHTML:
		return &usageError{errors.New("a page does not change: -o html and --watch exclude each other"), "leave one of them out"}
	case interval < minInterval:
		return &usageError{fmt.Errorf("--interval is %v", interval), fmt.Sprintf("write %v or more", minInterval)}
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	file, ok := a.out.(*os.File)
	inPlace := ok && term.IsTerminal(int(file.Fd())) //nolint:gosec // a descriptor fits an int
	return provision.WatchStatus(ctx, cluster, a.options(ctx, operationFlags{}, nil), interval, func(s *provision.Status) error {
		now := time.Now()
		if a.wantsJSON() {
			return json.NewEncoder(a.out).Encode(struct {
				Time time.Time `json:"time"`
				provision.Status
			}{now, *s})
		}
		if inPlace {
			fmt.Fprint(a.out, clearScreen)
		}
		_, err := fmt.Fprintf(a.out, "cluster %s (%s) at %s\n\n", s.Cluster, orDash(s.ClusterID), now.Format(time.TimeOnly))
		a.printMembers(*s)
		fmt.Fprintln(a.out)
		return err
	})
}

// minInterval keeps a watch from being a load.
const minInterval = 100 * time.Millisecond

// printMembers prints one line for each member, and the problems below.
func (a *app) printMembers(s provision.Status) {
	t := table.NewWriter()
	var columns []table.ColumnConfig
	t.SetStyle(table.Style{Box: table.BoxStyle{PaddingRight: "  "}, Format: table.FormatOptions{Header: 0}})
	for _, name := range []string{"DB", "TERM", "INDEX"} { // also when one has no number
		columns = append(columns, table.ColumnConfig{Name: name, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	t.AppendHeader(table.Row{"NAME", "ID", "ENDPOINT", "VERSION", "ROLE", "DB", "TERM", "INDEX", "HEALTH", "CERTIFICATE"})
	for _, m := range s.Members {
		t.AppendRow(memberRow(m))
	}
	for _, line := range strings.Split(t.Render(), "\n") {
		fmt.Fprintln(a.out, strings.TrimRight(line, " "))
	}
	for _, m := range s.Members {
		if m.Problem != "" {
			fmt.Fprintf(a.out, "%s: %s\n", m.Name, m.Problem)
		}
	}
	if s.Problem != "" {
		fmt.Fprintln(a.out, s.Problem)
	}
}

func memberRow(m provision.MemberStatus) table.Row {
	health := "ok"
	if !m.Healthy {
		health = "failing"
	}
	if m.ID == "" {
		return table.Row{m.Name, "-", m.Endpoint, "-", "-", "-", "-", "-", health, "-"}
	}
	role := "follower"
	switch {
	case m.Leader:
		role = "leader"
	case m.Learner:
		role = "learner"
	}
	return table.Row{m.Name, m.ID, m.Endpoint, m.Version, role, humanize.IBytes(uint64(max(0, m.DBSize))), //nolint:gosec // not negative
		m.RaftTerm, m.RaftIndex, health, expires(m.CertificateExpires, time.Now())}
}

// expires is the day a certificate ends and how far away that is.
func expires(end, now time.Time) string {
	if end.IsZero() {
		return "-"
	}
	days := int(end.Sub(now).Round(24*time.Hour).Hours() / 24)
	if days < 0 {
		return "expired " + end.Format(time.DateOnly)
	}
	return fmt.Sprintf("%s (%dd)", end.Format(time.DateOnly), days)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"muster/provision"
)

// errUnhealthy makes status exit with 1. Everything about it was printed.
var errUnhealthy = errors.New("the cluster is not healthy")

func newStatusCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "ask every member how it is",
		Long: `status asks every member of the inventory, through its host, and prints a line
for each one. It changes nothing. A host that is down is reported like any other
problem. The exit code is 1 unless every member is healthy.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) },
	}
	return cmd
}

func (a *app) status(ctx context.Context) error {
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	status, err := provision.GetStatus(ctx, cluster, a.options(ctx, operationFlags{}, nil))
	if err != nil {
		return err
	}
	if a.wantsJSON() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(status); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "cluster %s (%s)\n\n", status.Cluster, orDash(status.ClusterID))
		a.printMembers(*status)
	}
	if !status.Healthy {
		return errUnhealthy
	}
	return nil
}

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

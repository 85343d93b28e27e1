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

// errFindings makes doctor exit with 1. Everything about it was printed.
var errFindings = errors.New("not everything is as it should be")

func newDoctorCommand(a *app) *cobra.Command {
	var flags operationFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "look for what is wrong with the hosts, their network and the cluster",
		Long: `doctor looks at every host of the inventory, before anything is installed or
after, and has the hosts measure each other: whether the ports of every member
can be reached from every other host and how fast, and how long the disk takes to
flush a write. It finds clocks that differ, disks that fill up, certificates that
expire or are another CA's, members of other clusters, installations that
stopped half-way, and timeouts that do not suit the network.

It changes nothing. To measure, hosts without musterctl are given one in a
temporary directory, which is removed again. The exit code is 1 when anything
was found.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), flags) },
	}
	cmd.Flags().StringVar(&flags.binaryDir, "binary-dir", "", "directory of musterctl-linux-ARCH to measure with")
	return cmd
}

func (a *app) doctor(ctx context.Context, flags operationFlags) error {
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	checkup, err := provision.Doctor(ctx, cluster, a.options(ctx, flags, &plainReporter{out: a.err}))
	if err != nil {
		return err
	}
	if a.wantsJSON() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(checkup); err != nil {
			return err
		}
	} else {
		a.printCheckup(checkup)
	}
	if n := len(checkup.Findings); n > 0 {
		return fmt.Errorf("%w: %s", errFindings, count(n, "finding"))
	}
	return nil
}

// findingWidth is where the lines of a finding end, in characters.
const findingWidth = 56

func (a *app) printCheckup(c *provision.Checkup) {
	hosts := newTable("HOST", "MACHINE", "SYSTEMD", "CLOCK", "FREE", "FLUSH", "FLUSH P99")
	for _, h := range c.Hosts {
		if !h.Reached {
			hosts.AppendRow(table.Row{h.Name, "-", "-", "-", "-", "-", "-"})
			continue
		}
		hosts.AppendRow(table.Row{h.Name, h.Machine, h.Systemd, h.ClockOffset.Round(time.Millisecond), humanize.IBytes(uint64(max(0, h.Free))), short(h.Sync.Median), short(h.Sync.P99)}) //nolint:gosec // not negative
	}
	a.printTable(hosts)
	var slowest provision.PairCheck
	reached := 0
	for _, p := range c.Pairs {
		if p.Trip.Error == "" && p.From != p.To {
			reached++
			if p.Trip.Median >= slowest.Trip.Median {
				slowest = p
			}
		}
	}
	if reached > 0 {
		fmt.Fprintf(a.out, "\n%d of %d ports of other hosts reached; slowest round trip %s, %s -> %s\n", reached, len(c.Pairs), short(slowest.Trip.Median), slowest.From, slowest.To)
	}
	t := c.Timeouts
	fmt.Fprintf(a.out, "\ntimeouts: heartbeat %d ms, election %d ms; proposed %d and %d\n\n", t.Heartbeat, t.Election, t.ProposedHeartbeat, t.ProposedElection)
	if len(c.Findings) == 0 {
		fmt.Fprintln(a.out, "nothing found")
		return
	}
	findings := newTable("WHERE", "WHAT", "REMEDY")
	findings.SetColumnConfigs([]table.ColumnConfig{
		{Name: "WHAT", WidthMax: findingWidth, WidthMaxEnforcer: text.WrapSoft},
		{Name: "REMEDY", WidthMax: findingWidth, WidthMaxEnforcer: text.WrapSoft},
	})
	for _, f := range c.Findings {
		findings.AppendRow(table.Row{f.Where, f.What, orDash(f.Remedy)})
	}
	a.printTable(findings)
}

// short is a duration in the unit a person would choose.
func short(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func newTable(header ...any) table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.Style{Box: table.BoxStyle{PaddingRight: "  "}, Format: table.FormatOptions{Header: 0}})
	t.AppendHeader(header)
	return t
}

func (a *app) printTable(t table.Writer) {
	for _, line := range strings.Split(t.Render(), "\n") {
		fmt.Fprintln(a.out, strings.TrimRight(line, " "))
	}
}

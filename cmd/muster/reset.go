package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/provision"
)

func newResetCommand(a *app) *cobra.Command {
	var flags operationFlags
	var data bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "remove what apply has installed; the data stays unless --data is given",
		Long: `reset stops the members and removes the server, its unit and its certificates
from every host of the inventory. It lists what it will remove and asks first.

The members' data stays where it is, and apply brings the cluster back from it.
With --data it is deleted too, and nothing brings it back. The CA and the
certificates on this workstation stay in any case.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.reset(cmd.Context(), flags, data) },
	}
	f := cmd.Flags()
	f.BoolVar(&data, "data", false, "delete the members' data too")
	f.BoolVarP(&flags.yes, "yes", "y", false, "do not ask")
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	return cmd
}

func (a *app) reset(ctx context.Context, flags operationFlags, data bool) error {
	if err := flags.check(); err != nil {
		return err
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	// Lines rather than a live display: the question needs a quiet terminal.
	var r reporter = &plainReporter{out: a.err}
	if a.wantsJSON() {
		r = a.newReporter(nil)
	}
	hosts := hostNames(cluster)
	changes, err := provision.Reset(ctx, cluster, a.options(ctx, flags, r), provision.ResetOptions{
		Data: data,
		Confirm: func(removal map[string][]string) (bool, error) {
			return a.confirmRemoval(ctx, hosts, removal, flags.yes)
		},
	})
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		return json.NewEncoder(a.out).Encode(map[string]any{"time": time.Now(), "kind": "result", "changes": changes})
	}
	if changes == 0 {
		fmt.Fprintf(a.out, "cluster %s: there is nothing to remove\n", cluster.Name)
		return nil
	}
	kept := "its data stays on the hosts and its certificates stay in %s, muster apply brings it back"
	if data {
		kept = "its data is deleted, its certificates stay in %s"
	}
	fmt.Fprintf(a.out, "cluster %s is removed from %s; "+kept+"\n", cluster.Name, count(len(hosts), "host"), cluster.PKI.Dir)
	return nil
}

// errNoAnswer is returned when the question of reset reaches nobody.
var errNoAnswer = &usageError{err: errors.New("reset asks before it removes anything, and nobody can answer"), hint: "answer on a terminal, or say --yes"}

func (a *app) confirmRemoval(ctx context.Context, hosts []string, removal map[string][]string, yes bool) (bool, error) {
	if yes {
		return true, nil
	}
	if !a.canPrompt() {
		return false, errNoAnswer
	}
	fmt.Fprintln(a.err, "this will be removed:")
	fmt.Fprint(a.err, removalText(hosts, removal))
	return a.askYes(ctx, "go on? [y/N] ")
}

// removalText lists what is removed from which hosts, in the order of hosts.
// Hosts that lose the same share one list.
func removalText(hosts []string, removal map[string][]string) string {
	var lists []string
	sharers := map[string][]string{}
	for _, h := range hosts {
		if len(removal[h]) == 0 {
			continue
		}
		list := "    " + strings.Join(removal[h], "\n    ") + "\n"
		if sharers[list] == nil {
			lists = append(lists, list)
		}
		sharers[list] = append(sharers[list], h)
	}
	var b strings.Builder
	for _, list := range lists {
		fmt.Fprintf(&b, "  %s:\n%s", strings.Join(sharers[list], ", "), list)
	}
	return b.String()
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/plan"
)

// exitDrift is plan's exit code when there is something to do. Its every other
// failure is exitFailed, so that a script can tell.
const exitDrift = 2

// errDrift makes plan exit with exitDrift. Everything about it was printed.
var errDrift = errors.New("there are changes to make")

const planName = "plan"

func newPlanCommand(a *app) *cobra.Command {
	var flags operationFlags
	cmd := &cobra.Command{
		Use:   planName,
		Short: "say what apply would do, and touch nothing",
		Long: `plan compares every host of the inventory with what it should have: accounts,
directories, programs, certificates, files, the unit and its flags, and the
cluster's members. It only reads. No host gets a file, not even for a moment,
nothing is locked, and no certificate is made.

Of several clusters, every plan is made, and one that cannot be made counts most.

exit codes: 0 nothing to do, 2 changes to make, 1 the plan could not be made`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.plan(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.binaryDir, "binary-dir", "", "directory of musterd-linux-ARCH and musterctl-linux-ARCH to compare with")
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to look at at once")
	return cmd
}

func (a *app) plan(ctx context.Context, flags operationFlags) error {
	if err := flags.check(); err != nil {
		return err
	}
	clusters, err := a.loadInventories()
	switch {
	case err != nil:
		return err
	case len(clusters) > 1:
		return a.planFleet(ctx, flags, clusters)
	}
	cluster := clusters[0]
	p, err := provision.Plan(ctx, cluster, a.options(ctx, flags, &quietReporter{plainReporter{out: a.err}}))
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(planJSON{p, p.Fingerprint()})
	} else if err = p.WriteText(a.out, a.colorsOn(a.out)); err == nil {
		_, err = fmt.Fprintf(a.out, "cluster %s: %s\n", p.Cluster, p.Summary())
		if !p.Empty() {
			_, err = fmt.Fprintf(a.out, "to do exactly this: muster apply %s --plan %s\n", inventoryFlags(cluster, len(a.selected) > 0), p.Fingerprint())
		}
	}
	if err == nil && !p.Empty() {
		return errDrift
	}
	return err
}

// inventoryFlags name a cluster on the command line, which is one of several or
// the only one.
func inventoryFlags(c *inventory.Cluster, several bool) string {
	file := c.File()
	if file == stdinName {
		file = standardInput
	}
	if several {
		return "-f " + file + " --cluster " + c.Name
	}
	return "-f " + file
}

// planJSON is a plan in JSON.
type planJSON struct {
	*plan.Plan
	Fingerprint string `json:"fingerprint"`
}

// colorsOn says whether a stream may carry color.
func (a *app) colorsOn(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && !a.noColor && os.Getenv("NO_COLOR") == ""
}

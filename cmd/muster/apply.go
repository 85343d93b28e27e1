package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/plan"
)

func newApplyCommand(a *app) *cobra.Command {
	var flags operationFlags
	cmd := &cobra.Command{
		Use:     "apply",
		Aliases: []string{"up"},
		Short:   "make the hosts what the inventory says, and verify the cluster",
		Long: `apply installs the server and its certificates on every host of the inventory,
starts the members together, and verifies the cluster: every member answers, all
agree on the members and one leader, and a write through one is read from all.

It shows its plan and asks, then does exactly that; when the hosts have changed
meanwhile it says so and stops.

It can be run again at any time. It changes what differs and nothing else, and
goes on where a run that failed or was killed has stopped. Hosts that are new in
the inventory join as learners and get their vote when they have caught up;
members that are not in it any more are removed. Members are restarted one at a
time while the others hold the quorum, the leader last; the first one gets back
what it had if it does not come up with what is new. Data is never deleted.

An inventory may have several clusters, one in each YAML document, and --file
may be a directory or be repeated. The clusters are worked on side by side; one
that fails does not stop the others.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.applyAll(cmd.Context(), flags) },
	}
	flags.forApply(cmd)
	return cmd
}

// forApply defines the flags of apply and of what is like it.
func (f *operationFlags) forApply(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringVar(&f.binaryDir, "binary-dir", "", "directory of musterd-linux-ARCH and musterctl-linux-ARCH to install")
	set.IntVar(&f.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	f.timeout.addTo(set)
	set.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	set.StringVar(&f.approved, "plan", "", "do the plan with this fingerprint, as muster plan prints it, and nothing else; does not ask")
}

// applyAll applies the inventory of every cluster.
func (a *app) applyAll(ctx context.Context, flags operationFlags) error {
	if err := flags.check(); err != nil {
		return err
	}
	clusters, err := a.loadInventories()
	switch {
	case err != nil:
		return err
	case len(clusters) > 1:
		return a.applyFleet(ctx, flags, clusters)
	}
	return a.apply(ctx, flags, clusters[0], provision.Apply)
}

// apply runs an operation of package provision that applies an inventory.
func (a *app) apply(ctx context.Context, flags operationFlags, cluster *inventory.Cluster, do func(context.Context, *inventory.Cluster, provision.Options) (*provision.Report, error)) error {
	r, resume := a.newLateReporter(hostNames(cluster))
	o := a.options(ctx, flags, r)
	o.Approved, o.Show = flags.approved, func(p *plan.Plan) {
		a.showPlan(p, flags.asks())
		resume()
	}
	if flags.asks() {
		o.Confirm = a.confirmPlan
	}
	report, err := do(ctx, cluster, o)
	r.stop(err == nil)
	if errors.Is(err, provision.ErrDeclined) {
		return errDeclined
	}
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		return json.NewEncoder(a.out).Encode(applyResult{
			Time: time.Now(), Kind: "result", Changes: report.Changes, Seconds: report.Elapsed.Seconds(), Status: report.Status,
		})
	}
	fmt.Fprintf(a.out, "cluster %s is verified: %s in %v\n\n", cluster.Name, count(report.Changes, "change"), report.Elapsed.Round(10*time.Millisecond))
	a.printMembers(report.Status)
	fmt.Fprintf(a.out, "\nto talk to it from here:\n  %s\nor on a controller, as root:\n  %s\n", fromHere(cluster), onController(cluster))
	return nil
}

// errDeclined is the answer no.
var errDeclined = errors.New("nothing was changed")

// errNoConsent is returned when the question of apply reaches nobody.
var errNoConsent = &usageError{err: errors.New("muster asks before it changes anything, and nobody can answer"), hint: "answer on a terminal, or say --yes; muster plan says what there is to do"}

// showPlan shows what will be done, unless that was shown with the question.
func (a *app) showPlan(p *plan.Plan, asked bool) {
	switch {
	case asked || p.Empty():
	case a.wantsJSON():
		_ = json.NewEncoder(a.out).Encode(planEvent{Time: time.Now(), Kind: "plan", Plan: p, Fingerprint: p.Fingerprint()})
	case !a.terminal(): // there, what is done is told line by line
		_ = p.WriteText(a.err, false)
	}
}

// planEvent is the line of apply's JSON output that holds its plan.
type planEvent struct {
	Time        time.Time  `json:"time"`
	Kind        string     `json:"kind"`
	Plan        *plan.Plan `json:"plan"`
	Fingerprint string     `json:"fingerprint"`
}

// confirmPlan shows the plan and asks whether to go on.
func (a *app) confirmPlan(ctx context.Context, p *plan.Plan) (bool, error) {
	if !a.canPrompt() {
		return false, errNoConsent
	}
	if err := p.WriteText(a.err, a.colors()); err != nil {
		return false, err
	}
	return a.askYes(ctx, fmt.Sprintf("cluster %s: %s. Go on? [y/N] ", p.Cluster, p.Summary()))
}

// applyResult is the last line of apply's JSON output.
type applyResult struct {
	Time    time.Time        `json:"time"`
	Kind    string           `json:"kind"`
	Changes int              `json:"changes"`
	Seconds float64          `json:"seconds"`
	Status  provision.Status `json:"status"`
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fromHere is a command that lists the members from the workstation.
func fromHere(cluster *inventory.Cluster) string {
	urls := make([]string, len(cluster.Hosts))
	for i, h := range cluster.Hosts {
		urls[i] = h.ClientURL()
	}
	return etcdctl("musterctl", strings.Join(urls, ","), cluster.PKI.Dir)
}

// onController is the same on a host, with the files installed there.
func onController(cluster *inventory.Cluster) string {
	return etcdctl("etcdctl", cluster.Hosts[0].ClientURL(), desired.PKIDir(cluster))
}

func etcdctl(program, endpoints, dir string) string {
	const client = "healthcheck-client"
	return fmt.Sprintf("%s --endpoints %s --cacert %s --cert %s --key %s member list -w table", program, endpoints,
		filepath.Join(dir, "ca.crt"), filepath.Join(dir, client+".crt"), filepath.Join(dir, client+".key"))
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/inventory"
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

It can be run again at any time. It changes what differs and nothing else, goes
on where a run that failed or was killed has stopped, restarts members one at a
time while the others hold the quorum, and never deletes data.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.apply(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.binaryDir, "binary-dir", "", "directory of musterd-linux-ARCH and musterctl-linux-ARCH to install")
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	f.DurationVar(&flags.timeout, "timeout", provision.DefaultReadyTimeout, "how long to wait for members to be ready")
	f.BoolVarP(&flags.yes, "yes", "y", false, "ask nothing; apply has no questions, scripts may say so")
	return cmd
}

func (a *app) apply(ctx context.Context, flags operationFlags) error {
	if err := flags.check(); err != nil {
		return err
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	r := a.newReporter(hostNames(cluster))
	report, err := provision.Apply(ctx, cluster, a.options(ctx, flags, r))
	r.stop(err == nil)
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
	return etcdctl("etcdctl", cluster.Hosts[0].ClientURL(), "/etc/muster/pki")
}

func etcdctl(program, endpoints, dir string) string {
	const client = "healthcheck-client"
	return fmt.Sprintf("%s --endpoints %s --cacert %s --cert %s --key %s member list -w table", program, endpoints,
		filepath.Join(dir, "ca.crt"), filepath.Join(dir, client+".crt"), filepath.Join(dir, client+".key"))
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"muster/provision/practice"
)

func newPracticeCommand(a *app) *cobra.Command {
	var opts practice.ClusterOptions
	cmd := &cobra.Command{
		Use:   "practice --dir DIR",
		Short: "run practice hosts until interrupted",
		Long: `practice starts hosts to install on that need no machine: SSH servers in this
process, on loopback addresses, each with its own files and units below DIR. It
prints the path of an inventory that names them, for use in another terminal:

  muster apply --file DIR/inventory.yaml

Hosts that are started again on the same DIR come back with what is installed
on them.`,
		Hidden: true,
		Args:   noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Log = a.log
			return a.practice(cmd.Context(), opts)
		},
	}
	cmd.Flags().StringVar(&opts.Dir, "dir", "", "directory that holds the hosts")
	cmd.Flags().IntVar(&opts.Hosts, "hosts", 0, "how many to start; as many as DIR holds when left out, or 3")
	cmd.Flags().StringVar(&opts.User, "user", "root", "user that logs in; another than root uses sudo")
	cmd.Flags().BoolVar(&opts.Stacked, "stacked", false, "give the hosts a kubelet, for topology: stacked")
	return cmd
}

func (a *app) practice(ctx context.Context, opts practice.ClusterOptions) error {
	if opts.Dir == "" {
		return &usageError{err: errors.New("--dir is missing"), hint: "name a directory for the hosts; it is made when it does not exist"}
	}
	hosts, err := practice.StartCluster(opts)
	if err != nil {
		return fmt.Errorf("start the practice hosts: %w", err)
	}
	if _, err := fmt.Fprintln(a.out, hosts.Inventory); err != nil {
		return errors.Join(err, hosts.Close())
	}
	<-ctx.Done()
	return hosts.Close()
}

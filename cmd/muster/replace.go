package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/inventory"
)

func newReplaceCommand(a *app) *cobra.Command {
	var flags operationFlags
	cmd := &cobra.Command{
		Use:   "replace HOST",
		Short: "give a host whose member is dead a new member",
		Long: `replace is apply for a host whose member is dead: its machine was replaced, at
the same address or at a new one that the inventory has, or its data is lost. The
dead member is removed from the cluster, and the host joins as a new one: it is
installed, catches up as a learner and gets its vote. What the host still has of
the old data is moved aside, not deleted. The other members go on meanwhile, and
must be a majority. A member that answers is not replaced.

It can be run again at any time, and goes on where it has stopped.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("replace wants the name of one host of the inventory")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.check(); err != nil {
				return err
			}
			cluster, err := a.loadInventory()
			if err != nil {
				return err
			}
			return a.apply(cmd.Context(), flags, cluster, func(ctx context.Context, cluster *inventory.Cluster, o provision.Options) (*provision.Report, error) {
				if _, err := provision.Select(cluster, args); err != nil {
					return nil, &usageError{err, "muster validate lists the hosts"}
				}
				return provision.Replace(ctx, cluster, o, args[0])
			})
		},
	}
	flags.forApply(cmd)
	return cmd
}

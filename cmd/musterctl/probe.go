package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"muster/provision/probe"
)

// newProbeCommand measures the host; "muster doctor" runs it there, and leads it
// over the standard streams.
func newProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use:           "musterctl probe DIR",
		Hidden:        true,
		Args:          cobra.ExactArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := probe.Serve(cmd.Context(), os.Stdin, os.Stdout, probe.Near(args[0])); err != nil {
				return fmt.Errorf("measure this host: %w", err)
			}
			return nil
		},
	}
}

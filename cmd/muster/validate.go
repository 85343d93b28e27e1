package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"muster/provision/inventory"
)

func newValidateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "validate",
		Short: "check an inventory without contacting any host",
		Long: `validate reads the inventory, reports every problem it has with its line and
column, and contacts no host.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return a.validate() },
	}
}

// verdict is the JSON form of the answer of validate.
type verdict struct {
	Valid    bool                `json:"valid"`
	Problems []inventory.Problem `json:"problems"`
	Warnings []inventory.Warning `json:"warnings"`
	Cluster  *inventory.Cluster  `json:"cluster,omitempty"` // with its defaults filled in
	// Clusters are in place of Cluster when there are several.
	Clusters []*inventory.Cluster `json:"clusters,omitempty"`
}

func (a *app) validate() error {
	if a.wantsJSON() {
		return a.validateJSON()
	}
	clusters, err := a.loadInventories()
	if err != nil {
		return err
	}
	for _, cluster := range clusters {
		purpose := ""
		if resources := cluster.Resources(); len(resources) > 0 {
			purpose = ", for " + strings.Join(resources, ", ")
		}
		fmt.Fprintf(a.out, "%s: cluster %s, %d controllers%s\n", cluster.File(), cluster.Name, len(cluster.Hosts), purpose)
		for _, h := range cluster.Hosts {
			fmt.Fprintf(a.out, "  %s  %s  clients at %s\n", h.Name, h.Address, h.ClientURL())
		}
		for _, s := range cluster.APIServers() {
			fmt.Fprintf(a.out, "  %s  %s  kube-apiserver\n", s.Name, s.Address)
		}
	}
	return nil
}

func (a *app) validateJSON() error {
	clusters, warnings, err := a.readInventories()
	var problems inventory.Problems
	if err != nil && !errors.As(err, &problems) {
		return err
	}
	answer := verdict{
		Valid:    err == nil,
		Problems: append([]inventory.Problem{}, problems...),
		Warnings: append([]inventory.Warning{}, warnings...),
	}
	if len(clusters) == 1 {
		answer.Cluster = clusters[0]
	} else {
		answer.Clusters = clusters
	}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	if encErr := enc.Encode(answer); encErr != nil {
		return fmt.Errorf("print the result: %w", encErr)
	}
	if err != nil {
		return answeredError{err}
	}
	return nil
}

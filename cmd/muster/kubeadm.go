package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"muster/templates"
)

// kubeadmVersions are the versions of kubeadm's configuration that are in use,
// the latest one first.
func kubeadmVersions() []string { return []string{"v1beta4", "v1beta3"} }

func newKubeadmCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeadm",
		Short: "what kubeadm has to know of the cluster",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	version := kubeadmVersions()[0]
	config := &cobra.Command{
		Use:   "config",
		Short: "print kubeadm's configuration for this cluster as external etcd",
		Long: `config prints a ClusterConfiguration that has kubeadm use this cluster. Put it
into the file that kubeadm init --config reads, and the three files it names onto
every control-plane host. They are what

  muster certs export --for kube-apiserver DIR

writes into DIR: ca.crt belongs into /etc/kubernetes/pki/etcd there, the pair
apiserver-etcd-client into /etc/kubernetes/pki, where ca.crt is Kubernetes' own.

config reads the inventory only.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return a.kubeadmConfig(version) },
	}
	config.Flags().StringVar(&version, "api-version", version, "version of kubeadm.k8s.io to write: "+strings.Join(kubeadmVersions(), " or "))
	cmd.AddCommand(config)
	return cmd
}

func (a *app) kubeadmConfig(version string) error {
	if !slices.Contains(kubeadmVersions(), version) {
		return &usageError{fmt.Errorf("--api-version is %q", version), "write " + strings.Join(kubeadmVersions(), " or ")}
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	config := templates.KubeadmConfig{APIVersion: version}
	for _, h := range cluster.Hosts {
		config.Endpoints = append(config.Endpoints, h.ClientURL())
	}
	text, err := config.Render()
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

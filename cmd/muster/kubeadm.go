package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"muster/provision/inventory"
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

When the inventory lists the control-plane hosts under kubernetes.apiservers,
muster apply puts the files there.

Further documents of the inventory, with the same pki.dir, may have clusters for
some resources each (kubernetes: {resources: [events]}): config tells the
kube-apiserver of them too. It reads the inventory only.`,
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
	clusters, err := a.loadInventories()
	if err != nil {
		return err
	}
	cluster, err := mainStore(clusters)
	if err != nil {
		return err
	}
	config := templates.KubeadmConfig{APIVersion: version, Endpoints: clientURLs(cluster)}
	for _, sibling := range cluster.Siblings() {
		for _, resource := range sibling.Resources() {
			config.Overrides = append(config.Overrides, templates.EtcdOverride{Resource: resource, Endpoints: clientURLs(sibling)})
		}
	}
	text, err := config.Render()
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

// mainStore is the cluster for all resources that no other one is for.
func mainStore(clusters []*inventory.Cluster) (*inventory.Cluster, error) {
	var rest []*inventory.Cluster
	for _, c := range clusters {
		if len(c.Resources()) == 0 {
			rest = append(rest, c)
		}
	}
	for _, c := range clusters {
		others := strings.Join(c.Resources(), ", ")
		switch {
		case others == "":
		case len(c.Siblings()) == 0:
			return nil, &usageError{
				fmt.Errorf("cluster %s, for %s, has certificates of its own, and a kube-apiserver has one client's certificate for all its stores", c.Name, others),
				"write it into the file of the cluster for all else, with the same pki.dir",
			}
		case len(rest) == 0:
			return nil, &usageError{
				fmt.Errorf("cluster %s is for %s alone, and kubeadm is told of the cluster for all else", c.Name, others),
				"leave --cluster out, or name that one; its configuration has both",
			}
		}
	}
	if len(rest) > 1 {
		return nil, &usageError{
			fmt.Errorf("this works on one cluster, and the inventory has %d: %s", len(rest), strings.Join(clusterNames(rest), ", ")),
			"say which one is meant: --cluster " + rest[0].Name,
		}
	}
	return rest[0], nil
}

func clientURLs(c *inventory.Cluster) []string {
	urls := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		urls[i] = h.ClientURL()
	}
	return urls
}

package main

import (
	"context"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"muster/provision"
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
	version, architecture, binaryDir := kubeadmVersions()[0], runtime.GOARCH, ""
	config := &cobra.Command{
		Use:   "config",
		Short: "print kubeadm's configuration for this cluster as its etcd",
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
kube-apiserver of them too. It reads the inventory only.

For a stacked cluster it names muster's image and the inventory's flags, so that
the manifest which kubeadm would write is the one that is there. The name of the
image follows from the programs, and so from the hosts' architecture.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.kubeadmConfig(cmd.Context(), version, architecture, binaryDir)
		},
	}
	config.Flags().StringVar(&binaryDir, "binary-dir", "", "for a stacked cluster: directory of the programs that are installed")
	config.Flags().StringVar(&architecture, "arch", architecture, "for a stacked cluster: architecture of the hosts, amd64 or arm64")
	config.Flags().StringVar(&version, "api-version", version, "version of kubeadm.k8s.io to write: "+strings.Join(kubeadmVersions(), " or "))
	cmd.AddCommand(config)
	return cmd
}

func (a *app) kubeadmConfig(ctx context.Context, version, architecture, binaryDir string) error {
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
	if cluster.Topology == inventory.Stacked {
		if config.Local, err = a.localEtcd(ctx, cluster, architecture, binaryDir); err != nil {
			return err
		}
	}
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

func (a *app) localEtcd(ctx context.Context, cluster *inventory.Cluster, architecture, binaryDir string) (*templates.KubeadmLocalEtcd, error) {
	if !slices.Contains(imageArchitectures(), architecture) {
		return nil, &usageError{fmt.Errorf("--arch is %q", architecture), "write " + strings.Join(imageArchitectures(), " or ")}
	}
	name, err := provision.ImageName(ctx, provision.Options{BinaryDir: binaryDir, Reporter: a.newReporter(nil)}, cluster.Server.Binary, architecture)
	if err != nil {
		return nil, err
	}
	repository, tag, _ := strings.Cut(name, ":")
	local := &templates.KubeadmLocalEtcd{
		ImageRepository: path.Dir(repository), ImageTag: tag, DataDir: cluster.Server.DataDir, ExtraSANs: cluster.PKI.ExtraSANs,
	}
	for _, flag := range slices.Sorted(maps.Keys(cluster.Server.Flags)) {
		local.Args = append(local.Args, templates.Argument{Flag: flag, Value: cluster.Server.Flags[flag]})
	}
	return local, nil
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

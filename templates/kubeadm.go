package templates

import (
	"strconv"
	"strings"
	"text/template"
)

// KubeadmConfig is what kubeadm has to be told of a cluster of its own for the
// store: a ClusterConfiguration with nothing but etcd in it. The paths are
// those where kubeadm's own documentation has the files put.
type KubeadmConfig struct {
	APIVersion string   // of kubeadm.k8s.io: v1beta3 or v1beta4
	Endpoints  []string // client URLs, one for each member
	// Local says that kubeadm is to take a stacked cluster for its own; Endpoints
	// are then of no meaning.
	Local *KubeadmLocalEtcd
	// Overrides are the further clusters, for some resources each.
	Overrides []EtcdOverride
}

// KubeadmLocalEtcd is what kubeadm writes into the manifest of a static pod, where
// it differs from what it does by itself.
type KubeadmLocalEtcd struct {
	ImageRepository string // without etcd, which kubeadm appends
	ImageTag        string
	DataDir         string
	Args            []Argument // of the inventory
	ExtraSANs       []string
}

// EtcdOverride says which cluster has a resource.
type EtcdOverride struct {
	Resource  string   // "events", or GROUP/RESOURCE
	Endpoints []string // client URLs
}

// EtcdServersOverrides is the value of kube-apiserver's flag
// --etcd-servers-overrides; empty without Overrides. The core group's name is
// empty, and servers have semicolons between them.
func (c KubeadmConfig) EtcdServersOverrides() string {
	values := make([]string, len(c.Overrides))
	for i, o := range c.Overrides {
		resource := o.Resource
		if !strings.Contains(resource, "/") {
			resource = "/" + resource
		}
		values[i] = resource + "#" + strings.Join(o.Endpoints, ";")
	}
	return strings.Join(values, ",")
}

// MapArguments says that the version has extra arguments as a mapping.
func (c KubeadmConfig) MapArguments() bool { return c.APIVersion == "v1beta3" }

// Render returns the text of the document.
func (c KubeadmConfig) Render() ([]byte, error) {
	return render("kubeadm.yaml.tmpl", template.FuncMap{"yaml": yamlScalar, "quote": strconv.Quote}, c)
}

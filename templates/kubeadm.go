package templates

import "text/template"

// KubeadmConfig is what kubeadm has to be told of a cluster of its own for the
// store: a ClusterConfiguration with nothing but etcd in it. The paths are
// those where kubeadm's own documentation has the files put.
type KubeadmConfig struct {
	APIVersion string   // of kubeadm.k8s.io: v1beta3 or v1beta4, which are alike here
	Endpoints  []string // client URLs, one for each member
}

// Render returns the text of the document.
func (c KubeadmConfig) Render() ([]byte, error) {
	return render("kubeadm.yaml.tmpl", template.FuncMap{"yaml": yamlScalar}, c)
}

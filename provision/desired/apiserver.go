package desired

import (
	"path"

	"muster/pki"
)

// Where kubeadm looks for what a kube-apiserver needs of an external etcd.
const (
	KubernetesCA   = stackedPKI + "/ca.crt"
	KubernetesCert = kubernetesPKI + "/" + apiserverClient + ".crt"
	KubernetesKey  = kubernetesPKI + "/" + apiserverClient + ".key"
)

// ForAPIServer works out what a machine with a kube-apiserver should have of
// the cluster: files alone, in directories that are Kubernetes' own.
func ForAPIServer(name string, bundle pki.Bundle) Host {
	return Host{
		Name: name,
		Directories: []Directory{
			{Path: kubernetesDir, Mode: 0o755, Owner: root, Group: root, Shared: true},
			{Path: kubernetesPKI, Mode: 0o755, Owner: root, Group: root, Shared: true},
			{Path: stackedPKI, Mode: 0o755, Owner: root, Group: root, Shared: true},
		},
		Files: append(
			[]File{{Path: KubernetesCA, Mode: publicMode, Owner: root, Group: root, Content: bundle.CA}},
			pairFiles(path.Join(kubernetesPKI, apiserverClient), bundle.APIServerEtcdClient, rootKeyMode, root)...),
	}
}

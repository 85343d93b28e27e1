package desired

import (
	"io/fs"
	"maps"
	"path"

	"muster/pki"
	"muster/provision/inventory"
	"muster/templates"
)

// Where things are on a host of the stacked topology: what the kubelet and the
// kube-apiserver read is where kubeadm puts it. The rest is where kubeadm reset
// leaves it alone.
const (
	kubernetesDir   = "/etc/kubernetes"
	kubernetesPKI   = kubernetesDir + "/pki"
	stackedPKI      = kubernetesPKI + "/etcd"
	manifestDir     = kubernetesDir + "/manifests"
	apiserverClient = "apiserver-etcd-client"
	podName         = "etcd"
	stagedManifest  = configDir + "/etcd.yaml"
	imageDir        = "/var/lib/muster"
	imagePath       = imageDir + "/etcd-image.tar"
	manifestMode    = fs.FileMode(0o600)
	foundingState   = "new"
)

func stackedFor(cluster *inventory.Cluster, h inventory.Host, bundle pki.Bundle, pairs pki.HostPairs, bootstrap Bootstrap, image string) (Host, error) {
	manifest, err := templates.EtcdPod{
		AdvertiseClientURLs: h.ClientURL(),
		Image:               image,
		MetricsPort:         h.Server.MetricsPort,
		DataDir:             h.Server.DataDir,
		CertificatesDir:     stackedPKI,
		Args:                podArguments(cluster, h, bootstrap),
	}.Render()
	if err != nil {
		return Host{}, err
	}
	backup, err := backupFor(cluster, h, places{pki: stackedPKI, unit: "kubelet.service", client: client, paths: pathsOf("")})
	if err != nil {
		return Host{}, err
	}
	files := []File{{Path: path.Join(stackedPKI, "ca.crt"), Mode: publicMode, Owner: root, Group: root, Content: bundle.CA}}
	files = append(files, pairFiles(path.Join(stackedPKI, "server"), pairs.Server, rootKeyMode, root)...)
	files = append(files, pairFiles(path.Join(stackedPKI, "peer"), pairs.Peer, rootKeyMode, root)...)
	files = append(files, pairFiles(path.Join(stackedPKI, healthcheck), bundle.HealthcheckClient, rootKeyMode, root)...)
	files = append(files, File{Path: stagedManifest, Mode: manifestMode, Owner: root, Group: root, Content: manifest})
	restartOn := append([]string{imagePath}, serverFiles(files)...)
	files = append(files, pairFiles(path.Join(kubernetesPKI, apiserverClient), bundle.APIServerEtcdClient, rootKeyMode, root)...)
	return Host{
		Name:  h.Name,
		Paths: pathsOf(""),
		// kubeadm's pod runs as root, and so do others that read these files.
		Account: Account{User: root, Group: root},
		Directories: []Directory{
			{Path: configDir, Mode: 0o755, Owner: root, Group: root},
			{Path: imageDir, Mode: 0o755, Owner: root, Group: root},
			{Path: kubernetesDir, Mode: 0o755, Owner: root, Group: root, Shared: true},
			{Path: manifestDir, Mode: 0o700, Owner: root, Group: root, Shared: true},
			{Path: kubernetesPKI, Mode: 0o755, Owner: root, Group: root, Shared: true},
			{Path: stackedPKI, Mode: 0o755, Owner: root, Group: root, Shared: true},
			{Path: h.Server.DataDir, Mode: 0o700, Owner: root, Group: root, Data: true},
		},
		Binaries: []Binary{
			{Program: ImageProgram, Source: h.Server.Binary, Path: imagePath, Mode: publicMode, Owner: root, Group: root},
			{Program: client, Path: path.Join(binDir, client), Mode: programMode, Owner: root, Group: root},
		},
		Image: image,
		Links: clientLinks(),
		Files: files,
		Units: []Unit{{
			Name: podName, Path: stagedManifest, Manifest: path.Join(manifestDir, "etcd.yaml"),
			Enabled: true, RestartOn: restartOn,
		}},
		Backup: backup,
		Member: memberOf(h),
	}, nil
}

// podArguments returns the flags that kubeadm gives its etcd, and those of the
// inventory. A flag that etcd sets so by itself is left out, as kubeadm does.
func podArguments(cluster *inventory.Cluster, h inventory.Host, bootstrap Bootstrap) []templates.Argument {
	founding := []templates.Argument{{Flag: "initial-cluster", Value: bootstrap.InitialCluster}}
	if bootstrap.State != foundingState {
		founding = append(founding, templates.Argument{Flag: "initial-cluster-state", Value: bootstrap.State})
	}
	if cluster.Token != inventory.StackedToken {
		founding = append(founding, templates.Argument{Flag: "initial-cluster-token", Value: cluster.Token})
	}
	flags := map[string]string{ // as kubeadm 1.34 and later set them
		"feature-gates":                  "InitialCorruptCheck=true",
		"snapshot-count":                 "10000",
		"watch-progress-notify-interval": "5s",
	}
	maps.Copy(flags, h.Server.Flags)
	return append(ownArguments(h, stackedPKI, founding), flagArguments(flags)...)
}

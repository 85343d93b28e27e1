package desired

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"muster/pki"
	"muster/provision/inventory"
	"muster/templates"
)

// Where things are on a host of the external topology. A Kubernetes reset
// deletes /var/lib/etcd and /etc/kubernetes/pki: nothing of ours is there.
const (
	root    = "root"
	account = "muster"

	binDir    = "/usr/local/bin"
	configDir = "/etc/muster"
	unitDir   = "/etc/systemd/system"

	server = "musterd"
	client = "musterctl"
)

// places is what a host of the external topology has for a cluster's instance.
type places struct {
	config, pki    string // directories
	unit, account  string
	server, client string // names of programs
	paths          Paths
	isOnly         bool // the machine carries no other cluster, as far as names go
}

func placesOf(instance string) places {
	config := suffixed(configDir, instance)
	return places{
		config: config, pki: path.Join(config, "pki"),
		unit: suffixed(server, instance) + ".service", account: suffixed(account, instance),
		server: suffixed(server, instance), client: suffixed(client, instance),
		paths: pathsOf(instance), isOnly: instance == "",
	}
}

// links are the names that people know the client by.
func (p places) links() []Link {
	if !p.isOnly {
		return nil
	}
	return clientLinks()
}

const (
	programMode fs.FileMode = 0o755
	publicMode  fs.FileMode = 0o644
	// serverKeyMode lets the server read its key and not replace it.
	serverKeyMode fs.FileMode = 0o640
	rootKeyMode   fs.FileMode = 0o600
)

// For returns what each host of the cluster should have, in the order of the
// inventory. The bundle must hold the certificates that Certificates asks
// for.
func For(cluster *inventory.Cluster, bundle pki.Bundle) ([]Host, error) {
	return ForMembers(cluster, bundle, Known{})
}

// Known is what does not follow from the inventory.
type Known struct {
	// Bootstraps are those of hosts, by name, that have another one than
	// Founding.
	Bootstraps map[string]Bootstrap
	// Images are the names of the container images of a stacked cluster's hosts,
	// by name: they follow from the programs for the host's architecture.
	Images map[string]string
}

// Bootstrap is what a member is told about its cluster for the time when it
// has no data. Afterwards it means nothing to the server, as in etcd, and a
// host keeps what it was once given: a member that joins changes no other.
type Bootstrap struct {
	// InitialCluster lists NAME=PEER-URL with commas between.
	InitialCluster string
	// State is "new" for a founding member and "existing" for one that joins.
	State string
}

// Founding is the Bootstrap of a cluster that the whole inventory founds.
func Founding(cluster *inventory.Cluster) Bootstrap {
	members := make([]string, 0, len(cluster.Hosts))
	for _, m := range cluster.Hosts {
		members = append(members, m.Name+"="+m.PeerURL())
	}
	return Bootstrap{InitialCluster: strings.Join(members, ","), State: "new"}
}

// ForMembers is For with what is known of the hosts.
func ForMembers(cluster *inventory.Cluster, bundle pki.Bundle, known Known) ([]Host, error) {
	hosts := make([]Host, 0, len(cluster.Hosts))
	for _, h := range cluster.Hosts {
		bootstrap, ok := known.Bootstraps[h.Name]
		if !ok {
			bootstrap = Founding(cluster)
		}
		pairs, ok := bundle.Hosts[h.Name]
		if !ok {
			return nil, fmt.Errorf("work out what %s should have: there are no certificates for it", h.Name)
		}
		var want Host
		var err error
		if cluster.Topology == inventory.Stacked {
			want, err = stackedFor(cluster, h, bundle, pairs, bootstrap, known.Images[h.Name])
		} else {
			want, err = externalFor(cluster, h, bundle, pairs, bootstrap)
		}
		if err != nil {
			return nil, fmt.Errorf("work out what %s should have: %w", h.Name, err)
		}
		hosts = append(hosts, want)
	}
	return hosts, nil
}

// PKIDir is where the hosts of a cluster have their certificates.
func PKIDir(cluster *inventory.Cluster) string {
	if cluster.Topology == inventory.Stacked {
		return stackedPKI
	}
	return placesOf(cluster.Instance).pki
}

// Certificates says which certificates the cluster needs.
func Certificates(cluster *inventory.Cluster) pki.Spec {
	spec := pki.Spec{
		Algorithm:    pki.Algorithm(cluster.PKI.KeyAlgorithm),
		CALifetime:   cluster.PKI.CALifetime.Duration(),
		LeafLifetime: cluster.PKI.LeafLifetime.Duration(),
		External:     cluster.PKI.External,
	}
	for _, h := range cluster.Hosts {
		sans := append([]string{h.InternalAddress, h.Address}, cluster.PKI.ExtraSANs...)
		spec.Hosts = append(spec.Hosts, pki.Host{Name: h.Name, SANs: sans})
	}
	return spec
}

func externalFor(cluster *inventory.Cluster, h inventory.Host, bundle pki.Bundle, pairs pki.HostPairs, bootstrap Bootstrap) (Host, error) {
	at := placesOf(cluster.Instance)
	unit, err := templates.MusterdUnit{
		Cluster:     cluster.Name,
		Binary:      path.Join(binDir, at.server),
		User:        at.account,
		Group:       at.account,
		Config:      at.config,
		Environment: at.paths.Environment,
		DataDir:     h.Server.DataDir,
		Args:        arguments(cluster, h, bootstrap, at.pki),
	}.Render()
	if err != nil {
		return Host{}, err
	}
	backup, err := backupFor(cluster, h, at)
	if err != nil {
		return Host{}, err
	}
	unitPath := path.Join(unitDir, at.unit)
	files := append(certificateFiles(at, bundle, pairs), File{
		Path: unitPath, Mode: publicMode, Owner: root, Group: root, Content: unit,
	})
	return Host{
		Name:    h.Name,
		Paths:   at.paths,
		Account: Account{User: at.account, Group: at.account, Home: h.Server.DataDir, Shell: "/usr/sbin/nologin"},
		Directories: []Directory{
			{Path: at.config, Mode: 0o755, Owner: root, Group: root},
			{Path: at.pki, Mode: 0o750, Owner: root, Group: at.account},
			{Path: h.Server.DataDir, Mode: 0o700, Owner: at.account, Group: at.account, Data: true},
		},
		Binaries: []Binary{
			{Program: server, Source: h.Server.Binary, Path: path.Join(binDir, at.server), Mode: programMode, Owner: root, Group: root},
			{Program: client, Path: path.Join(binDir, at.client), Mode: programMode, Owner: root, Group: root},
		},
		Links:  at.links(),
		Files:  files,
		Units:  []Unit{{Name: at.unit, Path: unitPath, Enabled: true, RestartOn: append([]string{path.Join(binDir, at.server)}, serverFiles(files)...)}},
		Backup: backup,
		Member: memberOf(h),
	}, nil
}

func memberOf(h inventory.Host) Member {
	return Member{
		Name: h.Name, PeerURL: h.PeerURL(), ClientURL: h.ClientURL(),
		MetricsURL: h.MetricsURL(), DataDir: h.Server.DataDir,
	}
}

// clientLinks are the names that people know the client by.
func clientLinks() []Link {
	return []Link{
		{Path: path.Join(binDir, "etcdctl"), Target: client},
		{Path: path.Join(binDir, "etcdutl"), Target: client},
	}
}

func certificateFiles(at places, bundle pki.Bundle, pairs pki.HostPairs) []File {
	files := []File{{Path: path.Join(at.pki, "ca.crt"), Mode: publicMode, Owner: root, Group: root, Content: bundle.CA}}
	files = append(files, pairFiles(path.Join(at.pki, "server"), pairs.Server, serverKeyMode, at.account)...)
	files = append(files, pairFiles(path.Join(at.pki, "peer"), pairs.Peer, serverKeyMode, at.account)...)
	return append(files, pairFiles(path.Join(at.pki, healthcheck), bundle.HealthcheckClient, rootKeyMode, root)...)
}

// pairFiles are a certificate and its key, named without their endings.
func pairFiles(name string, pair pki.Pair, keyMode fs.FileMode, keyGroup string) []File {
	return []File{
		{Path: name + ".crt", Mode: publicMode, Owner: root, Group: root, Content: pair.Cert},
		{Path: name + ".key", Mode: keyMode, Owner: root, Group: keyGroup, Content: pair.Key, Secret: true},
	}
}

// healthcheck is the pair an operator on the host uses; the server does not.
const healthcheck = "healthcheck-client"

// serverFiles are the paths of those files that the server reads.
func serverFiles(files []File) []string {
	var paths []string
	for _, f := range files {
		if !strings.HasPrefix(path.Base(f.Path), healthcheck) {
			paths = append(paths, f.Path)
		}
	}
	return paths
}

// arguments returns the server's command line. What muster decides comes
// first, in the order of etcd's documentation; the inventory's own flags
// follow by name.
func arguments(cluster *inventory.Cluster, h inventory.Host, bootstrap Bootstrap, pkiDir string) []templates.Argument {
	args := ownArguments(h, pkiDir, []templates.Argument{
		{Flag: "initial-cluster", Value: bootstrap.InitialCluster},
		{Flag: "initial-cluster-token", Value: cluster.Token},
		{Flag: "initial-cluster-state", Value: bootstrap.State},
	})
	return append(args, flagArguments(h.Server.Flags)...)
}

// ownArguments are those that muster decides. The founding ones are told apart,
// for not everybody says all of them.
func ownArguments(h inventory.Host, pkiDir string, founding []templates.Argument) []templates.Argument {
	in := func(file string) string { return path.Join(pkiDir, file) }
	return slices.Concat([]templates.Argument{
		{Flag: "name", Value: h.Name},
		{Flag: "data-dir", Value: h.Server.DataDir},
		{Flag: "listen-client-urls", Value: strings.Join(h.ClientListenURLs(), ",")},
		{Flag: "advertise-client-urls", Value: h.ClientURL()},
		{Flag: "listen-peer-urls", Value: h.PeerListenURL()},
		{Flag: "initial-advertise-peer-urls", Value: h.PeerURL()},
	}, founding, []templates.Argument{
		{Flag: "cert-file", Value: in("server.crt")},
		{Flag: "key-file", Value: in("server.key")},
		{Flag: "client-cert-auth"},
		{Flag: "trusted-ca-file", Value: in("ca.crt")},
		{Flag: "peer-cert-file", Value: in("peer.crt")},
		{Flag: "peer-key-file", Value: in("peer.key")},
		{Flag: "peer-client-cert-auth"},
		{Flag: "peer-trusted-ca-file", Value: in("ca.crt")},
		{Flag: "listen-metrics-urls", Value: h.MetricsURL()},
	})
}

// flagArguments are flags by name.
func flagArguments(flags map[string]string) []templates.Argument {
	var args []templates.Argument
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		args = append(args, templates.Argument{Flag: name, Value: flags[name], Joined: true})
	}
	return args
}

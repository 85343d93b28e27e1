// Package inventory turns the operator's YAML into a typed, defaulted and
// validated Cluster. It reads no host and opens no connection: what it can
// know, it knows from the document, the environment it is handed and the
// files the document names.
package inventory

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
)

// Defaults of a Cluster. The ports are the ones etcd and kubeadm use.
const (
	DefaultDataDir     = "/var/lib/muster"
	DefaultClientPort  = 2379
	DefaultPeerPort    = 2380
	DefaultMetricsPort = 2381
	DefaultSSHPort     = 22
	DefaultSSHUser     = "root"
)

// Defaults of a stacked Cluster, which are kubeadm's.
const (
	StackedDataDir = "/var/lib/etcd"
	// StackedToken is what etcd takes for --initial-cluster-token by itself.
	StackedToken = "etcd-cluster"
)

// Topology says where the cluster runs in relation to Kubernetes.
type Topology string

const (
	// External is a cluster of its own, run by systemd, that a
	// kube-apiserver reaches over the network.
	External Topology = "external"
	// Stacked is a member on every control-plane node, run by its kubelet as
	// a static pod.
	Stacked Topology = "stacked"
)

// KeyAlgorithm is the kind of private key made for the CA and the leaves.
// Only the kinds kubeadm can load are offered.
type KeyAlgorithm string

const (
	// ECDSAP256 is ECDSA on the curve P-256.
	ECDSAP256 KeyAlgorithm = "ecdsa-p256"
	// RSA2048 is RSA with a modulus of 2048 bits.
	RSA2048 KeyAlgorithm = "rsa-2048"
	// RSA4096 is RSA with a modulus of 4096 bits.
	RSA4096 KeyAlgorithm = "rsa-4096"
)

// Cluster is one inventory. What Load returns is complete: every default is
// filled in, and the cluster-wide ssh and server settings are merged into
// each host, so that readers look at Hosts only.
type Cluster struct {
	// Name of the cluster, a DNS label. It names the default PKI directory
	// and the default token.
	Name string `yaml:"cluster" json:"cluster"`
	// Topology defaults to External.
	Topology Topology `yaml:"topology,omitempty" json:"topology,omitempty"`
	// Token is etcd's --initial-cluster-token: clusters with different tokens
	// never mix, even when their addresses overlap. Defaults to
	// etcd-cluster-NAME, and to etcd's own default for a stacked cluster.
	Token string `yaml:"token,omitempty" json:"token,omitempty"`
	// Instance tells what the cluster has on its machines apart from what another
	// cluster has there: with the instance events its unit is
	// musterd-events.service and its files are in /etc/muster-events. It is a DNS
	// label, and never changes.
	Instance string `yaml:"instance,omitempty" json:"instance,omitempty"`
	// Hosts are the controllers in the order of the document. Each one is a
	// voting member.
	Hosts []Host `yaml:"controllers" json:"controllers"`
	// SSH holds the connection settings every host starts from.
	SSH SSH `yaml:"ssh,omitempty" json:"ssh,omitzero"`
	// Server holds the server settings every host starts from.
	Server Server `yaml:"server,omitempty" json:"server,omitzero"`
	// PKI says where the certificates are kept and how they are made.
	PKI PKI `yaml:"pki,omitempty" json:"pki,omitzero"`
	// Backup has every host save snapshots of the cluster by itself.
	Backup *Backup `yaml:"backup,omitempty" json:"backup,omitempty"`
	// Kubernetes says which kube-apiservers use the cluster, and for what.
	Kubernetes *Kubernetes `yaml:"kubernetes,omitempty" json:"kubernetes,omitempty"`
	// Hooks are run on the workstation before and after what is done, in this
	// order. One that fails before stops the operation.
	Hooks []Hook `yaml:"hooks,omitempty" json:"hooks,omitempty"`
	// Practice says that all hosts are practice hosts on this machine, as
	// muster practice starts them. Only they may share loopback addresses.
	Practice bool `yaml:"practice,omitempty" json:"practice,omitempty"`

	dir      string
	doc      *document // that it was read from
	siblings []*Cluster
}

// Siblings are the clusters of other documents in the same file that have the
// same CA: together they are the stores of one Kubernetes.
func (c *Cluster) Siblings() []*Cluster { return c.siblings }

// Dir is the directory of the inventory, absolute.
func (c *Cluster) Dir() string { return c.dir }

// File is the name of the inventory as it was given to Load.
func (c *Cluster) File() string { return c.doc.file }

// Host is one controller.
type Host struct {
	// Name is the member's name, a DNS label unique in the cluster. Defaults
	// to controller-N, N being the position in the list, from 0.
	Name string `yaml:"name,omitempty" json:"name,omitempty"`
	// Address is the IP or host name the workstation reaches the host at.
	Address string `yaml:"address" json:"address"`
	// InternalAddress is the IP or host name the members and the
	// kube-apiserver reach the host at. Defaults to Address.
	InternalAddress string `yaml:"internalAddress,omitempty" json:"internalAddress,omitempty"`
	// SSH overrides the cluster's connection settings.
	SSH SSH `yaml:"ssh,omitempty" json:"ssh,omitzero"`
	// Server overrides the cluster's server settings.
	Server Server `yaml:"server,omitempty" json:"server,omitzero"`
}

// SSH says how to log in to one machine. Zero fields are left to the user's
// ssh_config first and to ssh's own defaults (port 22, user root) second.
type SSH struct {
	// Address is the machine to log in to. Only a bastion has one: a
	// controller is logged in to at its own Address.
	Address string `yaml:"address,omitempty" json:"address,omitempty"`
	// User to log in as; sudo or doas is used when it is not root.
	User string `yaml:"user,omitempty" json:"user,omitempty"`
	// Port is in [1, 65535]; 0 means not given.
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// IdentityFile is the path of a private key on the workstation. "~/" is
	// the home directory; other relative paths start at the inventory.
	IdentityFile string `yaml:"identityFile,omitempty" json:"identityFile,omitempty"`
	// HostKey pins the host's key: its fingerprint as ssh-keygen -l prints
	// it, "SHA256:" and 43 characters of base64. It wins over known_hosts.
	HostKey string `yaml:"hostKey,omitempty" json:"hostKey,omitempty"`
	// Bastion is the machine the connection goes through, if any.
	Bastion *SSH `yaml:"bastion,omitempty" json:"bastion,omitempty"`
}

// Server says how the key-value server runs on a host.
type Server struct {
	// DataDir is an absolute path on the host that belongs to the server
	// alone. Defaults to /var/lib/muster, and to kubeadm's /var/lib/etcd for a
	// stacked cluster.
	DataDir string `yaml:"dataDir,omitempty" json:"dataDir,omitempty"`
	// ClientPort serves the etcd API, in [1, 65535].
	ClientPort int `yaml:"clientPort,omitempty" json:"clientPort,omitempty"`
	// PeerPort is used between members, in [1, 65535].
	PeerPort int `yaml:"peerPort,omitempty" json:"peerPort,omitempty"`
	// MetricsPort serves /metrics and /health in clear on 127.0.0.1, in
	// [1, 65535].
	MetricsPort int `yaml:"metricsPort,omitempty" json:"metricsPort,omitempty"`
	// Flags are further etcd flags by name, without dashes. A flag that
	// muster sets itself is refused.
	Flags map[string]string `yaml:"flags,omitempty" json:"flags,omitempty"`
	// Binary is the path on the workstation of the server to install. When
	// empty, the musterd that came with muster is used.
	Binary string `yaml:"binary,omitempty" json:"binary,omitempty"`
}

// PKI says where the certificates are kept on the workstation and how new
// ones are made.
type PKI struct {
	// Dir is absolute after Load. Defaults to CLUSTER-pki beside the
	// inventory.
	Dir string `yaml:"dir,omitempty" json:"dir,omitempty"`
	// External says that a CA of your own signs: muster writes certificate
	// requests, checks what is signed, and never has that CA's key.
	External bool `yaml:"external,omitempty" json:"external,omitempty"`
	// CALifetime defaults to 10 years.
	CALifetime Lifetime `yaml:"caLifetime,omitempty" json:"caLifetime,omitempty"`
	// LeafLifetime defaults to 1 year. A leaf never outlives its CA.
	LeafLifetime Lifetime `yaml:"leafLifetime,omitempty" json:"leafLifetime,omitempty"`
	// KeyAlgorithm defaults to ECDSAP256.
	KeyAlgorithm KeyAlgorithm `yaml:"keyAlgorithm,omitempty" json:"keyAlgorithm,omitempty"`
	// ExtraSANs are IPs and DNS names added to the server and peer
	// certificates of every host.
	ExtraSANs []string `yaml:"extraSANs,omitempty" json:"extraSANs,omitempty"`
}

// ClientURL is the URL the host's member advertises to clients.
func (h Host) ClientURL() string { return endpoint("https", h.InternalAddress, h.Server.ClientPort) }

// PeerURL is the URL the host's member advertises to its peers.
func (h Host) PeerURL() string { return endpoint("https", h.InternalAddress, h.Server.PeerPort) }

// ClientListenURLs are the URLs the host's member serves clients on: loopback
// for tools on the host itself, then the internal address.
func (h Host) ClientListenURLs() []string {
	wide := endpoint("https", h.listenAddress(), h.Server.ClientPort)
	local := endpoint("https", "127.0.0.1", h.Server.ClientPort)
	if wide == local || h.listenAddress() == anyAddress {
		return []string{wide}
	}
	return []string{local, wide}
}

// PeerListenURL is the URL the host's member serves its peers on.
func (h Host) PeerListenURL() string {
	return endpoint("https", h.listenAddress(), h.Server.PeerPort)
}

// MetricsURL is where the host's member serves metrics and health in clear;
// only the host itself can reach it.
func (h Host) MetricsURL() string { return endpoint("http", "127.0.0.1", h.Server.MetricsPort) }

const anyAddress = "0.0.0.0"

// listenAddress is the internal address when that is an IP. A name cannot be
// listened on: the host may know itself by another address, so all are used.
func (h Host) listenAddress() string {
	if _, err := netip.ParseAddr(h.InternalAddress); err != nil {
		return anyAddress
	}
	return h.InternalAddress
}

func endpoint(scheme, host string, port int) string {
	u := url.URL{Scheme: scheme, Host: net.JoinHostPort(host, strconv.Itoa(port))}
	return u.String()
}

package pki

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Files of a PKI directory. Operators copy them by these names.
const (
	caCert              = "ca.crt" // every CA to trust; the first one signs
	caKey               = "ca.key"
	caRecipients        = "ca.recipients" // whom ca.key is encrypted for
	hostsDir            = "hosts"
	clientsDir          = "clients"
	serverName          = "server"
	peerName            = "peer"
	healthcheckClient   = "healthcheck-client"
	apiserverEtcdClient = "apiserver-etcd-client"
)

// HealthcheckUser is whom muster's own client certificate names: kubeadm's name
// for it, and the user when a cluster has auth on.
const HealthcheckUser = "kube-etcd-healthcheck-client"

// Role is what a certificate is for.
type Role string

// The roles. They appear in JSON output: do not rename.
const (
	CA     Role = "ca"
	Server Role = "server"
	Peer   Role = "peer"
	Client Role = "client"
)

// leaf is one certificate to have.
type leaf struct {
	path       string // relative, without extension
	role       Role
	host       string // empty for a client
	commonName string
	sans       []string // canonical, sorted, without repetition
	usages     []x509.ExtKeyUsage
	store      func(*Bundle, Pair)
}

// load is what a bundle has for the leaf.
func (l leaf) load(b Bundle) Pair {
	switch l.role {
	case Server:
		return b.Hosts[l.host].Server
	case Peer:
		return b.Hosts[l.host].Peer
	}
	switch l.path {
	case healthcheckClient:
		return b.HealthcheckClient
	case apiserverEtcdClient:
		return b.APIServerEtcdClient
	}
	return b.Clients[l.commonName]
}

func (l leaf) certPath() string { return l.path + ".crt" }
func (l leaf) keyPath() string  { return l.path + ".key" }

// leaves lists the certificates of the spec in the order they are made. The
// names and usages are those of kubeadm's etcd certificates.
func (s Spec) leaves() []leaf {
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	var all []leaf
	for _, h := range s.Hosts {
		dir := filepath.Join(hostsDir, h.Name)
		sans := h.sans()
		all = append(all,
			leaf{filepath.Join(dir, serverName), Server, h.Name, h.Name, sans, both, func(b *Bundle, p Pair) {
				pairs := b.Hosts[h.Name]
				pairs.Server = p
				b.Hosts[h.Name] = pairs
			}},
			leaf{filepath.Join(dir, peerName), Peer, h.Name, h.Name, sans, both, func(b *Bundle, p Pair) {
				pairs := b.Hosts[h.Name]
				pairs.Peer = p
				b.Hosts[h.Name] = pairs
			}})
	}
	return append(all,
		leaf{healthcheckClient, Client, "", HealthcheckUser, nil, client, func(b *Bundle, p Pair) { b.HealthcheckClient = p }},
		leaf{apiserverEtcdClient, Client, "", "kube-apiserver-etcd-client", nil, client, func(b *Bundle, p Pair) { b.APIServerEtcdClient = p }})
}

// client is the certificate of one more client, kept below clients/.
func client(name string) leaf {
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return leaf{filepath.Join(clientsDir, name), Client, "", name, nil, usages, func(b *Bundle, p Pair) { b.Clients[name] = p }}
}

// clients lists the certificates of further clients that the directory holds.
func (d directory) clients() ([]leaf, error) {
	entries, err := os.ReadDir(d.path(clientsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []leaf
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".crt"); ok && clientName.MatchString(name) {
			all = append(all, client(name))
		}
	}
	return all, nil
}

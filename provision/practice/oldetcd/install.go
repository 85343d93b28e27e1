// Package oldetcd installs etcd on practice hosts in the way of kubeadm, etcdadm
// and kubespray, for tests of taking it over: the same files, under the same
// names, with the same settings.
package oldetcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"muster/pki"
	"muster/provision/found"
	"muster/provision/practice"
)

// Cluster is an etcd that is installed on practice hosts.
type Cluster struct {
	Installer found.Installer
	Hosts     []*practice.Host
	// Program is the path of etcd on this machine, PKI a directory for the CA
	// and the certificates.
	Program string
	PKI     string
	// NoCAKey leaves the key of the CA on no host.
	NoCAKey bool
	// Flags are further ones of etcd's, by name.
	Flags map[string]string
}

// Install installs and starts the members. A host that kubeadm's etcd is
// installed on needs a kubelet. It does not wait for them.
func (c Cluster) Install(ctx context.Context) (pki.Bundle, error) {
	algorithm := pki.ECDSAP256
	if c.Installer == found.Kubeadm {
		algorithm = pki.RSA2048 // as it has them by default; they take a while to make
	}
	spec := pki.Spec{Algorithm: algorithm, CALifetime: 10 * year, LeafLifetime: year}
	for _, h := range c.Hosts {
		spec.Hosts = append(spec.Hosts, pki.Host{Name: h.Name(), SANs: []string{h.Address()}})
	}
	bundle, _, err := pki.Ensure(ctx, c.PKI, spec)
	if err != nil {
		return bundle, err
	}
	key, err := os.ReadFile(filepath.Join(c.PKI, "ca.key"))
	if err != nil {
		return bundle, err
	}
	var failed []error
	for _, h := range c.Hosts {
		failed = append(failed, c.install(ctx, h, bundle, key))
	}
	return bundle, errors.Join(failed...)
}

const year = 365 * 24 * time.Hour

// layout is where an installer puts things.
type layout struct{ ca, caKey, server, serverKey, peer, peerKey, client, clientKey, program string }

func (c Cluster) layout(host string) layout {
	switch c.Installer {
	case found.Kubeadm:
		return inDir("/etc/kubernetes/pki/etcd", "ca.crt", "ca.key", "server.crt", "server.key", "peer.crt", "peer.key", "healthcheck-client.crt", "healthcheck-client.key", "/usr/local/bin/etcd")
	case found.Etcdadm:
		return inDir("/etc/etcd/pki", "ca.crt", "ca.key", "server.crt", "server.key", "peer.crt", "peer.key", "etcdctl-etcd-client.crt", "etcdctl-etcd-client.key", "/opt/bin/etcd")
	default:
		member, admin := "member-"+host, "admin-"+host
		return inDir("/etc/ssl/etcd/ssl", "ca.pem", "ca-key.pem", member+".pem", member+"-key.pem", member+".pem", member+"-key.pem", admin+".pem", admin+"-key.pem", "/usr/local/bin/etcd")
	}
}

func inDir(dir string, names ...string) layout {
	in := func(i int) string { return path.Join(dir, names[i]) }
	return layout{in(0), in(1), in(2), in(3), in(4), in(5), in(6), in(7), names[8]}
}

func (c Cluster) install(ctx context.Context, h *practice.Host, bundle pki.Bundle, caKey []byte) error {
	at := c.layout(h.Name())
	pairs := bundle.Hosts[h.Name()]
	if at.server == at.peer { // one pair for both: that of the peers may be a client too
		pairs.Server = pairs.Peer
	}
	files := map[string][]byte{
		at.ca: bundle.CA, at.server: pairs.Server.Cert, at.serverKey: pairs.Server.Key, at.peer: pairs.Peer.Cert, at.peerKey: pairs.Peer.Key,
		at.client: bundle.HealthcheckClient.Cert, at.clientKey: bundle.HealthcheckClient.Key,
	}
	if !c.NoCAKey {
		files[at.caKey] = caKey
	}
	flags := c.flags(h, at)
	switch c.Installer {
	case found.Kubeadm:
		files[found.ManifestPath] = manifest(flags)
	case found.Etcdadm:
		files["/etc/etcd/etcd.env"] = environment(flags)
		files[found.UnitPath] = unit(at.program, "/etc/etcd/etcd.env", "")
	default:
		files["/etc/etcd.env"] = environment(flags)
		files[found.UnitPath] = unit(at.program, "/etc/etcd.env", "User=etcd\n")
	}
	if err := link(c.Program, h.Path(at.program)); err != nil {
		return err
	}
	script := "mkdir -p /var/lib/etcd && chmod 0700 /var/lib/etcd"
	if c.Installer == found.Kubespray {
		script = "groupadd --system etcd && useradd --system --gid etcd --home-dir /var/lib/etcd --no-create-home --shell /bin/false etcd && " + script + " && chown etcd:etcd /var/lib/etcd"
	}
	if c.Installer != found.Kubeadm {
		script += " && systemctl daemon-reload && systemctl enable etcd.service && systemctl start --no-block etcd.service"
	}
	for name, content := range files {
		if err := put(h, name, content); err != nil {
			return err
		}
	}
	if out, status := h.Console(ctx, script); status != 0 {
		return fmt.Errorf("%s: %s", h.Name(), out)
	}
	return nil
}

func (c Cluster) flags(h *practice.Host, at layout) [][2]string {
	url := func(host *practice.Host, port int) string { return fmt.Sprintf("https://%s:%d", host.Address(), port) }
	var members []string
	for _, other := range c.Hosts {
		members = append(members, other.Name()+"="+url(other, other.Ports().Peer))
	}
	p := h.Ports()
	listen := url(h, p.Client)
	if h.Address() != "127.0.0.1" {
		listen = fmt.Sprintf("https://127.0.0.1:%d,%s", p.Client, listen)
	}
	flags := [][2]string{
		{"name", h.Name()}, {"data-dir", "/var/lib/etcd"},
		{"advertise-client-urls", url(h, p.Client)}, {"listen-client-urls", listen},
		{"initial-advertise-peer-urls", url(h, p.Peer)}, {"listen-peer-urls", url(h, p.Peer)},
		{"listen-metrics-urls", fmt.Sprintf("http://127.0.0.1:%d", p.Metrics)},
		{"initial-cluster", strings.Join(members, ",")}, {"initial-cluster-state", "new"},
		{"cert-file", at.server}, {"key-file", at.serverKey}, {"trusted-ca-file", at.ca}, {"client-cert-auth", "true"},
		{"peer-cert-file", at.peer}, {"peer-key-file", at.peerKey}, {"peer-trusted-ca-file", at.ca}, {"peer-client-cert-auth", "true"},
		{"snapshot-count", "10000"},
	}
	if c.Installer != found.Kubeadm {
		flags = append(flags, [2]string{"initial-cluster-token", "k8s_etcd"})
	}
	for name, value := range c.Flags {
		flags = append(flags, [2]string{name, value})
	}
	return flags
}

func manifest(flags [][2]string) []byte {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata:\n  labels: {component: etcd, tier: control-plane}\n  name: etcd\n  namespace: kube-system\nspec:\n  containers:\n  - command:\n    - etcd\n")
	for _, f := range flags {
		fmt.Fprintf(&b, "    - --%s=%s\n", f[0], f[1])
	}
	b.WriteString("    image: registry.k8s.io/etcd:3.6.8-0\n    name: etcd\n    volumeMounts:\n    - {mountPath: /var/lib/etcd, name: etcd-data}\n    - {mountPath: /etc/kubernetes/pki/etcd, name: etcd-certs}\n" +
		"  hostNetwork: true\n  volumes:\n  - hostPath: {path: /etc/kubernetes/pki/etcd, type: DirectoryOrCreate}\n    name: etcd-certs\n  - hostPath: {path: /var/lib/etcd, type: DirectoryOrCreate}\n    name: etcd-data\n")
	return []byte(b.String())
}

func environment(flags [][2]string) []byte {
	var b strings.Builder
	for _, f := range flags {
		fmt.Fprintf(&b, "ETCD_%s=%s\n", strings.ToUpper(strings.ReplaceAll(f[0], "-", "_")), f[1])
	}
	return []byte(b.String())
}

func unit(program, env, user string) []byte {
	return fmt.Appendf(nil, "[Unit]\nDescription=etcd\nAfter=network.target\n\n[Service]\nType=notify\n%sEnvironmentFile=%s\nExecStart=%s\nRestart=always\nRestartSec=100ms\nTimeoutStartSec=0\n\n[Install]\nWantedBy=multi-user.target\n", user, env, program)
}

// put replaces a file at once: the kubelet looks all the time.
func put(h *practice.Host, name string, content []byte) error {
	file := h.Path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	if err := os.WriteFile(next, content, 0o600); err != nil {
		return err
	}
	return os.Rename(next, file)
}

// link gives a program another name, without a copy where that is possible.
func link(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755) //nolint:gosec // it is a program
}

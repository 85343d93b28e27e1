// Package found reads what kubeadm, etcdadm and kubespray leave on a host when
// they install etcd: how its member is started, with which flags, data and
// certificates. Nothing on the host is changed by looking.
package found

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"muster/templates"
)

// Installer is the program that installed an etcd.
type Installer string

// The installers that are known.
const (
	Kubeadm   Installer = "kubeadm"
	Etcdadm   Installer = "etcdadm"
	Kubespray Installer = "kubespray"
)

// Where they leave things. The two that use systemd give the unit the same
// name; they differ in the file of its environment.
const (
	ManifestPath  = "/etc/kubernetes/manifests/etcd.yaml"
	UnitName      = "etcd.service"
	UnitPath      = "/etc/systemd/system/" + UnitName
	etcdadmEnv    = "/etc/etcd/etcd.env"
	kubesprayEnv  = "/etc/etcd.env"
	defaultData   = "/var/lib/etcd"
	defaultClient = 2379
	defaultPeer   = 2380
)

// Etcd is an etcd that somebody else installed on a host.
type Etcd struct {
	Installer Installer `json:"installer"`
	// Source is the file that says how it is started.
	Source string `json:"source"`
	// Flags are etcd's, by name without dashes, whether they were given as
	// flags or in the environment.
	Flags map[string]string `json:"flags"`
	// Program is the path of etcd on the host; empty when a container has it.
	Program string `json:"program,omitempty"`
	// Active says that systemd runs the unit, or that the kubelet has the
	// manifest.
	Active bool `json:"active"`
}

// ErrNothing is returned for a host on which none of the installers has
// installed etcd.
var ErrNothing = errors.New("no etcd of kubeadm, etcdadm or kubespray is here: " + ManifestPath + ", " + etcdadmEnv + " and " + kubesprayEnv + " do not exist")

// Files are the files of a host that Read wants, by path.
func Files() []string { return []string{ManifestPath, UnitPath, etcdadmEnv, kubesprayEnv} }

// Read finds the etcd of a host in the content of Files; what is missing there
// does not exist. Active is systemd's ActiveState of UnitName.
func Read(files map[string]string, active string) (*Etcd, error) {
	manifest, static := files[ManifestPath]
	unit, hasUnit := files[UnitPath]
	runs := active == "active" || active == "activating"
	switch {
	case static && hasUnit && runs:
		return nil, fmt.Errorf("%s and %s both run an etcd here; stop the one that is not the cluster's member and move its file away", ManifestPath, UnitName)
	case static:
		return readManifest(manifest)
	case !hasUnit:
		return nil, ErrNothing
	}
	e := &Etcd{Source: UnitPath, Active: runs, Flags: map[string]string{}}
	command, settings, err := templates.ReadUnit(unit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", UnitPath, err)
	}
	for _, s := range settings {
		if s.Name == "Service/EnvironmentFile" {
			e.Source = strings.TrimPrefix(s.Value, "-")
		}
	}
	switch e.Source {
	case etcdadmEnv:
		e.Installer = Etcdadm
	case kubesprayEnv:
		e.Installer = Kubespray
	default:
		return nil, fmt.Errorf("%s was written by none of kubeadm, etcdadm and kubespray: it takes its environment neither from %s nor from %s; move the data with muster backup and muster restore instead", UnitPath, etcdadmEnv, kubesprayEnv)
	}
	text, ok := files[e.Source]
	if !ok {
		return nil, fmt.Errorf("%s reads %s, which does not exist", UnitPath, e.Source)
	}
	e.addEnvironment(text)
	if len(command) > 0 {
		e.Program = command[0]
		e.addArguments(command[1:])
	}
	return e, e.check()
}

// pod is what is read of the manifest of a static pod.
type pod struct {
	Kind string
	Spec struct {
		Containers []struct {
			Name          string
			Command, Args []string
			Env           []struct{ Name, Value string }
			VolumeMounts  []struct {
				Name      string
				MountPath string `yaml:"mountPath"`
			} `yaml:"volumeMounts"`
		}
		Volumes []struct {
			Name     string
			HostPath struct{ Path string } `yaml:"hostPath"`
		}
	}
}

func readManifest(text string) (*Etcd, error) {
	var p pod
	if err := yaml.Unmarshal([]byte(text), &p); err != nil {
		return nil, fmt.Errorf("read %s: %w", ManifestPath, err)
	}
	e := &Etcd{Installer: Kubeadm, Source: ManifestPath, Active: true, Flags: map[string]string{}}
	for _, c := range p.Spec.Containers {
		words := slices.Concat(c.Command, c.Args)
		if len(words) == 0 || path.Base(words[0]) != "etcd" {
			continue
		}
		for _, v := range c.Env {
			e.addVariable(v.Name, v.Value)
		}
		e.addArguments(words[1:])
		for _, m := range c.VolumeMounts { // kubeadm mounts what it mounts under the host's own path
			for _, v := range p.Spec.Volumes {
				if v.Name == m.Name && path.Clean(v.HostPath.Path) != path.Clean(m.MountPath) {
					return nil, fmt.Errorf("%s mounts %s of the host as %s; muster adopts only manifests that keep the host's paths, as kubeadm's do", ManifestPath, v.HostPath.Path, m.MountPath)
				}
			}
		}
		return e, e.check()
	}
	return nil, fmt.Errorf("%s has no container that runs etcd", ManifestPath)
}

func (e *Etcd) addEnvironment(text string) {
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(name, "#") && !strings.HasPrefix(name, ";") {
			e.addVariable(name, strings.Trim(value, `"'`))
		}
	}
}

func (e *Etcd) addVariable(name, value string) {
	if flag, ok := strings.CutPrefix(name, "ETCD_"); ok && value != "" {
		e.Flags[strings.ToLower(strings.ReplaceAll(flag, "_", "-"))] = value
	}
}

// addArguments reads etcd's command line: a flag's value follows "=" or is the
// next word.
func (e *Etcd) addArguments(words []string) {
	for i := 0; i < len(words); i++ {
		name, isFlag := strings.CutPrefix(words[i], "-")
		if !isFlag {
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(name, "-"), "=")
		switch {
		case given:
		case i+1 < len(words) && !strings.HasPrefix(words[i+1], "-"):
			i++
			value = words[i]
		default:
			value = "true"
		}
		e.Flags[name] = value
	}
}

// check refuses what cannot be taken over by muster.
func (e *Etcd) check() error {
	for _, flag := range []string{"advertise-client-urls", "initial-advertise-peer-urls"} {
		first, _, _ := strings.Cut(e.Flags[flag], ",")
		u, err := url.Parse(first)
		switch {
		case first == "":
			return fmt.Errorf("%s does not set %s, which muster needs to find the member", e.Source, flag)
		case err != nil || u.Hostname() == "":
			return fmt.Errorf("%s sets %s to %q, which is no URL", e.Source, flag, first)
		case u.Scheme != "https":
			return fmt.Errorf("%s sets %s to %s: muster takes over only members that use TLS; make them use it first, or move the data with etcdctl snapshot save and muster restore", e.Source, flag, first)
		}
	}
	if e.Flags["trusted-ca-file"] == "" || e.Flags["cert-file"] == "" {
		return fmt.Errorf("%s names no CA and certificate for clients (trusted-ca-file, cert-file); muster takes over only members that ask their clients for certificates", e.Source)
	}
	return nil
}

// Name is the member's.
func (e *Etcd) Name() string {
	if n := e.Flags["name"]; n != "" {
		return n
	}
	return "default"
}

// DataDir is where the member's data is, on the host.
func (e *Etcd) DataDir() string {
	if d := e.Flags["data-dir"]; d != "" {
		return path.Clean(d)
	}
	return defaultData
}

// ClientURL is the first that the member advertises to clients.
func (e *Etcd) ClientURL() string {
	first, _, _ := strings.Cut(e.Flags["advertise-client-urls"], ",")
	return first
}

// PeerURL is the first that the member advertises to its peers.
func (e *Etcd) PeerURL() string {
	first, _, _ := strings.Cut(e.Flags["initial-advertise-peer-urls"], ",")
	return first
}

// Address is what the members reach the host at.
func (e *Etcd) Address() string { return hostOf(e.PeerURL()) }

// ClientPort is the one of ClientURL.
func (e *Etcd) ClientPort() int { return portOf(e.ClientURL(), defaultClient) }

// PeerPort is the one of PeerURL.
func (e *Etcd) PeerPort() int { return portOf(e.PeerURL(), defaultPeer) }

// MetricsPort is the one of listen-metrics-urls, 0 when there is none.
func (e *Etcd) MetricsPort() int {
	first, _, _ := strings.Cut(e.Flags["listen-metrics-urls"], ",")
	return portOf(first, 0)
}

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func portOf(text string, otherwise int) int {
	u, err := url.Parse(text)
	if err != nil {
		return otherwise
	}
	_, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		return otherwise
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return otherwise
	}
	return n
}

// CA is the path of the certificate that the member trusts clients by, PeerCA
// the one for its peers.
func (e *Etcd) CA() string { return e.Flags["trusted-ca-file"] }

// PeerCA is the path of the certificate that the member trusts its peers by.
func (e *Etcd) PeerCA() string {
	if ca := e.Flags["peer-trusted-ca-file"]; ca != "" {
		return ca
	}
	return e.CA()
}

// CAKeys are the paths where the key of CA may be: beside it, by the names that
// the installers use.
func (e *Etcd) CAKeys() []string {
	dir := path.Dir(e.CA())
	return []string{path.Join(dir, "ca.key"), path.Join(dir, "ca-key.pem")}
}

// Pair is a certificate and its key, on the host.
type Pair struct{ Cert, Key string }

// Clients are the pairs that may identify a client to the member, the best one
// first; the last is the member's own.
func (e *Etcd) Clients() []Pair {
	dir := path.Dir(e.CA())
	pairs := []Pair{
		{path.Join(dir, "healthcheck-client.crt"), path.Join(dir, "healthcheck-client.key")},
		{path.Join(dir, "etcdctl-etcd-client.crt"), path.Join(dir, "etcdctl-etcd-client.key")},
	}
	cert := e.Flags["cert-file"]
	if node, ok := strings.CutPrefix(path.Base(cert), "member-"); ok {
		node = strings.TrimSuffix(node, ".pem")
		pairs = append(pairs, Pair{path.Join(dir, "admin-"+node+".pem"), path.Join(dir, "admin-"+node+"-key.pem")})
	}
	return append(pairs, Pair{cert, e.Flags["key-file"]})
}

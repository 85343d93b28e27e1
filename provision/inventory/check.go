package inventory

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Limits of what is accepted; see the field they belong to.
const (
	minLifetime     = Lifetime(time.Hour)
	maxCALifetime   = 30 * year
	maxLeafLifetime = 10 * year
	maxTokenLength  = 128
	manyVoters      = 7 // etcd's advice: more makes every write slower
)

// check records every problem of a decoded and defaulted cluster.
func (d *document) check(c *Cluster) {
	d.checkName("cluster", c.Name, true)
	d.checkTopology(c.Topology)
	d.checkToken(c.Token)
	d.checkInstance(c)
	d.checkClusterSSH(c.SSH)
	d.checkServer("server", c.Server)
	d.checkPKI(c.PKI)
	d.checkBackup(c)
	d.checkHooks(c.Hooks)
	if c.Practice {
		d.allowLoopback = true
		d.checkPractice(c.Hosts)
	}
	d.checkHosts(c.Hosts)
	d.checkKubernetes(c)
}

var (
	dnsLabel   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	tokenShape = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

func (d *document) checkName(field, name string, required bool) {
	switch {
	case d.bad[field]:
	case name == "" && required:
		d.problem(field, "is missing", "write a short name, such as "+field+": prod")
	case d.given(field) && !dnsLabel.MatchString(name):
		d.problem(field, fmt.Sprintf("%q is not a name", printable(name)),
			"write lowercase letters, digits and inner hyphens, at most 63")
	}
}

func (d *document) checkTopology(t Topology) {
	if !d.given("topology") {
		return
	}
	switch t {
	case External, Stacked:
	default:
		d.problem("topology", fmt.Sprintf("%q is not a topology", printable(string(t))), "write external, or stacked for members that the kubelet runs")
	}
}

func (d *document) checkInstance(c *Cluster) {
	d.checkName("instance", c.Instance, false)
	if d.given("instance") && c.Topology == Stacked {
		d.problem("instance", "a stacked cluster has the machine's one static pod called etcd", "remove it, or write topology: external for this cluster")
	}
}

func (d *document) checkToken(token string) {
	if d.given("token") && (len(token) > maxTokenLength || !tokenShape.MatchString(token)) {
		d.problem("token", fmt.Sprintf("%q is not a token", printable(token)),
			fmt.Sprintf("write letters, digits, dots, hyphens and underscores, at most %d", maxTokenLength))
	}
}

func (d *document) checkPKI(p PKI) {
	caGood := d.checkLifetime("pki.caLifetime", p.CALifetime, maxCALifetime)
	leafGood := d.checkLifetime("pki.leafLifetime", p.LeafLifetime, maxLeafLifetime)
	if caGood && leafGood && p.LeafLifetime > p.CALifetime {
		field := "pki.leafLifetime"
		if !d.given(field) {
			field = "pki.caLifetime"
		}
		d.problem(field, fmt.Sprintf("a leaf valid for %s would outlive a CA valid for %s", p.LeafLifetime, p.CALifetime),
			"write a leafLifetime shorter than the caLifetime")
	}
	if field := "pki.keyAlgorithm"; d.given(field) {
		switch p.KeyAlgorithm {
		case ECDSAP256, RSA2048, RSA4096:
		default:
			d.problem(field, fmt.Sprintf("%q cannot be used by every Kubernetes component", printable(string(p.KeyAlgorithm))),
				fmt.Sprintf("write %s, %s or %s", ECDSAP256, RSA2048, RSA4096))
		}
	}
	for i, san := range p.ExtraSANs {
		field := element("pki.extraSANs", i)
		if !d.given(field) {
			continue
		}
		if fault := addressFault(strings.TrimPrefix(san, "*.")); fault != nil {
			d.problem(field, fmt.Sprintf("%q %s", withoutUser(san), fault.text), "write an IP address or a DNS name")
		}
	}
}

func (d *document) checkLifetime(field string, l, longest Lifetime) bool {
	switch {
	case d.bad[field]:
		return false
	case l < minLifetime && d.given(field):
		d.problem(field, fmt.Sprintf("%s is too short to be of use", l), fmt.Sprintf("write %s or more, such as 365d", minLifetime))
		return false
	case l > longest:
		d.problem(field, fmt.Sprintf("%s is too long: a key that leaks would be good for all that time", l),
			fmt.Sprintf("write %s or less", longest))
		return false
	}
	return true
}

func (d *document) checkServer(field string, s Server) {
	ports := []struct {
		name string
		port int
	}{{"clientPort", s.ClientPort}, {"peerPort", s.PeerPort}, {"metricsPort", s.MetricsPort}}
	users := map[int]string{}
	for _, p := range ports {
		f := join(field, p.name)
		if d.bad[f] {
			continue
		}
		d.checkPort(f, p.port)
		if other, taken := users[p.port]; taken && (d.given(f) || d.given(join(field, other))) {
			d.problem(f, fmt.Sprintf("%d is the %s as well", p.port, other), "write a different port")
		}
		users[p.port] = p.name
	}
	if f := join(field, "dataDir"); d.given(f) {
		d.checkDataDir(f, s.DataDir)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Flags)) {
		if f := join(join(field, "flags"), printable(name)); d.given(f) {
			d.checkFlag(f, name, s.Flags[name])
		}
	}
	if f := join(field, "binary"); d.given(f) {
		if fault := regularFileFault(s.Binary); fault != "" {
			d.problem(f, fmt.Sprintf("%s %s", printable(s.Binary), fault), "write the path of a server for linux")
		}
	}
}

func (d *document) checkPort(field string, port int) {
	if d.given(field) && (port < 1 || port > 65535) {
		d.problem(field, fmt.Sprintf("%d is not a port", port), "write a number from 1 to 65535")
	}
}

// sharedDirectories cannot be given to the server: they are the system's, are
// emptied at boot, or are hidden from it by the sandbox of its unit.
func sharedDirectories() []string {
	return []string{"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var/tmp", "/var/run"}
}

// pathShape leaves out what a shell, systemd or a URL would read as more than
// a letter.
var pathShape = regexp.MustCompile(`^[A-Za-z0-9/._-]+$`)

func (d *document) checkDataDir(field, dir string) {
	inside := func(parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }
	switch {
	case !path.IsAbs(dir):
		d.problem(field, fmt.Sprintf("%q is not an absolute path", printable(dir)), "write a path that starts with /, such as "+DefaultDataDir)
	case !pathShape.MatchString(dir):
		d.problem(field, fmt.Sprintf("%q holds characters that are not safe in a unit", printable(dir)), "write letters, digits, dots, hyphens, underscores and slashes")
	case path.Clean(dir) != dir:
		d.problem(field, fmt.Sprintf("%q is not a plain path", printable(dir)), "write "+path.Clean(dir))
	case slices.Contains([]string{"/", "/var", "/var/lib", "/opt", "/srv", "/mnt", "/media"}, dir):
		d.problem(field, fmt.Sprintf("%q holds more than the server's data", dir), "write a directory of its own, such as "+DefaultDataDir)
	case slices.ContainsFunc(sharedDirectories(), inside):
		d.problem(field, fmt.Sprintf("%q is no place for lasting data", dir), "write a directory of its own, such as "+DefaultDataDir)
	}
}

var flagShape = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// FieldOfFlag returns the field, or the fact, that decides a flag which muster
// sets by itself, and "" for any other flag.
func FieldOfFlag(flag string) string {
	switch flag {
	case "name":
		return "the name of the controller"
	case "data-dir", "wal-dir":
		return "server.dataDir"
	case "listen-client-urls", "advertise-client-urls":
		return "internalAddress and server.clientPort"
	case "listen-peer-urls", "initial-advertise-peer-urls":
		return "internalAddress and server.peerPort"
	case "listen-metrics-urls":
		return "server.metricsPort"
	case "initial-cluster", "initial-cluster-state":
		return "the list of controllers"
	case "initial-cluster-token":
		return "token"
	case "cert-file", "key-file", "client-cert-auth", "trusted-ca-file",
		"peer-cert-file", "peer-key-file", "peer-client-cert-auth", "peer-trusted-ca-file",
		"auto-tls", "peer-auto-tls", "client-crl-file", "peer-crl-file":
		return "pki"
	case "config-file", "version", "discovery", "discovery-srv", "force-new-cluster":
		return "muster"
	}
	return ""
}

func (d *document) checkFlag(field, name, value string) {
	switch owner := FieldOfFlag(name); {
	case isPassword(name):
		d.problem(field, "a password does not belong in an inventory", "remove it")
	case strings.HasPrefix(name, "-"):
		d.problem(field, "starts with a dash", "write the name alone: "+strings.TrimLeft(name, "-"))
	case !flagShape.MatchString(name):
		d.problem(field, "is not the name of a flag", "write lowercase letters, digits and hyphens, such as heartbeat-interval")
	case owner != "":
		d.problem(field, "is set by muster", "remove it; it follows from "+owner)
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
		d.problem(field, "holds a character that a command line cannot carry", "write printable ASCII on one line")
	}
}

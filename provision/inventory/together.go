package inventory

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// Together checks what shows only when the inventories of several clusters are
// used in one run: each needs a name and machines of its own, and certificates
// too unless it is for some resources of the Kubernetes that a sibling is for.
// The error is of type Problems, each at the later of the two clusters. The
// clusters come from Load or LoadAll.
func Together(clusters []*Cluster) error {
	t := together{names: map[string]*Cluster{}, machines: map[string][]tenant{}, apiservers: map[string]*Cluster{}}
	for n, c := range clusters {
		t.taken(c, t.names, c.Name, "cluster", fmt.Sprintf("%q is the name of", c.Name), "give every cluster of one run a name of its own")
		for _, earlier := range clusters[:n] {
			if earlier.PKI.Dir == c.PKI.Dir && earlier != c {
				t.certificates(c, earlier)
			}
		}
		for i, h := range c.Hosts {
			t.machine(c, i, h)
		}
		for i, a := range c.APIServers() {
			t.taken(c, t.apiservers, machineAt(a.Address, a.SSH.Port), join(element("kubernetes.apiservers", i), "address"),
				fmt.Sprintf("%q has the certificates of", a.Address), "list it with one cluster: of those with one pki.dir, the first")
		}
	}
	if len(t.problems) == 0 {
		return nil // not a nil Problems in an interface
	}
	return t.problems
}

// together is what clusters have, by the cluster that has it first.
type together struct {
	names, apiservers map[string]*Cluster
	machines          map[string][]tenant
	problems          Problems
}

// tenant is a cluster on a machine.
type tenant struct {
	cluster *Cluster
	host    Host
}

// machine reports what a controller has in common with that of an earlier cluster
// on the same machine.
func (t *together) machine(c *Cluster, i int, h Host) {
	key, field := machine(h), element("controllers", i)
	for _, earlier := range t.machines[key] {
		other := earlier.cluster
		if other == c {
			continue // the document has told
		}
		if other.Instance == c.Instance {
			hint := "write another machine, or have the two apart there: give this cluster an instance (instance: " + c.Name + "), and ports of its own"
			t.problem(c, join(field, "address"), fmt.Sprintf("%q is a controller of cluster %s", h.Address, other.place()), hint)
			continue
		}
		own, theirs := h.Server, earlier.host.Server
		for _, port := range []int{own.ClientPort, own.PeerPort, own.MetricsPort} {
			if slices.Contains([]int{theirs.ClientPort, theirs.PeerPort, theirs.MetricsPort}, port) {
				t.problem(c, field, fmt.Sprintf("port %d of %q is one of cluster %s", port, h.Address, other.place()), "write other ports under server")
			}
		}
		if own.DataDir == theirs.DataDir {
			t.problem(c, field, fmt.Sprintf("the directory %s of %q is that of cluster %s", own.DataDir, h.Address, other.place()), "write another server.dataDir")
		}
		if c.Backup != nil && other.Backup != nil && c.Backup.Directory == other.Backup.Directory {
			t.problem(c, "backup.directory", fmt.Sprintf("%s of %q is that of cluster %s", c.Backup.Directory, h.Address, other.place()), "write a directory of its own")
		}
	}
	t.machines[key] = append(t.machines[key], tenant{c, h})
}

// taken reports what an earlier cluster has as well.
func (t *together) taken(c *Cluster, by map[string]*Cluster, key, field, text, hint string) {
	if earlier := by[key]; earlier != nil && earlier != c {
		t.problem(c, field, fmt.Sprintf("%s cluster %s", text, earlier.place()), hint)
		return
	}
	by[key] = c
}

func (t *together) problem(c *Cluster, field, text, hint string) {
	t.problems = append(t.problems, c.doc.note(field, text, hint))
}

// place names a cluster and where it is written.
func (c *Cluster) place() string {
	line, _ := c.doc.position("")
	return fmt.Sprintf("%s (%s:%d) as well", c.Name, c.doc.file, line)
}

// certificates reports certificates that a cluster must not share with an
// earlier one.
func (t *together) certificates(c, earlier *Cluster) {
	if !slices.Contains(c.siblings, earlier) || len(c.Resources()) == 0 && len(earlier.Resources()) == 0 {
		t.problem(c, "pki.dir", c.PKI.Dir+" holds the certificates of cluster "+earlier.place(),
			"give every cluster a pki.dir of its own, or say in one file which resources of a Kubernetes each further cluster is for, as kubernetes: {resources: [events]}")
		return
	}
	own, theirs := c.PKI, earlier.PKI
	own.ExtraSANs, theirs.ExtraSANs = nil, nil
	if !reflect.DeepEqual(own, theirs) {
		t.problem(c, "pki", "the certificates are to be made otherwise than those in the same directory, of cluster "+earlier.place(), "write the same under pki in both documents, extraSANs aside")
	}
	for i, h := range c.Hosts {
		if slices.ContainsFunc(earlier.Hosts, func(o Host) bool { return o.Name == h.Name }) {
			t.problem(c, join(element("controllers", i), "name"),
				fmt.Sprintf("%q is the name of a controller, with certificates in the same directory, of cluster %s", h.Name, earlier.place()), fmt.Sprintf("write another one, such as name: %s-%d", c.Name, i))
		}
	}
	for i, r := range c.Resources() {
		if slices.Contains(earlier.Resources(), r) {
			t.problem(c, element("kubernetes.resources", i), r+" is a resource of cluster "+earlier.place(), "remove one of the two")
		}
	}
}

// machine is what tells a host's machine from others: practice hosts share
// addresses and differ in their ports.
func machine(h Host) string { return machineAt(h.Address, h.SSH.Port) }

func machineAt(address string, sshPort int) string {
	if isLoopback(address) {
		return address + " " + strconv.Itoa(sshPort)
	}
	return address
}

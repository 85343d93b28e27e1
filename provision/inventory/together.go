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
	t := together{names: map[string]*Cluster{}, machines: map[string]*Cluster{}, apiservers: map[string]*Cluster{}}
	for n, c := range clusters {
		t.taken(c, t.names, c.Name, "cluster", fmt.Sprintf("%q is the name of", c.Name), "give every cluster of one run a name of its own")
		for _, earlier := range clusters[:n] {
			if earlier.PKI.Dir == c.PKI.Dir && earlier != c {
				t.certificates(c, earlier)
			}
		}
		for i, h := range c.Hosts {
			t.taken(c, t.machines, machine(h), join(element("controllers", i), "address"),
				fmt.Sprintf("%q is a controller of", h.Address), "write another machine: one carries one cluster")
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
	names, machines, apiservers map[string]*Cluster
	problems                    Problems
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

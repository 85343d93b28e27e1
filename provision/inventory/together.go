package inventory

import (
	"fmt"
	"strconv"
)

// Together checks what shows only when the inventories of several clusters are
// used in one run: each needs a name, machines and certificates of its own. The
// error is of type Problems, each at the later of the two clusters. The clusters
// come from Load or LoadAll.
func Together(clusters []*Cluster) error {
	var problems Problems
	names, stores, machines := map[string]*Cluster{}, map[string]*Cluster{}, map[string]*Cluster{}
	for _, c := range clusters {
		taken := func(by map[string]*Cluster, key, field, text, hint string) {
			if earlier := by[key]; earlier != nil && earlier != c {
				line, _ := earlier.doc.position("")
				text := fmt.Sprintf("%s cluster %s (%s:%d) as well", text, earlier.Name, earlier.doc.file, line)
				problems = append(problems, c.doc.note(field, text, hint))
				return
			}
			by[key] = c
		}
		taken(names, c.Name, "cluster", fmt.Sprintf("%q is the name of", c.Name), "give every cluster of one run a name of its own")
		taken(stores, c.PKI.Dir, "pki.dir", c.PKI.Dir+" holds the certificates of", "give every cluster a pki.dir of its own")
		for i, h := range c.Hosts {
			taken(machines, machine(h), join(element("controllers", i), "address"),
				fmt.Sprintf("%q is a controller of", h.Address), "write another machine: one carries one cluster")
		}
	}
	if len(problems) == 0 {
		return nil // not a nil Problems in an interface
	}
	return problems
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

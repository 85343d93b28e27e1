package inventory

import (
	"fmt"
	"regexp"
	"slices"
)

// Kubernetes is what the cluster has to do with the Kubernetes whose store it
// is.
type Kubernetes struct {
	// APIServers are the machines on which a kube-apiserver runs. Each is given
	// the CA's certificate and a client's certificate where kubeadm looks for
	// them, and has to reach every member. A controller may be one of them.
	APIServers []APIServer `yaml:"apiservers,omitempty" json:"apiservers,omitempty"`
	// Resources are those that this cluster is for, when another document of
	// the same file has the cluster for all others: "events", or GROUP/RESOURCE
	// such as "coordination.k8s.io/leases". Both clusters name one pki.dir.
	Resources []string `yaml:"resources,omitempty" json:"resources,omitempty"`
}

// APIServer is one machine on which a kube-apiserver runs.
type APIServer struct {
	// Name is what messages call the machine, a DNS label. Defaults to the
	// controller's when the machine is one, and to apiserver-N, N being the
	// position in the list, from 0.
	Name string `yaml:"name,omitempty" json:"name,omitempty"`
	// Address is the IP or host name the workstation reaches the machine at.
	Address string `yaml:"address" json:"address"`
	// SSH overrides the cluster's connection settings. A controller is logged
	// in to as its own entry says.
	SSH SSH `yaml:"ssh,omitempty" json:"ssh,omitzero"`
}

// APIServers are the machines on which a kube-apiserver runs and which this
// cluster's own document lists.
func (c *Cluster) APIServers() []APIServer {
	if c.Kubernetes == nil {
		return nil
	}
	return c.Kubernetes.APIServers
}

// Callers are the machines on which a kube-apiserver runs that uses this
// cluster: those that a sibling's document lists too, and the controllers of one
// that is stacked.
func (c *Cluster) Callers() []APIServer {
	all := slices.Clone(c.APIServers())
	for _, s := range c.siblings {
		all = append(all, s.APIServers()...)
		if s.Topology == Stacked {
			for _, h := range s.Hosts {
				all = append(all, APIServer{Name: h.Name, Address: h.Address, SSH: h.SSH})
			}
		}
	}
	return all
}

// Resources are those that the cluster is for; none when it is for all that no
// sibling is for.
func (c *Cluster) Resources() []string {
	if c.Kubernetes == nil {
		return nil
	}
	return c.Kubernetes.Resources
}

// Controller is the controller that is the same machine, if there is one.
func (c *Cluster) Controller(a APIServer) (Host, bool) {
	for _, h := range c.Hosts {
		if machineAt(h.Address, h.SSH.Port) == machineAt(a.Address, a.SSH.Port) {
			return h, true
		}
	}
	return Host{}, false
}

func (d *document) fillKubernetes(c *Cluster) {
	if c.Kubernetes == nil {
		return
	}
	for i := range c.Kubernetes.APIServers {
		a := &c.Kubernetes.APIServers[i]
		a.Address = canonical(a.Address)
		d.completeSSH(&a.SSH)
		a.SSH.inherit(c.SSH)
		if h, ok := c.Controller(*a); ok {
			fill(&a.Name, h.Name)
			if f := join(element("kubernetes.apiservers", i), "ssh"); isLoopback(a.Address) || !d.given(f) {
				a.SSH = h.SSH
			}
		}
		fill(&a.Name, fmt.Sprintf("apiserver-%d", i))
	}
}

// resourceShape is a resource of Kubernetes', with its group unless that is the
// core's.
var resourceShape = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[a-z][a-z0-9]*$`)

func (d *document) checkKubernetes(c *Cluster) {
	if c.Kubernetes == nil || d.bad["kubernetes"] {
		return
	}
	if f := "kubernetes.apiservers"; d.given(f) {
		d.checkAPIServers(f, c)
	}
	seen := map[string]bool{}
	for i, resource := range c.Kubernetes.Resources {
		field := element("kubernetes.resources", i)
		switch {
		case !d.given(field):
		case !resourceShape.MatchString(resource):
			d.problem(field, fmt.Sprintf("%q is not a resource", printable(resource)), "write events, or GROUP/RESOURCE such as coordination.k8s.io/leases")
		case seen[resource]:
			d.problem(field, resource+" is given twice", "remove one of the two")
		}
		seen[resource] = true
	}
}

func (d *document) checkAPIServers(list string, c *Cluster) {
	if c.Topology == Stacked {
		d.problem(list, "in the stacked topology every controller has a kube-apiserver", "remove the list, or write topology: external")
		return
	}
	names, machines := map[string]int{}, map[string]int{}
	for i, a := range c.Kubernetes.APIServers {
		field := element(list, i)
		if d.bad[field] {
			continue
		}
		d.checkName(join(field, "name"), a.Name, false)
		if address := join(field, "address"); a.Address == "" && !d.bad[address] {
			d.problem(address, "is missing", "write the IP address or the name of the machine")
		} else {
			d.checkAddress(address, a.Address, true)
		}
		d.checkHostSSH(field, a.SSH)
		d.checkUniqueIn(list, machines, i, join(field, "address"), machineAt(a.Address, a.SSH.Port), a.Address, "machine")
		d.checkUniqueIn(list, names, i, join(field, "name"), a.Name, a.Name, "name")
		d.checkIsController(field, c, a)
	}
}

// checkIsController reports what an API server on a controller, or on another
// machine, must not say.
func (d *document) checkIsController(field string, c *Cluster, a APIServer) {
	own, ok := c.Controller(a)
	for i, h := range c.Hosts {
		switch controller := element("controllers", i); {
		case ok && h.Name == own.Name:
			if f := join(field, "name"); d.given(f) && a.Name != h.Name {
				d.problem(f, fmt.Sprintf("the machine is %s, which is called %q", controller, printable(h.Name)), "remove the line")
			}
			if f := join(field, "ssh"); d.given(f) && !isLoopback(a.Address) {
				d.problem(f, "the machine is "+controller, "write how to log in there")
			}
		case h.Name == a.Name && a.Name != "":
			d.problem(join(field, "name"), fmt.Sprintf("%q is the name of %s, which is another machine", printable(a.Name), controller), "write a different one")
		}
	}
}

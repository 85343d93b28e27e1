package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"muster/provision/found"
	"muster/provision/inventory"
	"muster/provision/step"
)

// FoundEtcd is an etcd that somebody else has installed, as an inventory.
type FoundEtcd struct {
	// Inventory is that of the hosts it is on, without defaults.
	Inventory inventory.Cluster
	// Left are the flags that do not go on, with their reason.
	Left map[string]string
}

// FindEtcd looks for an etcd on the hosts of a cluster, of which only how they
// are reached is used, and reads. With a server the inventory leaves the cluster
// as etcd, run by that program with the data where it is; without, it moves it to
// musterd. Without a topology an etcd of kubeadm's stays in its static pods: its
// upgrades would bring them back. The error of a look that began is a *Failure.
func FindEtcd(ctx context.Context, hosts *inventory.Cluster, o Options, server string, topology inventory.Topology) (*FoundEtcd, error) {
	o = o.withDefaults()
	r, err := begin("adopt", hosts, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	a := &step.Adopt{}
	missing := step.Together("find", func(context.Context, *step.Run) error {
		failed := &step.PreflightError{}
		for _, h := range r.Hosts {
			p := h.Remote.Privilege()
			switch {
			case p.Problem != "":
				failed.Problems = append(failed.Problems, step.Problem{Host: h.Name, Text: fmt.Sprintf("%s cannot become root without a password (%s); allow it, or log in as root", p.User, p.Problem)})
			case a.Old(h.Name) == nil:
				failed.Problems = append(failed.Problems, step.Problem{Host: h.Name, Text: found.ErrNothing.Error() + "; name only hosts that have one"})
			}
		}
		if len(failed.Problems) > 0 {
			return failed
		}
		return nil
	})
	if err := r.Do(ctx, step.EachHost("connect", step.Connect), step.EachHost("look", a.Look), missing); err != nil {
		return nil, diagnose(ctx, r, err)
	}
	f := describe(hosts, a, server)
	f.Inventory.Topology = topology
	byOthers := func(h inventory.Host) bool { return a.Old(h.Name).Installer != found.Kubeadm }
	if topology == "" && !slices.ContainsFunc(hosts.Hosts, byOthers) {
		f.Inventory.Topology = inventory.Stacked
	}
	return f, nil
}

var memberName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// describe makes an inventory of what was found.
func describe(hosts *inventory.Cluster, a *step.Adopt, server string) *FoundEtcd {
	f := &FoundEtcd{Inventory: inventory.Cluster{Name: hosts.Name, Practice: hosts.Practice}, Left: map[string]string{}}
	var flags []map[string]string
	named := map[string]int{}
	for _, h := range hosts.Hosts {
		old := a.Old(h.Name)
		carried, left := old.Carried()
		flags = append(flags, carried)
		maps.Copy(f.Left, left)
		named[old.Name()]++
		one := inventory.Host{Address: h.Address, SSH: h.SSH, Server: inventory.Server{
			ClientPort: other(old.ClientPort(), inventory.DefaultClientPort),
			PeerPort:   other(old.PeerPort(), inventory.DefaultPeerPort),
		}}
		if at := old.Address(); at != h.Address {
			one.InternalAddress = at
		}
		if port := old.MetricsPort(); port != 0 {
			one.Server.MetricsPort = other(port, inventory.DefaultMetricsPort)
		}
		if server != "" {
			one.Server.DataDir = old.DataDir()
		}
		f.Inventory.Hosts = append(f.Inventory.Hosts, one)
	}
	shared, own := found.Shared(flags)
	f.Inventory.Server.Binary, f.Inventory.Server.Flags = server, shared
	for i := range f.Inventory.Hosts {
		h := &f.Inventory.Hosts[i]
		if name := a.Old(hosts.Hosts[i].Name).Name(); memberName.MatchString(name) && named[name] == 1 {
			h.Name = name
		}
		if len(own[i]) > 0 {
			h.Server.Flags = own[i]
		}
	}
	lift(f.Inventory.Hosts, func(h *inventory.Host) *string { return &h.Server.DataDir }, &f.Inventory.Server.DataDir)
	lift(f.Inventory.Hosts, func(h *inventory.Host) *string { return &h.SSH.User }, &f.Inventory.SSH.User)
	lift(f.Inventory.Hosts, func(h *inventory.Host) *string { return &h.SSH.IdentityFile }, &f.Inventory.SSH.IdentityFile)
	return f
}

// other is a port that is not the default, or 0.
func other(port, usual int) int {
	if port == usual {
		return 0
	}
	return port
}

// lift moves what all hosts have in common to the top.
func lift(hosts []inventory.Host, field func(*inventory.Host) *string, top *string) {
	first := *field(&hosts[0])
	if slices.ContainsFunc(hosts, func(h inventory.Host) bool { return *field(&h) != first }) {
		return
	}
	*top = first
	for i := range hosts {
		*field(&hosts[i]) = ""
	}
}

// CheckAdoption says what Adopt would do, or why it would not. It only reads.
func CheckAdoption(ctx context.Context, cluster *inventory.Cluster, o Options) (*step.Takeover, error) {
	o = o.withDefaults()
	r, err := begin("adopt", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	a := &step.Adopt{}
	err = r.Do(ctx,
		step.EachHost("connect", step.Connect),
		step.EachHost("facts", step.LookOnly),
		step.EachHost("look", a.Look),
		step.Together("survey", a.Survey),
		step.Together("examine", a.Examine),
	)
	var wrong *step.PreflightError
	if errors.As(err, &wrong) {
		return nil, wrong
	}
	if err != nil {
		return nil, diagnose(ctx, r, err)
	}
	t := a.Describe(r)
	return &t, nil
}

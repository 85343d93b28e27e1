package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/plan"
	"muster/provision/probe"
	"muster/provision/step"
)

// Finding is something that is not as it should be.
type Finding struct {
	// Where is a host, "HOST -> HOST", or "cluster".
	Where  string `json:"where"`
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
}

// Checkup is what Doctor has found. Its JSON form is stable.
type Checkup struct {
	Cluster  string      `json:"cluster"`
	Findings []Finding   `json:"findings"`
	Hosts    []HostCheck `json:"hosts"`
	Pairs    []PairCheck `json:"pairs"`
	Timeouts Timeouts    `json:"timeouts"`
}

// HostCheck is what was measured on one host.
type HostCheck struct {
	Name    string `json:"name"`
	Reached bool   `json:"reached"`
	Machine string `json:"machine,omitempty"` // uname -m
	Systemd int    `json:"systemd,omitempty"` // version
	// ClockOffset is the host's clock minus the workstation's.
	ClockOffset time.Duration `json:"clockOffsetNanoseconds"`
	// Free is on the disk of the data directory, in bytes.
	Free int64 `json:"free"`
	// Sync is what flushing a small write to that disk takes.
	Sync probe.Sync `json:"sync"`
}

// PairCheck is how one host reaches a port of another one's member.
type PairCheck struct {
	From    string     `json:"from"`
	To      string     `json:"to"`
	Port    string     `json:"port"` // "peer" or "client"
	Address string     `json:"address"`
	Trip    probe.Trip `json:"trip"`
}

// Timeouts are etcd's, in milliseconds.
type Timeouts struct {
	Heartbeat         int `json:"heartbeat"` // in force, as the inventory has it
	Election          int `json:"election"`
	ProposedHeartbeat int `json:"proposedHeartbeat"`
	ProposedElection  int `json:"proposedElection"`
	// RoundTrip is the slowest one between two hosts, Sync the slowest flush at
	// the 99th percentile; they are 0 when nothing was measured.
	RoundTrip time.Duration `json:"roundTripNanoseconds"`
	Sync      time.Duration `json:"syncNanoseconds"`
}

// measureLimit bounds the measurements.
const measureLimit = 30 * time.Second

// Doctor looks for what is wrong, or will be, with the hosts, the network
// between them and the cluster on them, installed or not. Nothing is changed;
// to measure, a program is placed in a temporary directory of hosts that have
// none. An error means that nothing could be looked at.
func Doctor(ctx context.Context, cluster *inventory.Cluster, o Options) (*Checkup, error) {
	o = o.withDefaults()
	r, err := begin("doctor", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	ca, client, pkiErr := pki.OpenClient(cluster.PKI.Dir)
	r.Bundle.CA, r.Bundle.HealthcheckClient = ca, client
	d := &doctor{run: r, checkup: Checkup{Cluster: cluster.Name, Findings: []Finding{}}}
	d.reach(ctx)
	d.reachAPIServers(ctx)
	if err := d.examine(ctx); err != nil {
		return nil, err
	}
	if pkiErr == nil {
		d.members(ctx)
		if err := d.fromAPIServers(ctx); err != nil {
			return nil, err
		}
	}
	d.measure(ctx)
	return &d.checkup, ctx.Err()
}

// doctor is one Doctor at work.
type doctor struct {
	run     *step.Run
	mu      sync.Mutex
	checkup Checkup
}

func (d *doctor) find(where, what, remedy string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.checkup.Findings = append(d.checkup.Findings, Finding{where, what, remedy})
}

// findText is find for a text that has its remedy behind a semicolon.
func (d *doctor) findText(where, text string) {
	what, remedy, _ := strings.Cut(text, "; ")
	d.find(where, what, remedy)
}

// reach connects to the hosts and looks at them. A host that does not say what
// it is, is as good as not reached.
func (d *doctor) reach(ctx context.Context) {
	errs := reach(ctx, d.run)
	var wg sync.WaitGroup
	for i, h := range d.run.Hosts {
		if h.Remote != nil {
			wg.Go(func() { errs[i] = step.LookOnly(ctx, h) })
		}
	}
	wg.Wait()
	for i, h := range d.run.Hosts {
		if errs[i] != nil {
			d.findText(h.Name, errs[i].Error())
		}
		check := HostCheck{Name: h.Name, Reached: errs[i] == nil}
		if check.Reached {
			f := h.Facts
			check.Machine, check.Systemd, check.ClockOffset, check.Free = f.Machine, f.Systemd, f.ClockOffset, f.Free["data"]
		}
		d.checkup.Hosts = append(d.checkup.Hosts, check)
	}
}

// reachAPIServers is reach for the machines with a kube-apiserver.
func (d *doctor) reachAPIServers(ctx context.Context) {
	var wg sync.WaitGroup
	for _, a := range d.run.APIServers {
		wg.Go(func() {
			if err := step.LookAtAPIServer(ctx, a); err != nil {
				d.findText(a.Name, err.Error())
			}
		})
	}
	wg.Wait()
}

// fromAPIServers asks the members that run from the machines with a
// kube-apiserver, as that would, and looks at what it would do so with.
func (d *doctor) fromAPIServers(ctx context.Context) error {
	if len(d.run.APIServers) == 0 {
		return nil
	}
	in, err := d.run.PKI.Inspect(desired.Certificates(d.run.Cluster))
	if err != nil {
		return err
	}
	running := map[string]bool{}
	for _, h := range d.run.Hosts {
		running[h.Name] = h.Remote != nil && h.Facts.Unit.Active == "active"
	}
	var wg sync.WaitGroup
	for _, a := range d.run.APIServers {
		if a.Remote == nil {
			continue
		}
		wg.Go(func() {
			missing := func(c plan.Change) bool { return c.Kind != plan.Directory }
			if changes := (plan.Host{Want: a.Wanted(in.Bundle), Have: a.Facts}).CompareFiles(); slices.ContainsFunc(changes, missing) {
				d.find(a.Name, "the certificates for its kube-apiserver are not the cluster's", "muster plan says what differs; muster apply delivers them")
			}
			unreached, err := step.Reach(ctx, a, in.Bundle)
			if err != nil {
				d.find(a.Name, "it was not looked whether the members can be reached from there: "+err.Error(), "muster certs check")
			}
			for _, u := range unreached {
				if running[u.Member] {
					d.find(a.Name+" -> "+u.Member, "the member cannot be used from there: "+u.Err.Error(), u.Remedy())
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// looked says that the host's facts are known.
func (d *doctor) looked(i int) bool { return d.checkup.Hosts[i].Reached }

// members asks the members, as status does.
func (d *doctor) members(ctx context.Context) {
	installed := false
	for _, h := range d.run.Hosts {
		installed = installed || h.Remote != nil && h.Facts.Unit.Loaded
	}
	if !installed {
		return
	}
	// A member that does not run has nothing to say, and that is found already.
	s := survey(ctx, d.run, func(h *step.Host) bool { return h.Remote != nil && h.Facts.Unit.Running() })
	versions := map[string][]string{}
	for i, m := range s.Members {
		if !d.looked(i) || !d.run.Hosts[i].Facts.Unit.Loaded {
			continue
		}
		if m.Version != "" {
			versions[m.Version] = append(versions[m.Version], m.Name)
		}
		if !m.Healthy && d.run.Hosts[i].Facts.Unit.Active == "active" { // else that is what is wrong
			d.find(m.Name, "the member is not healthy: "+m.Problem, "muster logs "+m.Name)
		}
		record := d.run.Hosts[i].Facts.Record.ClusterID
		if record != "" && s.ClusterID != "" && record != s.ClusterID {
			d.find(m.Name, fmt.Sprintf("this host was verified in cluster %s, and the members that answer are in cluster %s", record, s.ClusterID), "find out which of the two holds the data that is wanted, before anything is started or stopped")
		}
	}
	if s.Problem != "" {
		d.find("cluster", s.Problem, "muster status shows each member; muster logs what they say")
	}
	if len(versions) > 1 {
		d.find("cluster", fmt.Sprintf("the members run %d different versions", len(versions)), "muster apply installs one, member by member")
	}
}

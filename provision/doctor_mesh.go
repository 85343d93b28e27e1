package provision

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"muster/provision/step"
)

const (
	// etcd's own, config.go.
	defaultHeartbeat = 100
	defaultElection  = 1000
	maxElection      = 50_000
	// syncWarning is the 99th percentile that etcd's hardware guide asks for.
	syncWarning = 10 * time.Millisecond
)

// measure has the hosts measure each other and their disks.
func (d *doctor) measure(ctx context.Context) {
	d.checkup.Timeouts = inForce(d.run)
	ctx, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	mesh := step.MeasureMesh(ctx, d.run)
	for i, h := range d.run.Hosts {
		if err := mesh.Failed[h.Name]; err != nil {
			d.findText(h.Name, fmt.Sprintf("nothing was measured: %v", err))
		}
		m, ok := mesh.Hosts[h.Name]
		if !ok {
			continue
		}
		d.checkup.Hosts[i].Sync = m.Sync
		d.disk(h, i)
		for _, to := range d.run.Hosts {
			if to == h && len(d.run.Hosts) > 1 {
				continue
			}
			peer, client := to.Ports()
			d.pair(PairCheck{From: h.Name, To: to.Name, Port: "peer", Address: peer, Trip: m.Trips[peer]}, mesh)
			d.pair(PairCheck{From: h.Name, To: to.Name, Port: "client", Address: client, Trip: m.Trips[client]}, mesh)
		}
	}
	d.propose()
}

func (d *doctor) disk(h *step.Host, i int) {
	s := d.checkup.Hosts[i].Sync
	switch {
	case s.Error != "":
		d.find(h.Name, "the disk was not measured: "+s.Error, "")
	case s.P99 > syncWarning:
		d.find(h.Name, fmt.Sprintf("flushing a write to the disk of %s takes %v at the 99th percentile, more than %v", h.Want.Member.DataDir, round(s.P99), syncWarning), "put the data on an SSD of its own (server.dataDir); every write waits for it")
	}
	d.checkup.Timeouts.Sync = max(d.checkup.Timeouts.Sync, s.P99)
}

func (d *doctor) pair(p PairCheck, mesh *step.Mesh) {
	d.checkup.Pairs = append(d.checkup.Pairs, p)
	_, listens := mesh.Hosts[p.To]
	switch {
	case p.Trip.Error == "":
		if p.From != p.To {
			d.checkup.Timeouts.RoundTrip = max(d.checkup.Timeouts.RoundTrip, p.Trip.Median)
		}
	case listens: // else the host itself is what is wrong
		d.find(p.From+" -> "+p.To, fmt.Sprintf("the %s port of %s cannot be reached from %s: %s", p.Port, p.To, p.From, p.Trip.Error),
			fmt.Sprintf("let TCP connections to %s pass, in the firewalls of and between the hosts; is internalAddress the right one?", p.Address))
	}
}

// inForce are the timeouts that the inventory asks for.
func inForce(r *step.Run) Timeouts {
	t := Timeouts{Heartbeat: defaultHeartbeat, Election: defaultElection}
	for _, h := range r.Hosts {
		if ms, err := strconv.Atoi(h.Server.Flags["heartbeat-interval"]); err == nil {
			t.Heartbeat = ms
		}
		if ms, err := strconv.Atoi(h.Server.Flags["election-timeout"]); err == nil {
			t.Election = ms
		}
	}
	return t
}

// propose works out timeouts from what was measured. etcd's tuning guide wants
// a heartbeat of about the slowest round trip, at most one and a half of it,
// and an election timeout of at least ten round trips; a member that flushes
// slowly answers late, too. Nothing shorter than etcd's defaults is proposed.
func (d *doctor) propose() {
	t := &d.checkup.Timeouts
	trip, flush := float64(t.RoundTrip)/float64(time.Millisecond), float64(t.Sync)/float64(time.Millisecond)
	t.ProposedHeartbeat = max(defaultHeartbeat, upTo(1.5*trip, 10))
	t.ProposedElection = min(maxElection, max(defaultElection, 10*t.ProposedHeartbeat, upTo(10*(trip+flush), 100)))
	if float64(t.Heartbeat) < trip || float64(t.Election) < 10*(trip+flush) {
		d.find("cluster", fmt.Sprintf("a heartbeat of %d ms and an election timeout of %d ms are short for round trips of %v and a disk that flushes in %v", t.Heartbeat, t.Election, round(t.RoundTrip), round(t.Sync)),
			fmt.Sprintf("write under server: flags: {heartbeat-interval: %q, election-timeout: %q}", strconv.Itoa(t.ProposedHeartbeat), strconv.Itoa(t.ProposedElection)))
	}
}

// upTo rounds up to a multiple.
func upTo(ms float64, multiple int) int {
	n := int(ms / float64(multiple))
	if float64(n*multiple) < ms {
		n++
	}
	return n * multiple
}

// round leaves what can be told from noise.
func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Millisecond:
		return d.Round(time.Millisecond)
	case d > time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

package step

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/member"
	"muster/provision/observed"
	"muster/provision/plan"
	"muster/provision/remote"
)

// Programs supplies the programs to install.
type Programs interface {
	// Find returns a program for linux on an architecture, as Go names it.
	// The source is the path the inventory gives, usually empty.
	Find(ctx context.Context, program, source, arch string) (*remote.Payload, error)
	// Image returns the container image of the server, as a tar archive, and its
	// name. The source is the path of the server that the inventory gives.
	Image(ctx context.Context, source, arch string) (name string, image *remote.Payload, err error)
}

// Run is one operation on one cluster: what its steps share.
type Run struct {
	Operation string // "apply"
	Cluster   *inventory.Cluster
	Hosts     []*Host // in the order of the inventory
	// APIServers are the machines with a kube-apiserver. They run no member.
	APIServers []*Host
	PKI        *pki.Store
	Bundle     pki.Bundle
	Rotation   pki.Rotation // of the CA, where an operation has one
	// Replaces names the host whose member is dead and makes room for a new
	// one; empty for none.
	Replaces string
	// Plan is what is to be done, once that is known.
	Plan *plan.Plan
	// Views is what the members said when they were verified, by name.
	Views map[string]member.View

	Dialer   *remote.Dialer
	Programs Programs
	Shares   bool // the dialer and the programs with other runs
	Reporter Reporter
	Log      *slog.Logger
	// Concurrency is how many hosts are worked on at once.
	Concurrency int
	// ReadyTimeout bounds the wait for a member, or the cluster, to be ready.
	ReadyTimeout time.Duration

	changes    atomic.Int64
	approved   *plan.Plan
	toMake     []pki.Change // certificates that are not there yet
	roster     roster
	replacedID uint64                       // of the member that makes room
	saved      bool                         // a snapshot precedes the changes
	bootstraps map[string]desired.Bootstrap // by host, where they are not Founding
	images     map[string]string            // of the containers, by host; see nameImages
	hooks      hookState
	recognizes bool // certificates that somebody else has renewed
	sealed     bool // the cluster refuses writes on purpose, see Adopt
}

// Host is one controller during a run, or a machine with a kube-apiserver.
type Host struct {
	inventory.Host
	// controller is the same machine as one with a kube-apiserver; nil when
	// that is a machine of its own.
	controller *Host
	// OnlyCalls says of a machine with a kube-apiserver that another cluster
	// brings what belongs onto it.
	OnlyCalls bool
	// Want is what the host should have. Until the certificates are made, the
	// content of its files is not known, but their paths are.
	Want desired.Host
	// Remote is the connection; nil before Connect and when it failed.
	Remote *remote.Host
	Facts  observed.Facts

	run  *Run
	lock *heldLock
	// restart says that the running member does not use what is installed.
	restart bool
	// joins says that the member is added to a cluster that runs, rolls that
	// it runs well and has to be restarted.
	joins, rolls bool
	// replaced says that the host's old member makes room for a new one.
	replaced bool
	step     string // the one at work, for events
	hooks    hostHooks
}

// AddHosts makes a Host of each controller.
func (r *Run) AddHosts(want []desired.Host) {
	for i, h := range r.Cluster.Hosts {
		r.Hosts = append(r.Hosts, &Host{Host: h, Want: want[i], run: r})
	}
	r.addAPIServers()
}

// Expected is what the members should say of each other.
func (r *Run) Expected() []member.Expected {
	expected := make([]member.Expected, len(r.Hosts))
	for i, h := range r.Hosts {
		m := h.Want.Member
		expected[i] = member.Expected{Name: m.Name, PeerURL: m.PeerURL, ClientURL: m.ClientURL}
	}
	return expected
}

// Changes is how many changes were made so far.
func (r *Run) Changes() int { return int(r.changes.Load()) }

// Close releases the locks and closes the connections.
func (r *Run) Close() error {
	all := slices.Concat(r.Hosts, r.APIServers)
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, h := range all {
		if h.Remote == nil || h.controller != nil {
			continue
		}
		wg.Go(func() {
			if h.lock != nil {
				h.lock.release()
			}
			errs[i] = h.Remote.Close()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *Run) report(kind Kind, step, host, text string) {
	r.Reporter.Report(Event{Time: time.Now(), Kind: kind, Step: step, Host: host, Text: text})
}

// change makes one change on the workstation.
func (r *Run) change(step, sentence string) {
	r.changes.Add(1)
	r.report(Changed, step, "", sentence)
}

// Change makes one change on the host. Every change goes through here. The
// sentence says what is changed, in the past tense.
func (h *Host) Change(ctx context.Context, sentence string, do func(context.Context) error) error {
	return h.changeTogether(ctx, []string{sentence}, do)
}

// changeTogether is Change for several changes that one call makes.
func (h *Host) changeTogether(ctx context.Context, sentences []string, do func(context.Context) error) error {
	if err := h.beforeChange(ctx); err != nil {
		return err
	}
	if err := do(ctx); err != nil {
		return err
	}
	for _, sentence := range sentences {
		h.run.changes.Add(1)
		h.run.report(Changed, h.step, h.Name, sentence)
	}
	return nil
}

// changeByScript makes one change by one script, run as root.
func (h *Host) changeByScript(ctx context.Context, sentence string, c remote.Command) error {
	return h.Change(ctx, sentence, func(ctx context.Context) error {
		_, err := h.Remote.Run(ctx, c)
		return err
	})
}

// warn tells something that does not stop the operation.
func (h *Host) warn(text string) { h.run.report(Warning, h.step, h.Name, text) }

// unit is what the host runs its member by.
func (h *Host) unit() desired.Unit { return h.Want.Units[0] }

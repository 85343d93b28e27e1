package provision

import (
	"context"
	"log/slog"
	"time"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/plan"
	"muster/provision/remote"
	"muster/provision/step"
)

// Defaults of Options.
const (
	DefaultConcurrency  = 30
	DefaultReadyTimeout = time.Minute
	// StackedReadyTimeout is for members that the kubelet runs, and as long as
	// kubeadm waits for one of its static pods. Before it starts another pod in
	// the place of one, the kubelet tells its API server, and where that has lost
	// its etcd each question lasts half a minute.
	StackedReadyTimeout = 5 * time.Minute
)

// Options of an operation.
type Options struct {
	SSH remote.Options
	// CAKeys opens the CA's key when something has to be signed.
	CAKeys pki.Keys
	// BinaryDir holds the programs to install; empty to look for them beside
	// muster and then to make them from the checkout.
	BinaryDir string
	// Concurrency is how many hosts are worked on at once.
	Concurrency int
	// ReadyTimeout bounds each wait for members to be ready. It defaults to
	// DefaultReadyTimeout or StackedReadyTimeout, by the cluster's topology.
	ReadyTimeout time.Duration
	// Confirm is shown the plan of an Apply that has something to do and says
	// whether to go on. Meanwhile nothing is locked. Nil to go on.
	Confirm func(context.Context, *plan.Plan) (bool, error)
	// Approved is the fingerprint of the one plan that Apply may carry out;
	// empty for any.
	Approved string
	// Show is given the plan that is carried out; nil for nobody.
	Show func(*plan.Plan)
	// Fleet is shared with the operations on other clusters; nil for an
	// operation on its own.
	Fleet *Fleet
	// Reporter is told what happens; nil for nobody.
	Reporter step.Reporter
	Log      *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Concurrency <= 0 {
		o.Concurrency = DefaultConcurrency
	}
	if o.Reporter == nil {
		o.Reporter = nobody{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.SSH.Log == nil {
		o.SSH.Log = o.Log
	}
	return o
}

func (o Options) readyTimeout(cluster *inventory.Cluster) time.Duration {
	switch {
	case o.ReadyTimeout > 0:
		return o.ReadyTimeout
	case cluster.Topology == inventory.Stacked:
		return StackedReadyTimeout
	default:
		return DefaultReadyTimeout
	}
}

type nobody struct{}

func (nobody) Report(step.Event) {}

// begin prepares a run of the steps of one operation. Nothing is connected to
// yet.
func begin(operation string, cluster *inventory.Cluster, o Options) (*step.Run, error) {
	r := &step.Run{
		Operation:    operation,
		Cluster:      cluster,
		PKI:          pki.Open(cluster.PKI.Dir, o.CAKeys),
		Reporter:     o.Reporter,
		Log:          o.Log,
		Concurrency:  o.Concurrency,
		ReadyTimeout: o.readyTimeout(cluster),
	}
	if o.Fleet != nil {
		r.Dialer, r.Programs, r.Shares = o.Fleet.dialer, o.Fleet.programs, true
		r.PKI = o.Fleet.store(cluster.PKI.Dir, o.CAKeys)
		return r, step.Outline(r)
	}
	dialer, err := remote.NewDialer(o.SSH)
	if err != nil {
		return nil, err
	}
	r.Dialer, r.Programs = dialer, newPrograms(o)
	return r, step.Outline(r)
}

package provision

import (
	"context"
	"sync"
	"time"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/snapshot"
	"muster/provision/step"
)

// backupSteps is what Backup does once the hosts that can be reached are
// connected.
func backupSteps(place snapshot.Place, saved **snapshot.Saved) []step.Step {
	return []step.Step{
		step.Together("snapshot", func(ctx context.Context, r *step.Run) (err error) {
			*saved, err = step.TakeSnapshot(ctx, r, place)
			return err
		}),
	}
}

// Backup saves a snapshot of the cluster on the workstation. One member that
// answers is enough, as long as the cluster has a leader. No host is changed,
// and no lock is taken.
func Backup(ctx context.Context, cluster *inventory.Cluster, o Options, place snapshot.Place) (*snapshot.Saved, error) {
	o = o.withDefaults()
	r, unreachable, err := beginAsking(ctx, "backup", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	if err := someReached(r, unreachable); err != nil {
		return nil, diagnose(ctx, r, err)
	}
	tellUnreached(r, unreachable)
	var saved *snapshot.Saved
	if err := r.Do(ctx, backupSteps(place, &saved)...); err != nil {
		return nil, diagnose(ctx, r, err)
	}
	return saved, nil
}

// beginAsking prepares a run that changes nothing and asks whoever can be
// reached. The errors say, in the order of the hosts, who cannot and why.
func beginAsking(ctx context.Context, operation string, cluster *inventory.Cluster, o Options) (*step.Run, []error, error) {
	ca, client, err := pki.OpenClient(cluster.PKI.Dir)
	if err != nil {
		return nil, nil, err
	}
	r, err := begin(operation, cluster, o)
	if err != nil {
		return nil, nil, err
	}
	r.Bundle.CA, r.Bundle.HealthcheckClient = ca, client
	return r, reach(ctx, r), nil
}

// reach connects to every host, and returns who cannot be reached and why, in
// the order of the hosts.
func reach(ctx context.Context, r *step.Run) []error {
	unreachable := make([]error, len(r.Hosts))
	var wg sync.WaitGroup
	for i, h := range r.Hosts {
		wg.Go(func() { unreachable[i] = step.Connect(ctx, h) })
	}
	wg.Wait()
	return unreachable
}

// someReached is an error when no host can be reached.
func someReached(r *step.Run, unreachable []error) error {
	var failed step.Errors
	for i, h := range r.Hosts {
		if unreachable[i] == nil {
			return nil
		}
		failed = append(failed, &step.Error{Step: "connect", Host: h.Name, Err: unreachable[i]})
	}
	return failed
}

// tellUnreached warns about the hosts an operation goes on without.
func tellUnreached(r *step.Run, unreachable []error) {
	for i, h := range r.Hosts {
		if unreachable[i] != nil {
			r.Reporter.Report(step.Event{Time: time.Now(), Kind: step.Warning, Step: "connect", Host: h.Name, Text: unreachable[i].Error()})
		}
	}
}

package provision

import (
	"context"
	"errors"
	"time"

	"muster/provision/inventory"
	"muster/provision/step"
)

// applySteps is what Apply does, in order. Hosts pass through neighbouring
// EachHost steps independently of each other; a Together step waits for all.
//
// The lock comes before the facts so that they cannot change any more, and
// preflight comes before everything that outlives the run. While somebody
// thinks about the plan nothing is locked: what was seen then is seen again.
func applySteps(o Options, cluster *inventory.Cluster) []step.Step {
	look, deliver := apiServerSteps(cluster)
	steps := []step.Step{step.EachHost("connect", step.Connect)}
	if o.Confirm != nil {
		steps = append(steps, step.EachHost("look", step.LookOnly))
		steps = append(steps, look...)
		steps = append(steps,
			step.Together("survey", step.Survey),
			step.Together("preflight", step.Preflight),
			step.Together("plan", step.MakePlan),
			step.Together("confirm", step.Approve(o.Confirm)),
		)
	}
	steps = append(steps,
		step.Together("lock", step.Lock),
		step.EachHost("facts", step.GatherFacts),
	)
	steps = append(steps, look...)
	steps = append(steps,
		step.Together("survey", step.Survey),
		step.Together("preflight", step.Preflight),
		step.Together("plan", step.MakePlan),
		step.Together("compare", step.Agreed(o.Approved)),
		step.Together("show", step.Show(o.Show)),
	)
	steps = append(steps,
		step.Together("certificates", step.MakeCertificates),
		step.EachHost("account", step.MakeAccount),
		step.EachHost("directories", step.MakeDirectories),
		step.EachHost("programs", step.Rolling(step.InstallPrograms)),
		step.EachHost("files", step.Rolling(step.InstallFiles)),
		step.EachHost("unit", step.Rolling(step.InstallUnit)),
		step.Together("start", step.StartMembers),
		step.Together("prune members", step.PruneMembers),
		step.EachHost("make room", step.PutReplacedAside),
		step.Together("roll", step.RollMembers),
		step.Together("ready", step.AwaitReady),
		step.EachHost("backups", step.InstallBackup),
		step.Together("members", step.ChangeMembers),
		step.Together("verify", step.Verify),
		step.EachHost("tidy images", step.TidyImages),
	)
	return append(steps, deliver...)
}

// apiServerSteps are those that look at the machines with a kube-apiserver, and
// those that bring them what they need of a cluster that has been verified.
func apiServerSteps(cluster *inventory.Cluster) (look, deliver []step.Step) {
	if len(cluster.Callers()) == 0 {
		return nil, nil
	}
	return []step.Step{step.Together("look at kube-apiservers", step.LookAtAPIServers)}, []step.Step{
		step.Together("deliver", step.Deliver),
		step.Together("reach", step.VerifyAPIServers),
	}
}

// Report is the outcome of an Apply that succeeded.
type Report struct {
	// Changes is how many changes were made; 0 when the cluster was as the
	// inventory wants it.
	Changes int
	Elapsed time.Duration
	Status  Status
}

// Apply makes the hosts what the inventory says and verifies the cluster they
// form: members are added and removed too. It may be run again at any time, and
// after a run that failed or was killed it goes on from what is there. It does
// what its plan says and nothing else, never deletes data and never founds a
// cluster over data that exists. The error of a run that began is a *Failure;
// when Options.Confirm declines it is ErrDeclined.
func Apply(ctx context.Context, cluster *inventory.Cluster, o Options) (*Report, error) {
	return apply(ctx, cluster, o, "")
}

// Replace is Apply that gives a host whose member is dead a new member. The host
// may be another machine, at the same address or at a new one in the inventory.
// The dead member is removed from the cluster; data of it that the host still
// has is moved aside. Nothing is replaced when the member answers.
func Replace(ctx context.Context, cluster *inventory.Cluster, o Options, host string) (*Report, error) {
	if _, err := Select(cluster, []string{host}); err != nil {
		return nil, err
	}
	return apply(ctx, cluster, o, host)
}

func apply(ctx context.Context, cluster *inventory.Cluster, o Options, replaces string) (*Report, error) {
	begun := time.Now()
	o = o.withDefaults()
	operation := "apply"
	if replaces != "" {
		operation = "replace"
	}
	r, err := begin(operation, cluster, o)
	if err != nil {
		return nil, err
	}
	r.Replaces = replaces
	defer finish(r)
	if err := r.Do(ctx, applySteps(o, cluster)...); err != nil {
		if errors.Is(err, step.ErrDeclined) {
			return nil, ErrDeclined
		}
		return nil, diagnose(ctx, r, err)
	}
	return &Report{Changes: r.Changes(), Elapsed: time.Since(begun), Status: verified(r)}, nil
}

// finish runs the hooks after a run and closes what it has open. What was asked for has happened, or its
// failure was told: a connection that does not close cleanly is only noted.
func finish(r *step.Run) {
	r.AfterHooks()
	if err := r.Close(); err != nil {
		r.Log.Debug("close the connections", "error", err)
	}
	if r.Shares {
		return
	}
	if err := r.Dialer.Close(); err != nil {
		r.Log.Debug("close the bastions", "error", err)
	}
}

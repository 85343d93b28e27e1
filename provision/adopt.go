package provision

import (
	"context"
	"errors"
	"time"

	"muster/provision/inventory"
	"muster/provision/step"
)

// AdoptOptions say how an etcd is taken over.
type AdoptOptions struct {
	// CAKey is the key of the old cluster's CA in PEM, when no host has it.
	CAKey []byte
	// Confirm is shown what will happen and says whether to go on; nil to go on.
	Confirm func(context.Context, step.Takeover) (bool, error)
	// Undo starts the old members of an interrupted run again instead.
	Undo bool
}

// AdoptReport is the outcome of an Adopt that succeeded.
type AdoptReport struct {
	Changes int
	Elapsed time.Duration
	// Pause is for how long writes were refused; 0 when the members went on with
	// their data one after the other, or when an earlier run has begun it.
	Pause  time.Duration
	Status Status
}

// lookSteps is how an adoption begins: nothing is changed.
func lookSteps(a *step.Adopt) []step.Step {
	return []step.Step{
		step.EachHost("connect", step.Connect),
		step.Together("lock", step.Lock),
		step.EachHost("facts", step.GatherFacts),
		step.EachHost("look", a.Look),
		step.Together("survey", a.Survey),
	}
}

// adoptSteps is what Adopt does then, in order.
func adoptSteps(a *step.Adopt, inPlace bool) []step.Step {
	steps := []step.Step{
		step.Together("authority", a.ImportCA),
		step.Together("certificates", step.MakeCertificates),
		step.EachHost("account", step.MakeAccount),
		step.EachHost("directories", a.MakeDirectories),
		step.EachHost("programs", step.InstallPrograms),
		step.EachHost("check the program", a.CheckProgram),
		step.EachHost("files", step.InstallFiles),
	}
	if inPlace {
		return append(steps,
			step.Together("take over", a.TakeOver),
			step.Together("ready", step.AwaitReady),
			step.Together("verify", step.Verify),
		)
	}
	return append(steps,
		step.Together("resume", a.Resume),
		step.Together("rehearse", a.Rehearse),
		step.Together("move", a.Guarded(
			step.Together("seal", a.Seal),
			step.EachHost("snapshot", a.Upload),
			step.EachHost("note", a.Note),
			step.Together("stop", a.Stop),
			step.EachHost("put aside", a.PutAside),
			step.EachHost("data directory", step.MakeDataDirectory),
			step.EachHost("unit", step.InstallUnit),
			step.Together("start", step.StartMembers),
			step.Together("ready", step.AwaitReady),
			step.Together("compare", a.Compare),
		)),
		step.EachHost("finish", a.Finish),
		step.Together("unseal", a.Unseal),
		step.Together("verify", step.Verify),
		step.EachHost("tidy", a.Tidy),
	)
}

// Adopt takes over an etcd that kubeadm, etcdadm or kubespray has installed on
// the hosts of the inventory. Its members go on, one at a time, with the data
// they have when the inventory names etcd as the server and their data directory
// as dataDir. Otherwise the data is moved by a snapshot, and writes are refused
// for as long as that takes. The cluster's CA stays. Nothing is deleted, and what
// ran the old members is kept beside.
//
// It may be run again at any time: a run that failed or was killed is gone on
// with, and a cluster that was taken over is only verified.
func Adopt(ctx context.Context, cluster *inventory.Cluster, o Options, how AdoptOptions) (*AdoptReport, error) {
	begun := time.Now()
	o = o.withDefaults()
	r, err := begin("adopt", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	a := &step.Adopt{CAKey: how.CAKey}
	err = r.Do(ctx, lookSteps(a)...)
	switch {
	case err != nil:
	case how.Undo:
		err = r.Do(ctx, step.Together("confirm", a.ConfirmReturn(how.Confirm)), step.Together("undo", a.Undo))
	default:
		err = r.Do(ctx, step.Together("preflight", a.Preflight), step.Together("confirm", a.Confirm(how.Confirm)))
		if err == nil && step.Over(r) {
			err = r.Do(ctx, step.Together("ready", step.AwaitReady), step.Together("verify", step.Verify))
		} else if err == nil {
			err = r.Do(ctx, adoptSteps(a, a.InPlace(r))...)
		}
	}
	if err != nil {
		if errors.Is(err, ErrDeclined) {
			return nil, ErrDeclined
		}
		return nil, diagnose(ctx, r, err)
	}
	report := &AdoptReport{Changes: r.Changes(), Elapsed: time.Since(begun), Pause: a.Pause}
	if !how.Undo {
		report.Status = verified(r)
	}
	return report, nil
}

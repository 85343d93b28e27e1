package provision

import (
	"context"
	"errors"

	"muster/provision/inventory"
	"muster/provision/step"
)

// ErrDeclined is returned when the operator does not confirm a Reset.
var ErrDeclined = step.ErrDeclined

// ResetOptions say what Reset removes.
type ResetOptions struct {
	// Data removes the members' data too. It cannot be brought back.
	Data bool
	// Confirm is shown what will be removed, by host, and says whether to go
	// on. It is not called when there is nothing to remove.
	Confirm func(removal map[string][]string) (bool, error)
}

// resetSteps is what Reset does, in order.
func resetSteps(o ResetOptions, cluster *inventory.Cluster) []step.Step {
	look, _ := apiServerSteps(cluster)
	steps := append([]step.Step{
		step.EachHost("connect", step.Connect),
		step.Together("lock", step.Lock),
		step.EachHost("facts", step.GatherFacts),
	}, look...)
	steps = append(steps,
		step.Together("preflight", step.CheckRemoval(o.Data)),
		step.Together("confirm", step.Confirm(o.Data, o.Confirm)),
		step.EachHost("backups", step.RemoveBackup),
		step.EachHost("stop", step.StopMember),
		step.EachHost("files", step.RemoveFiles),
	)
	if len(look) > 0 {
		steps = append(steps, step.Together("delivered files", step.RemoveDelivered))
	}
	if o.Data {
		steps = append(steps, step.EachHost("data", step.RemoveData))
	}
	return steps
}

// Reset removes from the hosts what Apply has installed. Without Data the
// members' data stays, and Apply with the same inventory and certificates
// brings the cluster back. The certificates on the workstation stay in any
// case. It returns how many changes were made.
func Reset(ctx context.Context, cluster *inventory.Cluster, o Options, reset ResetOptions) (changes int, err error) {
	o = o.withDefaults()
	r, err := begin("reset", cluster, o)
	if err != nil {
		return 0, err
	}
	defer finish(r)
	if err := r.Do(ctx, resetSteps(reset, cluster)...); err != nil {
		if errors.Is(err, ErrDeclined) {
			return 0, ErrDeclined
		}
		return r.Changes(), diagnose(ctx, r, err)
	}
	return r.Changes(), nil
}

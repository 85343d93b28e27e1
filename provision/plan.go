package provision

import (
	"context"

	"muster/provision/inventory"
	"muster/provision/plan"
	"muster/provision/step"
)

// planSteps is what Plan does, in order: Apply without everything that leaves
// a trace.
func planSteps(cluster *inventory.Cluster) []step.Step {
	look, _ := apiServerSteps(cluster)
	steps := append([]step.Step{
		step.EachHost("connect", step.Connect),
		step.EachHost("look", step.LookOnly),
	}, look...)
	return append(steps,
		step.Together("survey", step.Survey),
		step.Together("preflight", step.Preflight),
		step.Together("plan", step.MakePlan),
	)
}

// Plan says what Apply would do. It only reads: on the hosts no file is made,
// not even for a moment, and nothing is locked; on the workstation no
// certificate is made. The error of a plan that began is a *Failure.
func Plan(ctx context.Context, cluster *inventory.Cluster, o Options) (*plan.Plan, error) {
	o = o.withDefaults()
	r, err := begin("plan", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	if err := r.Do(ctx, planSteps(cluster)...); err != nil {
		return nil, diagnose(ctx, r, err)
	}
	return r.Plan, nil
}

package step

import (
	"context"
	"fmt"

	"muster/provision/plan"
)

// ChangedError is a plan that is not the one that was approved.
type ChangedError struct{ difference string }

func (e *ChangedError) Error() string {
	return "the hosts changed since the plan was shown: " + e.difference + "; nothing was done"
}

// Hint says what to do about it.
func (e *ChangedError) Hint() string {
	return "look at the new plan (muster plan) and run apply again"
}

// Approve shows the plan and goes on only if that is accepted. An empty plan
// needs nobody's consent.
func Approve(ask func(context.Context, *plan.Plan) (bool, error)) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		r.approved = r.Plan
		if r.Plan.Empty() {
			return nil
		}
		ok, err := ask(ctx, r.Plan)
		if err != nil {
			return &localError{err}
		}
		if !ok {
			return ErrDeclined
		}
		return nil
	}
}

// Agreed makes sure that the plan is the one that was approved: in this run, or
// earlier by its fingerprint.
func Agreed(fingerprint string) func(context.Context, *Run) error {
	return func(_ context.Context, r *Run) error {
		if r.approved != nil {
			if difference := plan.Difference(r.approved, r.Plan); difference != "" {
				return &localError{&ChangedError{difference}}
			}
		}
		if now := r.Plan.Fingerprint(); fingerprint != "" && now != fingerprint {
			return &localError{&ChangedError{fmt.Sprintf("the plan %s was approved, and now it is %s", fingerprint, now)}}
		}
		return nil
	}
}

// Show shows the plan that is carried out.
func Show(show func(*plan.Plan)) func(context.Context, *Run) error {
	return func(_ context.Context, r *Run) error {
		if show != nil {
			show(r.Plan)
		}
		return nil
	}
}

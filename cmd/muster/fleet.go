package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/plan"
	"muster/provision/step"
)

// fleet works on several clusters side by side. What it prints about one
// cluster stays together.
type fleet struct {
	*app
	*provision.Fleet
	flags    operationFlags
	clusters []*inventory.Cluster
	reporter reporter
	lines    *jsonReporter // nil unless JSON is wanted
	say      io.Writer     // for people; several may write

	printing sync.Mutex
	ended    int
}

func (a *app) newFleet(ctx context.Context, flags operationFlags, clusters []*inventory.Cluster) (*fleet, error) {
	f := &fleet{app: a, flags: flags, clusters: clusters, say: &quietWriter{mu: &a.screen, out: a.err}}
	f.reporter = &quietReporter{plainReporter{out: f.say}}
	var common reporter = &plainReporter{out: f.say}
	if a.wantsJSON() {
		f.lines = &jsonReporter{enc: json.NewEncoder(a.out)}
		common = f.lines
	}
	var err error
	f.Fleet, err = provision.NewFleet(a.options(ctx, flags, common))
	return f, err
}

func (f *fleet) close() {
	if err := f.Close(); err != nil {
		f.log.Debug("close the bastions", "error", err)
	}
}

// optionsFor are the options of an operation on one of the clusters.
func (f *fleet) optionsFor(ctx context.Context, c *inventory.Cluster) provision.Options {
	o := f.options(ctx, f.flags, f.reporter)
	o.Fleet = f.Fleet
	if o.Reporter != nil {
		o.Reporter = inCluster{c.Name, o.Reporter}
	}
	return o
}

// inCluster tells events that say which cluster they are of.
type inCluster struct {
	name string
	next step.Reporter
}

// Report implements step.Reporter.
func (r inCluster) Report(e step.Event) {
	e.Cluster = r.name
	r.next.Report(e)
}

// applyFleet applies every cluster's inventory. Whoever wants to be asked sees
// all plans first, answers once, and gets exactly them.
func (a *app) applyFleet(ctx context.Context, flags operationFlags, clusters []*inventory.Cluster) error {
	switch {
	case flags.approved != "":
		return &usageError{
			fmt.Errorf("--plan is the plan of one cluster, and the inventory has %d", len(clusters)),
			"name the cluster with --cluster, or leave --plan out",
		}
	case flags.asks() && !a.canPrompt():
		return errNoConsent
	}
	f, err := a.newFleet(ctx, flags, clusters)
	if err != nil {
		return err
	}
	defer f.close()
	begun := time.Now()
	var plans []*plan.Plan
	failed := make([]error, len(clusters))
	if flags.asks() {
		if plans, failed, err = f.confirm(ctx); err != nil {
			return err
		}
	}
	f.reporter = &plainReporter{out: f.say}
	if f.lines != nil {
		f.reporter = f.lines
	}
	changes := make([]int, len(clusters))
	for i, err := range f.Each(ctx, clusters, func(ctx context.Context, c *inventory.Cluster) error {
		i := slices.Index(clusters, c)
		if failed[i] != nil {
			return nil //nolint:nilerr // it was told
		}
		o := f.optionsFor(ctx, c)
		if plans != nil {
			o.Approved = plans[i].Fingerprint()
		} else {
			o.Show = func(p *plan.Plan) { f.showPlan(c, p) }
		}
		report, err := provision.Apply(ctx, c, o)
		if err != nil {
			f.tellFailure(c, err)
			return err
		}
		changes[i] = report.Changes
		f.tellVerified(c, report)
		return nil
	}) {
		failed[i] = errors.Join(failed[i], err)
	}
	total := 0
	for _, n := range changes {
		total += n
	}
	elapsed := time.Since(begun)
	if f.lines != nil {
		f.lines.line(fleetResult{time.Now(), "fleet", len(clusters), total, elapsed.Seconds(), f.named(failed)})
	} else {
		fmt.Fprintf(a.out, "%d of %d clusters are verified: %s in %v\n", len(clusters)-len(f.named(failed)), len(clusters), count(total, "change"), elapsed.Round(10*time.Millisecond))
	}
	return f.verdict(ctx, failed)
}

// fleetResult is the last line of apply's JSON output when there are several
// clusters, each of which has its own result or error before.
type fleetResult struct {
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Clusters int       `json:"clusters"`
	Changes  int       `json:"changes"`
	Seconds  float64   `json:"seconds"`
	Failed   []string  `json:"failed"` // names
}

// confirm makes and shows the plans, and asks whether to carry them out. A
// cluster that has none is told about, and is not part of the question.
func (f *fleet) confirm(ctx context.Context) ([]*plan.Plan, []error, error) {
	plans, failed := f.plans(ctx)
	changing, all := 0, 0
	for i, p := range plans {
		switch {
		case failed[i] != nil:
			f.tellFailure(f.clusters[i], failed[i])
		case p.Empty():
			fmt.Fprintf(f.err, "cluster %s: %s\n", p.Cluster, p.Summary())
		default:
			changing++
			all += len(p.Changes)
			fmt.Fprintf(f.err, "cluster %s: %s\n", p.Cluster, p.Summary())
			if err := p.WriteText(f.err, f.colors()); err != nil {
				return nil, nil, err
			}
			fmt.Fprintln(f.err)
		}
	}
	if changing == 0 || ctx.Err() != nil {
		return plans, failed, nil //nolint:nilerr // an interruption is told of each cluster
	}
	ok, err := f.askYes(ctx, fmt.Sprintf("%s on %d of %d clusters. Go on? [y/N] ", count(all, "change"), changing, len(plans)))
	if err == nil && !ok {
		err = errDeclined
	}
	return plans, failed, err
}

// plans makes the plan of every cluster, or says why there is none.
func (f *fleet) plans(ctx context.Context) ([]*plan.Plan, []error) {
	plans := make([]*plan.Plan, len(f.clusters))
	failed := f.Each(ctx, f.clusters, func(ctx context.Context, c *inventory.Cluster) error {
		p, err := provision.Plan(ctx, c, f.optionsFor(ctx, c))
		plans[slices.Index(f.clusters, c)] = p
		return err
	})
	return plans, failed
}

func (a *app) planFleet(ctx context.Context, flags operationFlags, clusters []*inventory.Cluster) error {
	f, err := a.newFleet(ctx, flags, clusters)
	if err != nil {
		return err
	}
	defer f.close()
	plans, failed := f.plans(ctx)
	if err := f.printPlans(plans, failed); err != nil {
		return err
	}
	if err := f.verdict(ctx, failed); err != nil {
		return err
	}
	if slices.ContainsFunc(plans, func(p *plan.Plan) bool { return !p.Empty() }) {
		return errDrift
	}
	return nil
}

// fleetPlan is the plan of one of several clusters in JSON.
type fleetPlan struct {
	*planJSON
	// Cluster and Error stand for the plan when there is none.
	Failed string `json:"failed,omitempty"` // the name of the cluster
	Error  string `json:"error,omitempty"`
}

func (f *fleet) printPlans(plans []*plan.Plan, failed []error) error {
	if f.wantsJSON() {
		list := make([]fleetPlan, len(plans))
		for i, p := range plans {
			if failed[i] != nil {
				list[i] = fleetPlan{Failed: f.clusters[i].Name, Error: failed[i].Error()}
			} else {
				list[i] = fleetPlan{planJSON: &planJSON{p, p.Fingerprint()}}
			}
		}
		enc := json.NewEncoder(f.out)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	for i, p := range plans {
		if failed[i] != nil {
			f.tellFailure(f.clusters[i], failed[i])
			continue
		}
		fmt.Fprintf(f.out, "cluster %s: %s\n", p.Cluster, p.Summary())
		if p.Empty() {
			continue
		}
		if err := p.WriteText(f.out, f.colorsOn(f.out)); err != nil {
			return err
		}
		fmt.Fprintf(f.out, "to do exactly this: muster apply %s --plan %s\n\n", inventoryFlags(f.clusters[i], true), p.Fingerprint())
	}
	return nil
}

func (a *app) statusFleet(ctx context.Context, clusters []*inventory.Cluster) error {
	if a.output == outputHTML {
		return &usageError{fmt.Errorf("a page shows one cluster, and the inventory has %d", len(clusters)), "name it with --cluster"}
	}
	f, err := a.newFleet(ctx, operationFlags{}, clusters)
	if err != nil {
		return err
	}
	defer f.close()
	all := make([]provision.Status, len(clusters))
	failed := f.Each(ctx, clusters, func(ctx context.Context, c *inventory.Cluster) error {
		s, err := provision.GetStatus(ctx, c, f.optionsFor(ctx, c))
		if err != nil {
			s = &provision.Status{Cluster: c.Name, Members: []provision.MemberStatus{}, Problem: err.Error()}
		}
		all[slices.Index(clusters, c)] = *s
		if err == nil && !s.Healthy {
			err = errUnhealthy
		}
		return err
	})
	if a.wantsJSON() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(all); err != nil {
			return err
		}
	} else {
		for _, s := range all {
			a.printStatus(s)
			fmt.Fprintln(a.out)
		}
	}
	if names := f.named(failed); len(names) > 0 {
		return &fleetError{ctx.Err(), "not healthy", names, len(clusters)}
	}
	return nil
}

// showPlan tells of the plan that is about to be carried out.
func (f *fleet) showPlan(c *inventory.Cluster, p *plan.Plan) {
	switch {
	case p.Empty():
	case f.lines != nil:
		f.lines.line(planEvent{Time: time.Now(), Kind: "plan", Plan: p, Fingerprint: p.Fingerprint()})
	default:
		fmt.Fprintf(f.say, "%s: %s\n", c.Name, p.Summary())
	}
}

func (f *fleet) tellVerified(c *inventory.Cluster, report *provision.Report) {
	f.printing.Lock()
	defer f.printing.Unlock()
	f.ended++
	if f.lines != nil {
		f.lines.line(applyResult{
			Time: time.Now(), Kind: "result", Changes: report.Changes, Seconds: report.Elapsed.Seconds(), Status: report.Status,
		})
		return
	}
	fmt.Fprintf(f.out, "cluster %s is verified: %s in %v (%d of %d)\n", c.Name, count(report.Changes, "change"),
		report.Elapsed.Round(10*time.Millisecond), f.ended, len(f.clusters))
}

func (f *fleet) tellFailure(c *inventory.Cluster, err error) {
	f.printing.Lock()
	defer f.printing.Unlock()
	f.ended++
	if f.lines != nil {
		f.lines.line(newErrorLine(c.Name, err))
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s: %v\n", c.Name, err)
	var failure *provision.Failure
	if errors.As(err, &failure) {
		b.WriteString(failure.Details())
	}
	var h hinter
	if errors.As(err, &h) && h.Hint() != "" {
		fmt.Fprintf(&b, "hint: %s\n", h.Hint())
	}
	_, _ = io.WriteString(f.say, b.String())
}

// named are the clusters that failed.
func (f *fleet) named(failed []error) []string {
	names := []string{}
	for i, err := range failed {
		if err != nil {
			names = append(names, f.clusters[i].Name)
		}
	}
	return names
}

// verdict is an error when any of the clusters failed.
func (f *fleet) verdict(ctx context.Context, failed []error) error {
	if names := f.named(failed); len(names) > 0 {
		return &fleetError{ctx.Err(), "failed", names, len(f.clusters)}
	}
	return nil
}

// fleetError names the clusters that an operation on several failed for. What
// was wrong with each was told.
type fleetError struct {
	interrupted error // of the context; nil when it was not
	what        string
	names       []string
	of          int
}

func (e *fleetError) Error() string {
	return fmt.Sprintf("%d of %d clusters %s: %s", len(e.names), e.of, e.what, strings.Join(e.names, ", "))
}

func (e *fleetError) Unwrap() error { return e.interrupted }

// Hint says how to go on with these clusters only.
func (e *fleetError) Hint() string {
	const few = 10
	if len(e.names) > few {
		return "what is wrong with each is said above; the same command goes on from what is there"
	}
	return "what is wrong with each is said above; --cluster " + strings.Join(e.names, ",") + " works on these alone"
}

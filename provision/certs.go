package provision

import (
	"context"
	"fmt"
	"strings"
	"time"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/step"
)

// openSteps is how every operation on certificates begins.
func openSteps(cluster *inventory.Cluster) []step.Step {
	look, _ := apiServerSteps(cluster)
	steps := append([]step.Step{
		step.EachHost("connect", step.Connect),
		step.Together("lock", step.Lock),
		step.EachHost("facts", step.LookOnly),
	}, look...)
	return append(steps, step.Together("preflight", step.CheckMembers))
}

// Renewal says which leaves are made anew. The zero value means those that
// have less than a third of their lifetime left or do not fit any more; these
// are included in any case.
type Renewal struct {
	All bool
	// Within includes those that expire within that time from now.
	Within time.Duration
	// Host narrows All and Within down to the leaves of one host.
	Host string
}

func (w Renewal) due(path string, expires time.Time) bool {
	if w.Host != "" && !strings.HasPrefix(path, "hosts/"+w.Host+"/") {
		return false
	}
	return w.All || time.Until(expires) < w.Within
}

// CertificateReport is the outcome of an operation on certificates.
type CertificateReport struct {
	Changes int
	Elapsed time.Duration
	// Phase is where the replacement of the CA has come to; pki.Settled when
	// none is under way.
	Phase  pki.Phase
	Status Status
}

// RenewCertificates makes leaves anew, installs them and proves by handshakes
// that every member serves what was installed. It goes from host to host. A
// member that does not take up new files by itself is restarted, while the
// others hold the quorum.
func RenewCertificates(ctx context.Context, cluster *inventory.Cluster, o Options, which Renewal) (*CertificateReport, error) {
	return certificates(ctx, "certs renew", cluster, o, func(r *step.Run) error {
		_, deliver := apiServerSteps(cluster)
		steps := append(openSteps(cluster),
			step.Together("certificates", step.RenewCertificates(which.due)),
			step.Together("take up", step.RollCertificates),
			step.Together("ready", step.AwaitReady),
			step.Together("verify", step.Verify))
		return r.Do(ctx, append(steps, deliver...)...)
	})
}

// RotateCA replaces the CA without a pause, in phases: every member learns to
// trust a new CA beside the old one; every leaf is made anew by it; every
// member unlearns the old one. The cluster is verified before and after each.
// It stops after the phase given, for what else has to be told of the new CA,
// and goes on from wherever an earlier run has stopped or was killed. With a CA
// that has expired there is no cluster to verify until it has new certificates.
//
// It is for a cluster without siblings: a CA of several is replaced in all of
// them together, see RotateSharedCA.
func RotateCA(ctx context.Context, cluster *inventory.Cluster, o Options, until pki.Phase) (*CertificateReport, error) {
	if siblings := cluster.Siblings(); len(siblings) > 0 {
		return nil, fmt.Errorf("cluster %s shares its CA with cluster %s, and alone it cannot get another one", cluster.Name, siblings[0].Name)
	}
	return rotate(ctx, cluster, o, until)
}

// RotateSharedCA is RotateCA for the CA of clusters that are siblings, all of
// them: a phase has ended in each before the next one begins in any. The
// reports are in the order of the clusters.
func RotateSharedCA(ctx context.Context, clusters []*inventory.Cluster, options func(*inventory.Cluster) Options, until pki.Phase) ([]*CertificateReport, error) {
	reports := make([]*CertificateReport, len(clusters))
	for _, phase := range []pki.Phase{pki.Trusting, pki.Issuing, pki.Dropping} {
		for i, c := range clusters {
			stop := phase
			if last := i == len(clusters)-1; until == "" && phase == pki.Dropping && last {
				stop = "" // nobody trusts the old CA any more
			}
			report, err := rotate(ctx, c, options(c), stop)
			if err != nil {
				return nil, fmt.Errorf("cluster %s: %w", c.Name, err)
			}
			if earlier := reports[i]; earlier != nil {
				report.Changes += earlier.Changes
				report.Elapsed += earlier.Elapsed
			}
			reports[i] = report
		}
		if phase == until {
			break
		}
	}
	return reports, nil
}

func rotate(ctx context.Context, cluster *inventory.Cluster, o Options, until pki.Phase) (*CertificateReport, error) {
	return certificates(ctx, "certs rotate-ca", cluster, o, func(r *step.Run) error {
		if err := r.Do(ctx, append(openSteps(cluster), step.Together("new CA", step.StartRotation))...); err != nil {
			return err
		}
		_, deliver := apiServerSteps(cluster)
		healthy := []step.Step{step.Together("ready", step.AwaitReady), step.Together("verify", step.Verify)}
		if !r.Rotation.Expired {
			if err := r.Do(ctx, healthy...); err != nil {
				return err
			}
		}
		for _, phase := range []struct {
			phase pki.Phase
			steps []step.Step
		}{
			{pki.Trusting, []step.Step{step.Together("trust the new CA", step.TrustNewCA)}},
			{pki.Issuing, []step.Step{step.Together("switch to the new CA", step.SwitchCA), step.Together("take up", step.RollCertificates)}},
			{pki.Dropping, []step.Step{
				step.Together("prove the new CA", step.ProveNewLeaves),
				step.Together("drop the old CA", step.DropOldCA),
				step.Together("look for its key", step.FindOldKeys),
			}},
		} {
			proved := r.Rotation.Phase == pki.Issuing && phase.phase == pki.Trusting || r.Rotation.Phase == pki.Dropping && phase.phase != pki.Dropping
			if !proved { // by an earlier run
				steps := phase.steps
				if !r.Rotation.Expired || phase.phase != pki.Trusting {
					steps = append(steps, healthy...)
				}
				if err := r.Do(ctx, append(steps, deliver...)...); err != nil {
					return err
				}
			}
			if phase.phase == until {
				return nil
			}
		}
		return r.Do(ctx, step.Together("archive the old CA", step.EndRotation))
	})
}

// certificates runs an operation on certificates.
func certificates(ctx context.Context, operation string, cluster *inventory.Cluster, o Options, do func(*step.Run) error) (*CertificateReport, error) {
	begun := time.Now()
	o = o.withDefaults()
	r, err := begin(operation, cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	if err := do(r); err != nil {
		return nil, diagnose(ctx, r, err)
	}
	rotation, err := r.PKI.Rotation(ctx)
	if err != nil {
		return nil, err
	}
	return &CertificateReport{Changes: r.Changes(), Elapsed: time.Since(begun), Phase: rotation.Phase, Status: verified(r)}, nil
}

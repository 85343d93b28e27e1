package step

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/member"
	"muster/provision/observed"
	"muster/provision/remote"
)

// CheckMembers refuses hosts that are not installed members of the
// inventory's cluster, before anything is changed anywhere.
func CheckMembers(_ context.Context, r *Run) error {
	trusted, err := trustedCAs(r.Cluster.PKI.Dir)
	if err != nil {
		return err
	}
	var found PreflightError
	for _, h := range r.Hosts {
		e := examination{Host: h, found: &found}
		e.clock(r.Hosts)
		switch p := h.Remote.Privilege(); {
		case p.Problem != "":
			e.problem("%s cannot become root without a password (%s); allow it, or log in as root", p.User, p.Problem)
		case h.Facts.Record == (observed.Record{}) || !h.Facts.Unit.Loaded:
			e.problem("no member is installed here; run muster apply first")
		case !h.Facts.Unit.Running():
			e.problem("%s does not run; run muster apply, or see %s", h.unit().Title(), h.unit().Journal())
		default:
			e.record(r.Cluster.PKI.Dir, trusted)
		}
	}
	if err := r.examineAPIServers(&found); err != nil {
		return err
	}
	if len(found.Problems) > 0 {
		return &found
	}
	return nil
}

// RenewCertificates makes the leaves for which due returns true anew on the
// workstation, and those that would not do any more.
func RenewCertificates(due func(path string, expires time.Time) bool) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		bundle, made, err := r.PKI.Renew(ctx, desired.Certificates(r.Cluster), due)
		if err != nil {
			return &localError{err}
		}
		return r.adopt(bundle, made)
	}
}

// adopt makes a bundle the one that hosts should have.
func (r *Run) adopt(bundle pki.Bundle, made []pki.Change) error {
	for _, m := range made {
		r.change("certificates", fmt.Sprintf("made %s (%s)", m.Path, m.Reason))
	}
	r.Bundle = bundle
	return r.outfit()
}

// RollCertificates installs the certificates of one host after the other. The
// next one's turn comes when the member before serves what was installed.
// Members that are not ready, because their certificates have expired perhaps,
// cannot be harmed and may need each other: they get theirs first, and are
// restarted together.
func RollCertificates(ctx context.Context, r *Run) error {
	sick, well := r.triage(ctx)
	for _, h := range sick {
		if err := installAll(ctx, h); err != nil {
			return &hostError{h.Name, err}
		}
	}
	if err := restartTogether(ctx, sick); err != nil {
		return err
	}
	if err := takeUp(ctx, r, sick, servesItsLeaves); err != nil {
		return err
	}
	for _, h := range well {
		if err := installAll(ctx, h); err != nil {
			return &hostError{h.Name, err}
		}
		if err := takeUp(ctx, r, []*Host{h}, servesItsLeaves); err != nil {
			return err
		}
	}
	for _, h := range r.Hosts {
		r.report(Note, h.step, h.Name, servedNote(h))
	}
	return nil
}

func installAll(ctx context.Context, h *Host) error {
	if err := LookOnly(ctx, h); err != nil {
		return err
	}
	return installCertificates(ctx, h, anyFile)
}

// triage tells members that are ready from those that are not, nor become so
// in a part of ReadyTimeout: an election is no illness.
func (r *Run) triage(ctx context.Context) (sick, well []*Host) {
	ctx, cancel := context.WithTimeout(ctx, r.ReadyTimeout/10)
	defer cancel()
	up := make([]bool, len(r.Hosts))
	var wg sync.WaitGroup
	for i, h := range r.Hosts {
		wg.Go(func() { up[i] = readyBefore(ctx, h) })
	}
	wg.Wait()
	for i, h := range r.Hosts {
		if up[i] {
			well = append(well, h)
		} else {
			sick = append(sick, h)
		}
	}
	return sick, well
}

// readyBefore says whether a member is ready before the context ends.
func readyBefore(ctx context.Context, h *Host) bool {
	client := httpClient(h)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for ready(ctx, client, h.readyURL()) != nil {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// servedNote names what every endpoint of the host has been seen to serve.
func servedNote(h *Host) string {
	pairs := h.run.Bundle.Hosts[h.Name]
	return fmt.Sprintf("serves %s to clients and %s to members", serialOf(pairs.Server), serialOf(pairs.Peer))
}

func serialOf(pair pki.Pair) string {
	cert, err := parseCertificate(pair.Cert)
	if err != nil {
		return "an unknown certificate"
	}
	return fmt.Sprintf("%.8s... (until %s)", fmt.Sprintf("%x", cert.SerialNumber), cert.NotAfter.Format(time.DateOnly))
}

// StartRotation makes the new CA, or finds how far its introduction has come.
func StartRotation(ctx context.Context, r *Run) error {
	spec := desired.Certificates(r.Cluster)
	made, err := r.PKI.StartRotation(ctx, spec)
	if err != nil {
		return &localError{err}
	}
	return r.readRotation(ctx, made)
}

// readRotation reads where the rotation is, and the certificates. What a killed
// run has left half made is made again; when the CA's key is lost, or the CA has
// expired, they are taken as they are.
func (r *Run) readRotation(ctx context.Context, made []pki.Change) (err error) {
	if r.Rotation, err = r.PKI.Rotation(ctx); err != nil {
		return &localError{err}
	}
	spec := desired.Certificates(r.Cluster)
	bundle, more, err := r.PKI.Ensure(ctx, spec)
	if err == nil {
		return r.adopt(bundle, append(made, more...))
	}
	if !errors.Is(err, pki.ErrKeyMissing) && !errors.Is(err, pki.ErrExpired) {
		return &localError{err}
	}
	in, err := r.PKI.Inspect(spec)
	if err != nil {
		return &localError{err}
	}
	if _, err := member.TLS(in.Bundle.CA, in.Bundle.HealthcheckClient); err != nil {
		return &localError{fmt.Errorf("use the client that muster itself is to the members, in %s: %w; move its files away and run muster certs recover, which takes them from the hosts", r.Cluster.PKI.Dir, err)}
	}
	return r.adopt(in.Bundle, made)
}

// TrustNewCA installs the bundle of both CAs everywhere and proves that every
// member admits clients of the new one. Where the old one has expired no member
// need answer before it has leaves of the new one.
func TrustNewCA(ctx context.Context, r *Run) error {
	if err := r.installBundle(ctx); err != nil {
		return err
	}
	if r.Rotation.Expired {
		return nil
	}
	return takeUp(ctx, r, r.Hosts, trusts(r.Rotation.NewClient))
}

func (r *Run) installBundle(ctx context.Context) error {
	return r.forAll(func(h *Host) *Error {
		err := LookOnly(ctx, h)
		if err == nil {
			err = installCertificates(ctx, h, onlyTheBundle)
		}
		if err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

// SwitchCA lets the new CA sign and makes every leaf anew.
func SwitchCA(ctx context.Context, r *Run) error {
	if err := r.PKI.SwitchCA(ctx); err != nil {
		return &localError{err}
	}
	bundle, made, err := r.PKI.Ensure(ctx, desired.Certificates(r.Cluster))
	if err != nil {
		return &localError{err}
	}
	if r.Rotation, err = r.PKI.Rotation(ctx); err != nil {
		return &localError{err}
	}
	return r.adopt(bundle, made)
}

// ProveNewLeaves demands, on every endpoint of every member, a certificate of
// the new CA: nobody may need the old one any more.
func ProveNewLeaves(ctx context.Context, r *Run) error {
	return r.forAll(func(h *Host) *Error {
		err := awaitProof(ctx, h, func(ctx context.Context, h *Host) error {
			return shakeAll(ctx, h, r.Bundle.HealthcheckClient, func(url string, _ pki.Role, shown member.Handshake) error {
				if !shown.ServedBy(r.Rotation.NewCA) {
					return &staleError{fmt.Sprintf("%s still serves a certificate of the old CA (%x) on %s; the old CA stays trusted. Run muster certs renew, then muster certs rotate-ca", h.Name, shown.Served.SerialNumber, url)}
				}
				return nil
			})
		}, takeUpPatience)
		if err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

// DropOldCA takes the old CA out of the bundle everywhere, and proves that no
// member admits its clients any more.
func DropOldCA(ctx context.Context, r *Run) error {
	if err := r.PKI.DropOldCA(ctx); err != nil {
		return &localError{err}
	}
	if err := r.readRotation(ctx, nil); err != nil {
		return err
	}
	if r.Rotation.Phase != pki.Dropping {
		return &localError{errors.New("the directory of the certificates was changed meanwhile; run the command again")}
	}
	if err := r.installBundle(ctx); err != nil {
		return err
	}
	return takeUp(ctx, r, r.Hosts, trustsNoMore(r.Rotation.OldClient))
}

// FindOldKeys warns of the old CA's key where kubeadm has left it, in the stacked
// topology: the CA's certificate beside it is the new one.
func FindOldKeys(ctx context.Context, r *Run) error {
	if r.Cluster.Topology != inventory.Stacked {
		return nil
	}
	file := path.Join(desired.PKIDir(r.Cluster), "ca.key")
	return r.forAll(func(h *Host) *Error {
		result, err := h.Remote.Run(ctx, remote.Command{Label: "look for the key of the old CA", Script: `! [ -e "$1" ] || echo found`, Args: []string{file}})
		if err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		if result.Stdout != "" {
			h.warn(file + " is the key of the old CA; remove it: with it kubeadm certs renew fails, and muster certs renew makes the certificates")
		}
		return nil
	})
}

// EndRotation archives the old CA.
func EndRotation(ctx context.Context, r *Run) error {
	made, err := r.PKI.EndRotation(ctx)
	if err != nil {
		return &localError{err}
	}
	for _, m := range made {
		r.change("certificates", fmt.Sprintf("archived %s as %s", m.Reason, m.Path))
	}
	return nil
}

package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-semver/semver"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/found"
	"muster/provision/observed"
	"muster/provision/plan"
)

// Adopt holds the steps that take over an etcd which kubeadm, etcdadm or
// kubespray has installed on all hosts. Where the inventory's data directory is
// the old one, the members go on with it, one after the other. Otherwise their
// data is moved by a snapshot: writes are refused from before it is taken until
// the new members have proved that they have all of it.
//
// Each host records how its old member is started again before that is stopped,
// so that a run that was killed can be repeated at any point, or undone. Nothing
// is deleted.
type Adopt struct {
	// CAKey is the key of the CA in PEM, when it is on no host.
	CAKey []byte
	// Pause is for how long writes were refused.
	Pause time.Duration

	mu   sync.Mutex
	olds map[string]*Old // by host; none where only the record is left
	// toMove is the snapshot that the new members begin with, sealedAt when
	// writes were refused first, as far as this run knows.
	toMove   *Restore
	sealedAt time.Time
}

// oldestReadable is the oldest etcd whose snapshots, flags and members are
// understood.
var oldestReadable = semver.Version{Major: 3, Minor: 4}

// Look finds what is to be taken over.
func (a *Adopt) Look(ctx context.Context, h *Host) error {
	if h.Remote.Privilege().Problem != "" {
		return nil // Preflight tells
	}
	if h.unit().IsPod() && h.Facts.Unit.Running() && !h.Facts.Unit.NeedsReload {
		return nil // the kubelet runs our own
	}
	old, err := FindOld(ctx, h)
	if errors.Is(err, found.ErrNothing) {
		return nil // Preflight tells, unless the host remembers one
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.olds == nil {
		a.olds = map[string]*Old{}
	}
	a.olds[h.Name] = old
	return nil
}

// inPlace says that the host's new member goes on with the old one's data.
func (a *Adopt) inPlace(h *Host) bool {
	if h.Facts.Adoption != (observed.Adoption{}) {
		return h.Facts.Adoption.InPlace
	}
	old := a.olds[h.Name]
	if old == nil || old.DataDir() != h.Want.Member.DataDir {
		return false
	}
	// In a static pod musterd takes etcd's place where that was, and etcd's data
	// is put aside.
	return !h.unit().IsPod() || h.Server.Binary != ""
}

// InPlace says that all of them do.
func (a *Adopt) InPlace(r *Run) bool {
	return !slices.ContainsFunc(r.Hosts, func(h *Host) bool { return !a.inPlace(h) })
}

// Over says that all hosts were taken over already, and nothing is left to do.
func Over(r *Run) bool {
	return !slices.ContainsFunc(r.Hosts, func(h *Host) bool {
		return !h.Facts.Adoption.Done || h.Facts.Restoring != (observed.Restoring{})
	})
}

// Survey asks the members who they are, with the certificates of the
// workstation, or as long as there are none with those of a host.
func (a *Adopt) Survey(ctx context.Context, r *Run) error {
	bundle, toMake, err := pki.Examine(r.Cluster.PKI.Dir, desired.Certificates(r.Cluster))
	if err != nil {
		return &localError{err}
	}
	r.toMake = toMake
	if err := a.sameCA(r, bundle.CA); err != nil {
		return err
	}
	if len(bundle.CA) == 0 || len(bundle.HealthcheckClient.Cert) == 0 {
		for _, h := range r.Hosts {
			if old := a.olds[h.Name]; old != nil {
				bundle.CA, bundle.HealthcheckClient = old.CACert, old.client
				if len(old.client.Cert) > 0 {
					break
				}
			}
		}
	}
	r.Bundle = bundle
	r.roster = roster{}
	if len(bundle.CA) > 0 {
		if len(bundle.HealthcheckClient.Cert) == 0 {
			return errNoClient
		}
		c, err := converse(r)
		if err != nil {
			return err
		}
		defer c.close()
		r.roster = c.ask(ctx, r.Hosts)
	}
	r.bootstraps = map[string]desired.Bootstrap{}
	for _, h := range r.Hosts {
		h.joins, h.rolls = false, false
		if !a.inPlace(h) {
			continue // it founds, whatever a run that was undone has told it
		}
		if own, told := plan.BootstrapOf(h.Facts.Files[h.unit().Path].Text); told && own.State == "existing" {
			r.bootstraps[h.Name] = own
		} else {
			r.bootstraps[h.Name] = r.continuing()
		}
	}
	return r.outfit()
}

// continuing is what a member is told that goes on with its data.
func (r *Run) continuing() desired.Bootstrap {
	b := desired.Founding(r.Cluster)
	b.State = "existing"
	return b
}

// sameCA makes sure that the hosts, and the workstation if it has one, trust one
// CA: with two of them there are two clusters.
func (a *Adopt) sameCA(r *Run, own []byte) error {
	first, whose := own, r.Cluster.PKI.Dir
	failed := &PreflightError{}
	for _, h := range r.Hosts {
		old := a.olds[h.Name]
		if old == nil {
			continue
		}
		if len(first) == 0 {
			first, whose = old.CACert, h.Name
		}
		if !sharesCA(first, old.CACert) {
			failed.Problems = append(failed.Problems, Problem{h.Name, fmt.Sprintf("its etcd trusts another CA than %s: they are of two clusters; adopt each with an inventory, and a pki.dir, of its own", whose)})
		}
	}
	if len(failed.Problems) > 0 {
		return failed
	}
	return nil
}

func sharesCA(a, b []byte) bool {
	x, err := fingerprints(a)
	if err != nil {
		return false
	}
	y, err := fingerprints(b)
	return err == nil && slices.ContainsFunc(x, func(sum string) bool { return slices.Contains(y, sum) })
}

// Preflight is Examine that also has ready what is to be installed.
func (a *Adopt) Preflight(ctx context.Context, r *Run) error {
	if err := a.Examine(ctx, r); err != nil {
		return err
	}
	return findPrograms(ctx, r)
}

// Examine decides whether the members can be taken over, before anything is
// changed. It only reads.
func (a *Adopt) Examine(_ context.Context, r *Run) error {
	var failed PreflightError
	trusted, err := trustedCAs(r.Cluster.PKI.Dir)
	if err != nil {
		return err
	}
	for _, h := range r.Hosts {
		e := examination{Host: h, found: &failed}
		e.returning()
		e.machine()
		e.runningKubelet()
		e.clock(r.Hosts)
		if h.Remote.Privilege().Problem != "" {
			continue
		}
		if a.olds[h.Name] == nil && h.Facts.Adoption == (observed.Adoption{}) {
			e.problem("%v; take the host out of the inventory", found.ErrNothing)
			continue
		}
		e.space()
		e.portsBut(func(s observed.Socket) bool { return strings.Contains(s.Process, "etcd") })
		e.record(r.Cluster.PKI.Dir, trusted)
		a.data(e)
		a.identity(e)
		e.warnings()
	}
	if len(failed.Problems) == 0 {
		a.membership(r, &failed)
	}
	if len(failed.Problems) > 0 {
		return &failed
	}
	return nil
}

// data examines whether the new member can have the data as is wished.
func (a *Adopt) data(e examination) {
	old, dir := a.olds[e.Name], e.Want.Member.DataDir
	if a.inPlace(e.Host) != a.inPlace(e.run.Hosts[0]) {
		e.problem("its data would stay where it is and that of %s would not, or the other way round; write the same dataDir for all", e.run.Hosts[0].Name)
	}
	if !a.inPlace(e.Host) {
		if old == nil || old.DataDir() != dir {
			e.ownData()
		}
		need := copies*e.run.roster.views[e.Name].DBSize + dataMinimum
		if free, known := e.Facts.Free["data"]; known && free < need {
			e.problem("%d MiB are free for %s, and moving the data needs %d MiB beside the old; make room", free>>20, dir, need>>20)
		}
		return
	}
	switch {
	case e.Facts.Data == observed.DataLink:
		e.problem("%s is a symbolic link; leave dataDir out of the inventory, and the data is moved by a snapshot", dir)
	case e.Server.Binary == "":
		e.problem("musterd cannot go on with the data of etcd in %s: leave dataDir out of the inventory, and it is moved by a snapshot; or name etcd as server.binary", dir)
	case old == nil || e.Facts.Adoption.Done:
	case !old.HasData:
		e.problem("%s holds no member's data", dir)
	case old.Flags["wal-dir"] != "":
		e.problem("the log of the member is apart from its data, in %s; leave dataDir out of the inventory, and the data is moved by a snapshot", old.Flags["wal-dir"])
	case !old.OnePeerCA:
		e.problem("the members trust their clients and each other by different CAs; leave dataDir out of the inventory, and the data is moved by a snapshot")
	}
}

// identity examines whether the host's member is the inventory's and one of the
// cluster.
func (a *Adopt) identity(e examination) {
	old, now := a.olds[e.Name], e.run.roster
	want := e.Want.Member
	if old != nil && (old.PeerURL() != want.PeerURL || old.ClientURL() != want.ClientURL) {
		e.problem("its etcd is at %s and %s, and the inventory says %s and %s; write internalAddress: %s and server: {clientPort: %d, peerPort: %d}",
			old.ClientURL(), old.PeerURL(), want.ClientURL, want.PeerURL, old.Address(), old.ClientPort(), old.PeerPort())
		return
	}
	if v, ok := now.views[e.Name]; ok {
		if v.ClusterID != now.cluster && now.cluster != 0 {
			e.problem("its etcd is a member of cluster %x, and the others are of %x; adopt each with an inventory of its own", v.ClusterID, now.cluster)
			return
		}
		if version, err := semver.NewVersion(v.Version); err != nil || version.LessThan(oldestReadable) {
			e.problem("its etcd is version %s; %s or newer is needed: upgrade it with what installed it first", v.Version, oldestReadable.String())
		}
		for _, alarm := range v.Errors {
			if strings.Contains(alarm, "alarm:") && !isSeal(alarm) {
				e.problem("its etcd has an alarm raised (%s); clear the cause and etcdctl alarm disarm first", strings.TrimSpace(alarm))
			}
		}
	}
	if len(now.members) > 0 && a.listed(e.Host) == nil {
		e.problem("the cluster has no member at %s: what is here was removed from it, or belongs to another one; take the host out of the inventory", want.PeerURL)
	}
}

func (a *Adopt) listed(h *Host) *plan.Listed {
	i := slices.IndexFunc(h.run.roster.members, func(l plan.Listed) bool { return slices.Contains(l.PeerURLs, h.Want.Member.PeerURL) })
	if i < 0 {
		return nil
	}
	return &h.run.roster.members[i]
}

// membership examines the cluster as a whole.
func (a *Adopt) membership(r *Run, failed *PreflightError) {
	add := func(member, text string) { failed.Problems = append(failed.Problems, Problem{member, text}) }
	for _, l := range r.roster.members {
		if !slices.ContainsFunc(r.Hosts, func(h *Host) bool { return slices.Contains(l.PeerURLs, h.Want.Member.PeerURL) }) {
			add(l.Name, fmt.Sprintf("is a member of the cluster, at %s, and no host of the inventory; add it, or remove the member first", strings.Join(l.PeerURLs, ",")))
		}
		if l.Learner {
			add(l.Name, "is a learner; promote or remove it first")
		}
	}
	if begun(r) {
		return
	}
	alive := 0
	for _, l := range r.roster.members {
		if l.Alive {
			alive++
		}
	}
	if alive <= len(r.roster.members)/2 {
		add(r.Cluster.Name, fmt.Sprintf("%d of the members answer and have a leader, which is no majority of %d: nothing can be taken over; bring etcd up first", alive, max(len(r.roster.members), len(r.Hosts))))
	}
	key, err := pki.Open(r.Cluster.PKI.Dir, pki.Keys{}).HasKey()
	switch {
	case err != nil:
		add(r.Cluster.Name, err.Error())
	case key || len(a.CAKey) > 0 || r.Cluster.PKI.External:
	case !slices.ContainsFunc(r.Hosts, func(h *Host) bool { return a.olds[h.Name] != nil && a.olds[h.Name].CAKey != "" }):
		add(r.Cluster.Name, "the key of the CA is on no host, and without it the new members get no certificates that the others and the clients trust; name the file with --ca-key")
	}
}

// begun says that an earlier run has stopped members, or may have.
func begun(r *Run) bool {
	return slices.ContainsFunc(r.Hosts, func(h *Host) bool { return h.Facts.Adoption != (observed.Adoption{}) })
}

// adoption is what the host remembers, or will, of its old member.
func (a *Adopt) adoption(h *Host) observed.Adoption {
	if h.Facts.Adoption != (observed.Adoption{}) {
		return h.Facts.Adoption
	}
	if a.olds[h.Name] == nil {
		return observed.Adoption{}
	}
	own := oldOf(a.olds[h.Name])
	own.InPlace = a.inPlace(h)
	own.Version = h.run.roster.views[h.Name].Version
	return own
}

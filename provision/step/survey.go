package step

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/observed"
	"muster/provision/plan"
)

// Survey puts together, from the facts of all hosts, the certificates on the
// workstation and what the members say of each other, what each host should
// have. It changes nothing: certificates that have yet to be made are empty.
func Survey(ctx context.Context, r *Run) error {
	bundle, toMake, err := pki.Examine(r.Cluster.PKI.Dir, desired.Certificates(r.Cluster))
	if err != nil {
		return &localError{err}
	}
	r.Bundle, r.toMake, r.recognizes = bundle, toMake, true
	r.roster = roster{}
	if running := r.running(); len(running) > 0 && len(bundle.CA) > 0 && len(bundle.HealthcheckClient.Cert) > 0 {
		c, err := converse(r)
		if err != nil {
			return &localError{err}
		}
		defer c.close()
		r.roster = c.ask(ctx, running)
	}
	if err := r.markReplaced(); err != nil {
		return err
	}
	return r.settle()
}

// running are the hosts whose member was started and not given up on.
func (r *Run) running() []*Host {
	return r.only(func(h *Host) bool { return h.Facts.Unit.Running() })
}

func (r *Run) only(is func(*Host) bool) []*Host {
	var hosts []*Host
	for _, h := range r.Hosts {
		if is(h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// wanted are the members of the inventory.
func (r *Run) wanted() []desired.Member {
	all := make([]desired.Member, len(r.Hosts))
	for i, h := range r.Hosts {
		all[i] = h.Want.Member
	}
	return all
}

// settle decides which members found the cluster, which join it and which are
// in it, and with that what each host should have.
func (r *Run) settle() error {
	founding, begun := r.founding()
	r.bootstraps = map[string]desired.Bootstrap{}
	for _, h := range r.Hosts {
		h.joins = false
		own, told := plan.BootstrapOf(h.Facts.Files[h.unit().Path].Text)
		switch {
		case h.hasBegun() && told:
			r.bootstraps[h.Name] = own
		case !begun || h.hasBegun():
		case r.founds(h, founding):
			r.bootstraps[h.Name] = founding
		default:
			h.joins = true
		}
	}
	r.foretell()
	return r.outfit()
}

// hasBegun says that the host's member has data, or is about to.
func (h *Host) hasBegun() bool {
	return !h.replaced && (h.Facts.Data == observed.DataFilled || h.Facts.Unit.Running())
}

// founding is what the founding members of the cluster were told; begun says
// that one of them has started.
func (r *Run) founding() (b desired.Bootstrap, begun bool) {
	b = desired.Founding(r.Cluster)
	for _, h := range r.Hosts {
		if h.Facts.Record.ClusterID != "" {
			begun = true
		}
		if !h.hasBegun() {
			continue
		}
		begun = true
		if own, ok := plan.BootstrapOf(h.Facts.Files[h.unit().Path].Text); ok && own.State == "new" {
			return own, true
		}
	}
	return b, begun
}

// founds says whether a host without data belongs to those that found the
// cluster, of which some have started. Once the cluster was verified, none is
// missing.
func (r *Run) founds(h *Host, founding desired.Bootstrap) bool {
	if len(r.roster.members) > 0 {
		l, ok := r.roster.members.Find(h.Want.Member)
		return ok && l.Name != "" && len(l.ClientURLs) == 0
	}
	return verifiedHost(r) == nil && slices.Contains(plan.Names(founding), h.Name)
}

// foretell works out what each member that joins will be told, if all goes as
// the roster lets expect.
func (r *Run) foretell() {
	members, want := r.roster.members, r.wanted()
	for {
		move, err := members.Next(want)
		if err != nil || move == nil {
			return // Preflight tells
		}
		i := slices.IndexFunc(r.Hosts, func(h *Host) bool { return h.Name == move.Name })
		var member desired.Member
		if i >= 0 {
			member = want[i]
		}
		if move.Action == plan.Start {
			r.bootstraps[move.Name] = members.Joining(want)
		}
		members = members.After(*move, member)
	}
}

// outfit makes what each host should have from what the run knows.
func (r *Run) outfit() error {
	want, err := desired.ForMembers(r.Cluster, r.Bundle, desired.Known{Bootstraps: r.bootstraps, Images: r.images})
	if err != nil {
		return err
	}
	for i, h := range r.Hosts {
		h.Want = want[i]
		if r.recognizes && h.unit().IsPod() {
			h.keepRenewed()
		}
	}
	r.outfitAPIServers()
	return nil
}

// keepRenewed leaves those certificates alone that kubeadm has renewed since: it
// has the CA of a cluster that it made, and renews at every upgrade.
func (h *Host) keepRenewed() {
	spec := desired.Certificates(h.run.Cluster)
	kept := map[string]bool{}
	for _, f := range h.Want.Files {
		stem, isCert := strings.CutSuffix(f.Path, ".crt")
		have := h.Facts.Files[f.Path].Text
		if isCert && have != "" && h.run.Bundle.Succeeds(spec, h.Name, path.Base(stem), []byte(have), time.Now()) {
			kept[f.Path], kept[stem+".key"] = true, true
		}
	}
	for i := range h.Want.Files {
		h.Want.Files[i].Kept = kept[h.Want.Files[i].Path]
	}
}

// MakePlan compares what each host should have with what it has.
func MakePlan(ctx context.Context, r *Run) error {
	p := &plan.Plan{Cluster: r.Cluster.Name, Changes: []plan.Change{}}
	for _, c := range r.toMake {
		p.Changes = append(p.Changes, plan.Change{Action: plan.Create, Kind: plan.Certificate, Name: c.Path, Details: []string{c.Reason}})
	}
	ca, err := r.caFingerprint()
	if err != nil {
		return &localError{err}
	}
	for _, h := range r.Hosts {
		compared := plan.Host{Want: h.Want, Have: h.Facts, Programs: map[string]plan.Content{}, Record: h.record(ca), Joins: h.joins}
		if r.roster.cluster != 0 {
			compared.Record.ClusterID = fmt.Sprintf("%x", r.roster.cluster)
			if id := r.roster.id(h); id != 0 {
				compared.Record.MemberID = fmt.Sprintf("%x", id)
			}
		}
		if h.replaced {
			p.Changes = append(p.Changes, h.makeRoom(&compared)...)
		}
		for _, b := range h.Want.Binaries {
			program, err := h.program(ctx, b)
			if err != nil {
				return &localError{err}
			}
			compared.Programs[b.Path] = plan.Content{SHA256: program.SHA256(), Size: program.Size()}
		}
		changes := compared.Compare()
		h.rolls = plan.Restarts(changes) && r.roster.views[h.Name].Leader != 0
		p.Hosts = append(p.Hosts, h.Name)
		p.Changes = append(p.Changes, changes...)
	}
	r.planAPIServers(p)
	r.markShared(p)
	moves, err := r.roster.members.Moves(r.wanted())
	if err != nil {
		return err
	}
	if len(r.roster.members) == 0 { // nobody could be asked: who joins is added in any case
		for _, h := range r.only(func(h *Host) bool { return h.joins }) {
			moves = append(moves, plan.Move{Action: plan.Add, Name: h.Name, PeerURL: h.Want.Member.PeerURL}, plan.Move{Action: plan.Promote, Name: h.Name})
		}
	}
	for _, move := range moves {
		if change, ok := move.Change(); ok {
			p.Changes = append(p.Changes, change)
		}
	}
	r.Plan = p
	return nil
}

// markShared marks the certificates that are those of siblings too: all but the
// hosts' own.
func (r *Run) markShared(p *plan.Plan) {
	if len(r.Cluster.Siblings()) == 0 {
		return
	}
	for i := range p.Changes {
		c := &p.Changes[i]
		own := path.Base(c.Name) == "server.crt" || path.Base(c.Name) == "peer.crt"
		c.Shared = c.Kind == plan.Certificate && !own
	}
}

// makeRoom is the plan of what PutReplacedAside does. Afterwards the host is as
// it then will be.
func (h *Host) makeRoom(compared *plan.Host) []plan.Change {
	var changes []plan.Change
	have := &compared.Have
	if have.Data == observed.DataFilled {
		dir := h.Want.Member.DataDir
		changes = append(changes, plan.Change{Host: h.Name, Action: plan.Update, Kind: plan.Directory, Name: dir, Details: []string{"what it holds is moved aside, to " + h.aside()}})
		have.Files = maps.Clone(have.Files)
		delete(have.Files, dir)
	}
	if have.Record.ClusterID != "" || have.Record.MemberID != "" {
		changes = append(changes, plan.Change{Host: h.Name, Action: plan.Update, Kind: plan.Record, Name: h.Want.Paths.Record, Details: []string{"without the IDs of the member that is replaced"}})
	}
	have.Record.ClusterID, have.Record.MemberID = "", ""
	have.Unit.Active = "inactive"
	return changes
}

// caFingerprint is that of the CA, empty when there is none yet.
func (r *Run) caFingerprint() (string, error) {
	if len(r.Bundle.CA) == 0 {
		return "", nil
	}
	sums, err := fingerprints(r.Bundle.CA)
	if err != nil {
		return "", err
	}
	return sums[0], nil
}

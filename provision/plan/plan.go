// Package plan compares what the hosts of a cluster should have with what they
// have, without touching any of them. The same input gives the same plan, in
// the same order.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Action says what is done to the thing a Change names. They appear in JSON
// output: do not rename.
type Action string

const (
	Create  Action = "create"
	Update  Action = "update" // content, mode, owner or setting
	Restart Action = "restart"
	Start   Action = "start"
	Remove  Action = "remove"
	Add     Action = "add"     // a member, as a learner
	Promote Action = "promote" // a learner, to a voter
	Note    Action = "note"    // it stays as it is, and somebody should know
)

// Kind says what a Change is about. They appear in JSON output: do not rename.
type Kind string

const (
	Account     Kind = "account"
	Directory   Kind = "directory"
	Program     Kind = "program"
	Link        Kind = "link"
	File        Kind = "file"
	Certificate Kind = "certificate"
	Unit        Kind = "unit"
	Record      Kind = "record"
	Service     Kind = "service"
	Member      Kind = "member"
	Backup      Kind = "backup"
	Image       Kind = "image"
	Manifest    Kind = "manifest" // of a static pod
)

// Change is one thing that is not as it should be, and what is done about it.
type Change struct {
	// Host is the name in the inventory; empty for what concerns the
	// workstation or the cluster as a whole.
	Host   string `json:"host,omitempty"`
	Action Action `json:"action"`
	Kind   Kind   `json:"kind"`
	// Name is a path, a unit, an account or a member.
	Name string `json:"name"`
	// Details say what differs, one line each: "--heartbeat-interval: 100 -> 150".
	Details []string `json:"details,omitempty"`
	// Shared says that the certificate is that of other clusters too, whose run
	// may make it first.
	Shared bool `json:"shared,omitempty"`
}

// Plan is every change that makes a cluster what its inventory says: first
// those on the workstation, then those on each host in the order of the
// inventory, then those of the members, each in the order of execution.
type Plan struct {
	Cluster string   `json:"cluster"`
	Hosts   []string `json:"hosts"` // all of them
	Changes []Change `json:"changes"`
}

// Empty says that nothing is to be done.
func (p *Plan) Empty() bool { return p.Len() == 0 }

// Len is how many changes there are. Notes are not changes.
func (p *Plan) Len() int {
	n := 0
	for _, c := range p.Changes {
		if c.Action != Note {
			n++
		}
	}
	return n
}

// Of returns the changes on one host, or with an empty name those on none.
func (p *Plan) Of(host string) []Change {
	var changes []Change
	for _, c := range p.Changes {
		if c.Host == host {
			changes = append(changes, c)
		}
	}
	return changes
}

// Fingerprint is equal for equal plans: 16 hexadecimal digits. Who makes a
// certificate that is shared, and what it then holds, makes no difference.
func (p *Plan) Fingerprint() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", Plan{p.Cluster, p.Hosts, p.agreed()}))
	return hex.EncodeToString(sum[:8])
}

// agreed is what a person agrees to: the changes without what the run for
// another cluster, with the same certificates, may change meanwhile.
func (p *Plan) agreed() []Change {
	var changes []Change
	for _, c := range p.Changes {
		if c.Shared && c.Host == "" {
			continue
		}
		if c.Shared {
			c.Details = nil
		}
		changes = append(changes, c)
	}
	return changes
}

// Difference says in one line where two plans part, for a person who approved
// the first and is faced with the second.
func Difference(approved, now *Plan) string {
	before, after := approved.agreed(), now.agreed()
	for i, c := range after {
		if i >= len(before) || !same(c, before[i]) {
			return "now planned, and not shown before: " + c.String()
		}
	}
	if len(before) > len(after) {
		return "no longer needed: " + before[len(after)].String()
	}
	return ""
}

func same(a, b Change) bool { return fmt.Sprintf("%q", a) == fmt.Sprintf("%q", b) }

func (c Change) String() string {
	where := c.Host
	if where == "" {
		where = "cluster"
	}
	return where + ": " + c.sentence()
}

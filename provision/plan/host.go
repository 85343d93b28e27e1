package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"muster/provision/desired"
	"muster/provision/observed"
	"muster/templates"
)

// Host is one host as it should be and as it is.
type Host struct {
	Want desired.Host
	Have observed.Facts
	// Programs are those to install, by their path on the host.
	Programs map[string]Content
	// Record is what the host should remember. Its CA is empty when the CA has
	// yet to be made, its IDs when the cluster has yet to be founded or asked.
	Record observed.Record
	// Joins says that the member is added to a cluster that runs.
	Joins bool
}

// Content is a program without its bytes.
type Content struct {
	SHA256 string
	Size   int64 // bytes
}

// Compare returns the changes that make a host what it should be.
func (h Host) Compare() []Change {
	c := &comparison{Host: h}
	c.account()
	c.directories()
	c.programs()
	c.image()
	c.links()
	c.files()
	c.record()
	c.unit()
	c.service()
	c.backup()
	c.identity()
	return c.changes
}

// CompareFiles is Compare for a host that runs no member: its directories and
// files alone.
func (h Host) CompareFiles() []Change {
	c := &comparison{Host: h}
	c.directories()
	for _, f := range h.Want.Files {
		c.file(f)
	}
	return c.changes
}

// Restarts says whether changes restart a member.
func Restarts(changes []Change) bool {
	return slices.ContainsFunc(changes, func(c Change) bool { return c.Kind == Service && c.Action == Restart })
}

type comparison struct {
	Host
	changes []Change
	stale   bool // the running member does not use what is installed
}

func (c *comparison) add(action Action, kind Kind, name string, details ...string) {
	c.changes = append(c.changes, Change{Host: c.Want.Name, Action: action, Kind: kind, Name: name, Details: details})
}

func (c *comparison) account() {
	if !c.Have.HasGroup {
		c.add(Create, Account, "group "+c.Want.Account.Group)
	}
	if !c.Have.HasUser {
		c.add(Create, Account, "user "+c.Want.Account.User)
	}
}

func (c *comparison) directories() {
	for _, d := range c.Want.Directories {
		have, exists := c.Have.Files[d.Path]
		switch {
		case !exists:
			c.add(Create, Directory, d.Path)
		case d.Shared && have.Type == observed.SymbolicLink: // to where somebody wants it
		case have.Type != "directory":
			c.add(Update, Directory, d.Path, arrow("type", have.Type, "directory"))
		case d.Shared:
		default:
			if details := attributes(have, d.Mode, d.Owner, d.Group); len(details) > 0 {
				c.add(Update, Directory, d.Path, details...)
			}
		}
	}
}

func attributes(have observed.FileFact, mode fs.FileMode, owner, group string) []string {
	var details []string
	if have.Mode != mode.Perm() {
		details = append(details, arrow("mode", fmt.Sprintf("%04o", have.Mode), fmt.Sprintf("%04o", mode.Perm())))
	}
	if have.Owner != owner || have.Group != group {
		details = append(details, arrow("owner", have.Owner+":"+have.Group, owner+":"+group))
	}
	return details
}

func (c *comparison) programs() {
	for _, b := range c.Want.Binaries {
		have, exists := c.Have.Files[b.Path]
		want := c.Programs[b.Path]
		switch {
		case !exists:
			c.add(Create, Program, b.Path, fmt.Sprintf("sha256: %.12s, %.1f MiB", want.SHA256, float64(want.Size)/(1<<20)))
		case have.SHA256 != want.SHA256:
			c.add(Update, Program, b.Path, fmt.Sprintf("sha256: %.12s -> %.12s", have.SHA256, want.SHA256))
		default:
			c.attributes(Program, b.Path, have, b.Mode, b.Owner, b.Group)
			continue
		}
		c.changed(b.Path)
	}
}

// image is the container image that the program is imported as. Those that the
// member ran from before go.
func (c *comparison) image() {
	if c.Want.Image == "" {
		return
	}
	if !slices.Contains(c.Have.Images, c.Want.Image) {
		c.add(Create, Image, c.Want.Image)
	}
	for _, have := range c.Have.Images {
		if have != c.Want.Image {
			c.add(Remove, Image, have)
		}
	}
}

func (c *comparison) attributes(kind Kind, path string, have observed.FileFact, mode fs.FileMode, owner, group string) {
	if details := attributes(have, mode, owner, group); len(details) > 0 {
		c.add(Update, kind, path, details...)
	}
}

// changed notes that the content at a path changes.
func (c *comparison) changed(path string) {
	for _, u := range c.Want.Units {
		c.stale = c.stale || slices.Contains(u.RestartOn, path)
	}
}

func (c *comparison) links() {
	for _, l := range c.Want.Links {
		have, exists := c.Have.Files[l.Path]
		switch {
		case !exists:
			c.add(Create, Link, l.Path, "to "+l.Target)
		case have.Target != l.Target:
			c.add(Note, Link, l.Path, "it exists and is not muster's; it is left alone")
		}
	}
}

func (c *comparison) files() {
	for _, f := range c.Want.Files {
		if f.Path != c.Want.Units[0].Path {
			c.file(f)
		}
	}
}

func (c *comparison) file(f desired.File) {
	have, exists := c.Have.Files[f.Path]
	kind := kindOf(f)
	sum := sha256.Sum256(f.Content)
	switch {
	case !exists:
		c.add(Create, kind, f.Path, contentDetails(kind, f, "")...)
	case !f.Kept && (len(f.Content) == 0 || have.SHA256 != hex.EncodeToString(sum[:])):
		c.add(Update, kind, f.Path, append(contentDetails(kind, f, have.Text), attributes(have, f.Mode, f.Owner, f.Group)...)...)
	default:
		c.attributes(kind, f.Path, have, f.Mode, f.Owner, f.Group)
		return
	}
	c.changed(f.Path)
}

func kindOf(f desired.File) Kind {
	switch path.Ext(f.Path) {
	case ".crt":
		return Certificate
	case ".service", ".timer":
		return Unit
	case ".yaml":
		return Manifest
	}
	return File
}

func contentDetails(kind Kind, f desired.File, have string) []string {
	switch {
	case f.Secret:
		return nil // that it differs is all there is to say
	case kind == Certificate:
		return certificateDetails(have, string(f.Content))
	case kind == Unit && have != "":
		return unitDetails(have, string(f.Content), templates.ReadUnit)
	case kind == Manifest && have != "":
		return unitDetails(have, string(f.Content), templates.ReadPod)
	}
	return nil
}

func (c *comparison) record() {
	have, want := c.Have.Record, c.Record
	want.ClusterID, want.MemberID = have.ClusterID, have.MemberID
	switch {
	case have == (observed.Record{}):
		c.add(Create, Record, c.Want.Paths.Record, "a member of cluster "+want.Cluster)
	case have != want:
		c.add(Update, Record, c.Want.Paths.Record)
	}
}

func (c *comparison) unit() {
	unit := c.Want.Units[0]
	for _, f := range c.Want.Files {
		if f.Path == unit.Path {
			c.file(f)
		}
	}
	if unit.Enabled && !c.Have.Unit.Enabled {
		c.add(Update, Unit, unit.Name, "starts at boot: no -> yes")
	}
}

func (c *comparison) service() {
	unit := c.Want.Units[0]
	name := unit.Name
	switch {
	case !c.Have.Unit.Running():
		var details []string
		if unit.IsPod() {
			details = append(details, "by "+unit.Manifest)
		}
		if c.Joins {
			details = append(details, "it joins the cluster that runs")
		}
		c.add(Start, Service, name, details...)
	case c.stale || c.Have.RestartPending:
		c.add(Restart, Service, name, c.foreignManifest()...)
	}
}

// foreignManifest tells what somebody else has changed in the manifest that the
// kubelet reads.
func (c *comparison) foreignManifest() []string {
	unit := c.Want.Units[0]
	if !unit.IsPod() || !c.Have.Unit.NeedsReload {
		return nil
	}
	details := []string{"the kubelet runs another manifest than muster's"}
	return append(details, unitDetails(c.Have.Files[unit.Manifest].Text, c.Have.Files[unit.Path].Text, templates.ReadPod)...)
}

// identity is what is recorded when the cluster has been verified.
func (c *comparison) identity() {
	have := c.Have.Record
	known := c.Record.ClusterID != "" && c.Record.MemberID != ""
	switch {
	case have.ClusterID == "" || have.MemberID == "":
		c.add(Update, Record, c.Want.Paths.Record, "with the IDs of the cluster and the member")
	case known && (have.ClusterID != c.Record.ClusterID || have.MemberID != c.Record.MemberID):
		c.add(Update, Record, c.Want.Paths.Record, arrow("member ID", have.MemberID, c.Record.MemberID))
	}
}

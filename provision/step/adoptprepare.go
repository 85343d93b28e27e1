package step

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-semver/semver"

	"muster/provision/desired"
	"muster/provision/remote"
	"muster/provision/runner"
)

// Takeover is what is about to happen, for the operator to agree to.
type Takeover struct {
	Cluster string `json:"cluster"`
	Server  string `json:"server"` // "etcd" or "musterd"
	InPlace bool   `json:"inPlace"`
	// Returns says that the cluster goes back to what ran it before.
	Returns bool `json:"returns,omitempty"`
	// Unit is what runs the new members.
	Unit string `json:"unit"`
	// Bytes is the size of the database, DataDir where the data will be.
	Bytes   int64          `json:"bytes"`
	DataDir string         `json:"dataDir"`
	Hosts   []TakeoverHost `json:"hosts"`
}

// TakeoverHost is one host of a Takeover.
type TakeoverHost struct {
	Name      string `json:"name"`
	Installer string `json:"installer"`
	Version   string `json:"version,omitempty"`
	Leader    bool   `json:"leader,omitempty"`
	Source    string `json:"source"`
	DataDir   string `json:"dataDir"`
}

// Confirm shows what will happen, and goes on only if that is accepted.
func (a *Adopt) Confirm(ask func(context.Context, Takeover) (bool, error)) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		if ask == nil || Over(r) {
			return nil
		}
		ok, err := ask(ctx, a.Describe(r))
		if err != nil {
			return &localError{err}
		}
		if !ok {
			return ErrDeclined
		}
		return nil
	}
}

// ConfirmReturn is Confirm for giving a cluster back whose new members take
// writes. An interrupted adoption is undone without a question, and so goes on what
// was agreed to before.
func (a *Adopt) ConfirmReturn(ask func(context.Context, Takeover) (bool, error)) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		agreed := func(h *Host) bool { return h.Facts.Adoption.Returning != "" }
		if ask == nil || a.InPlace(r) || !Over(r) || slices.ContainsFunc(r.Hosts, agreed) {
			return nil
		}
		t := a.Describe(r)
		t.Returns = true
		ok, err := ask(ctx, t)
		if err != nil {
			return &localError{err}
		}
		if !ok {
			return ErrDeclined
		}
		return nil
	}
}

// Describe says what would happen.
func (a *Adopt) Describe(r *Run) Takeover {
	t := Takeover{Cluster: r.Cluster.Name, Server: serverProgram, InPlace: a.InPlace(r), Unit: r.Hosts[0].unit().Title(), DataDir: r.Hosts[0].Want.Member.DataDir}
	if r.Hosts[0].Server.Binary != "" {
		t.Server = "etcd"
	}
	for _, h := range r.Hosts {
		v := r.roster.views[h.Name]
		t.Bytes = max(t.Bytes, v.DBSize)
		adoption := a.adoption(h)
		source := adoption.Unit
		if source == "" {
			source = adoption.Manifest
		}
		leads := v.Leader != 0 && v.Leader == v.MemberID
		t.Hosts = append(t.Hosts, TakeoverHost{Name: h.Name, Leader: leads, Installer: adoption.Installer, Version: v.Version, Source: source, DataDir: adoption.DataDir})
	}
	return t
}

// ImportCA brings the CA and its key to the workstation, from where all
// certificates come from then on.
func (a *Adopt) ImportCA(ctx context.Context, r *Run) error {
	if r.Cluster.PKI.External {
		return nil
	}
	if there, err := r.PKI.HasKey(); err != nil || there {
		if err != nil {
			return &localError{err}
		}
		return nil
	}
	cert, key := []byte(nil), a.CAKey
	for _, h := range r.Hosts {
		old := a.olds[h.Name]
		if old == nil {
			continue
		}
		cert = old.CACert
		if len(key) == 0 && old.CAKey != "" {
			files, err := readSecret(ctx, h, "read the key of the CA", []string{old.CAKey})
			if err != nil {
				return &hostError{h.Name, err}
			}
			key = files[old.CAKey]
		}
		if len(key) > 0 {
			break
		}
	}
	made, err := r.PKI.Import(ctx, cert, key)
	if err != nil {
		return &localError{err}
	}
	for _, m := range made {
		r.change("certificates", "took over "+m.Path)
	}
	return nil
}

// MakeDirectories is MakeDirectories but for a data directory that is in use.
func (a *Adopt) MakeDirectories(ctx context.Context, h *Host) error {
	return makeDirectories(ctx, h, slices.DeleteFunc(slices.Clone(h.Want.Directories), func(d desired.Directory) bool { return d.Data }))
}

// CheckProgram makes sure that the server which is installed runs on the host,
// and where it is etcd, that it can go on with the data of the old one: etcd goes
// up by one minor version at a time, and not down.
func (a *Adopt) CheckProgram(ctx context.Context, h *Host) error {
	result, err := h.Remote.Run(ctx, h.askVersion())
	if err != nil {
		return err
	}
	v, known := h.run.roster.views[h.Name]
	_, text, isEtcd := strings.Cut(result.Stdout, "etcd Version: ")
	if !isEtcd || !known || !a.inPlace(h) {
		return nil
	}
	fresh, err := semver.NewVersion(strings.Fields(text)[0])
	if err != nil {
		return fmt.Errorf("%s: the version of %s: %w", h.Name, h.Server.Binary, err)
	}
	old, err := semver.NewVersion(v.Version)
	if err != nil {
		return fmt.Errorf("%s: the version of the member: %w", h.Name, err)
	}
	if fresh.Major != old.Major || fresh.Minor < old.Minor || fresh.Minor > old.Minor+1 {
		return fmt.Errorf("%s: the members are etcd %s, and %s is %s: it has to be the same minor version or the next one; name another server.binary", h.Name, old, h.Server.Binary, fresh)
	}
	return nil
}

// askVersion runs the server that is installed for its version.
func (h *Host) askVersion() remote.Command {
	c := remote.Command{Label: "ask the server for its version", Script: `"$1" --version`, Args: []string{h.binary(serverProgram)}}
	if h.unit().IsPod() {
		c.Functions, c.Script, c.Args = runner.ImageFunctions, `image_run "$1" etcd --version`, []string{h.Want.Image}
	}
	return c
}

// Old is the etcd that was found on a host; nil for none.
func (a *Adopt) Old(host string) *Old { return a.olds[host] }

package provision

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/step"
)

// The places where a certificate is found. They appear in JSON output: do not
// rename.
const (
	PlaceWorkstation = "workstation"
	PlaceHost        = "host"
	PlaceServed      = "served"
)

// FoundCertificate is one certificate in one place.
type FoundCertificate struct {
	pki.Certificate
	Place string `json:"place"`
	// On is the host where it was found; empty for the workstation.
	On string `json:"on,omitempty"`
	// Endpoint is the URL it was served on.
	Endpoint string `json:"endpoint,omitempty"`
	// DaysLeft are whole days, negative when it has expired.
	DaysLeft int `json:"daysLeft"`
}

// CertificateCheck is every certificate of a cluster, wherever it is. Its JSON
// form is stable.
type CertificateCheck struct {
	Cluster string    `json:"cluster"`
	Phase   pki.Phase `json:"phase"` // of a replacement of the CA
	// CAKey is "in clear", "encrypted", "missing" or "external".
	CAKey        string             `json:"caKey"`
	Certificates []FoundCertificate `json:"certificates"`
	// Problems are those that belong to no certificate, such as hosts that
	// cannot be reached.
	Problems []string `json:"problems,omitempty"`
	// OK says that nothing needs a person.
	OK bool `json:"ok"`
}

// CheckCertificates judges every certificate on the workstation, on the hosts
// and in the handshakes of the members. It changes nothing and takes no lock.
// An error means that nothing could be judged.
func CheckCertificates(ctx context.Context, cluster *inventory.Cluster, o Options) (*CertificateCheck, error) {
	o = o.withDefaults()
	r, err := begin("certs check", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	in, err := r.PKI.Inspect(desired.Certificates(cluster))
	if err != nil {
		return nil, err
	}
	c := &CertificateCheck{Cluster: cluster.Name, Phase: in.Phase, CAKey: in.CAKey}
	if cluster.PKI.External {
		c.CAKey = "external"
	}
	c.workstation(in)
	want, err := desired.For(cluster, withAllHosts(in.Bundle, cluster))
	if err != nil {
		return nil, err
	}
	found := make([]hostCertificates, len(r.Hosts)+len(r.APIServers))
	unreachable := reach(ctx, r)
	var wg sync.WaitGroup
	for i, h := range r.Hosts {
		h.Want = want[i]
		if unreachable[i] != nil {
			found[i].problems = []string{fmt.Sprintf("%s: host not reached: %v", h.Name, unreachable[i])}
			continue
		}
		wg.Go(func() { found[i].look(ctx, h, in) })
	}
	for i, a := range r.APIServers {
		a.Want = a.Wanted(in.Bundle)
		wg.Go(func() { found[len(r.Hosts)+i].lookAtAPIServer(ctx, a, in) })
	}
	wg.Wait()
	for _, f := range found {
		c.Certificates = append(c.Certificates, f.certificates...)
		c.Problems = append(c.Problems, f.problems...)
	}
	c.OK = len(c.Problems) == 0
	now := time.Now()
	for i := range c.Certificates {
		f := &c.Certificates[i]
		if !f.NotAfter.IsZero() {
			f.DaysLeft = int(f.NotAfter.Sub(now) / (24 * time.Hour))
		}
		c.OK = c.OK && len(f.Problems) == 0
	}
	return c, nil
}

func (c *CertificateCheck) workstation(in *pki.Inspection) {
	for _, one := range in.Certificates {
		c.Certificates = append(c.Certificates, FoundCertificate{Certificate: one, Place: PlaceWorkstation})
	}
	if c.CAKey == "missing" {
		c.Problems = append(c.Problems, "the CA's key is not on this workstation: put it back before a certificate is to be made; if it is lost, muster certs rotate-ca makes a new CA without a pause")
	}
	if in.Phase != pki.Settled {
		c.Problems = append(c.Problems, fmt.Sprintf("a replacement of the CA is under way (%s): muster certs rotate-ca goes on with it", in.Phase))
	}
}

// withAllHosts lets a host without certificates have empty ones.
func withAllHosts(bundle pki.Bundle, cluster *inventory.Cluster) pki.Bundle {
	for _, h := range cluster.Hosts {
		if _, ok := bundle.Hosts[h.Name]; !ok {
			bundle.Hosts[h.Name] = pki.HostPairs{}
		}
	}
	return bundle
}

// hostCertificates is what was found on one host.
type hostCertificates struct {
	certificates []FoundCertificate
	problems     []string
}

func (c *hostCertificates) look(ctx context.Context, h *step.Host, in *pki.Inspection) {
	if err := step.LookOnly(ctx, h); err != nil {
		c.problems = append(c.problems, err.Error())
		return
	}
	c.served(ctx, h, in, c.installed(h, in))
}

func (c *hostCertificates) lookAtAPIServer(ctx context.Context, a *step.Host, in *pki.Inspection) {
	if err := step.LookAtAPIServer(ctx, a); err != nil {
		c.problems = append(c.problems, fmt.Sprintf("%s: host not reached: %v", a.Name, err))
		return
	}
	c.installed(a, in)
}

// installed judges the files of a host. It returns them by name.
func (c *hostCertificates) installed(h *step.Host, in *pki.Inspection) map[string]pki.Certificate {
	installed := map[string]pki.Certificate{}
	for _, f := range h.Want.Files {
		name, ext := strings.TrimSuffix(path.Base(f.Path), path.Ext(f.Path)), path.Ext(f.Path)
		if ext != ".crt" {
			continue
		}
		var text []byte
		if have, ok := h.Facts.Files[f.Path]; ok {
			text = []byte(have.Text)
		}
		if name == "ca" {
			for _, one := range in.JudgeBundle(text) {
				one.Path = f.Path
				c.certificates = append(c.certificates, FoundCertificate{Certificate: one, Place: PlaceHost, On: h.Name})
			}
			continue
		}
		one := in.Judge(h.Name, name, text)
		renewed := isStacked(h) && in.Succeeds(h.Name, name, text)
		switch {
		case renewed:
			one.Problems = nil // such as another key algorithm
		case text != nil && len(one.Problems) == 0 && !bytes.Equal(bytes.TrimSpace(text), bytes.TrimSpace(f.Content)):
			one.Problems = append(one.Problems, "it is not the one on the workstation; muster apply installs that")
		}
		if !renewed && len(one.Problems) == 0 {
			one.Problems = append(one.Problems, keyProblem(h, name)...)
		}
		one.Path = f.Path
		installed[name] = one
		c.certificates = append(c.certificates, FoundCertificate{Certificate: one, Place: PlaceHost, On: h.Name})
	}
	return installed
}

// isStacked says that kubeadm may renew the host's certificates as well.
func isStacked(h *step.Host) bool { return len(h.Want.Units) > 0 && h.Want.Units[0].IsPod() }

// keyProblem compares the key beside a certificate with the workstation's: by
// its hash, for a key does not travel to be looked at.
func keyProblem(h *step.Host, name string) []string {
	for _, f := range h.Want.Files {
		if path.Base(f.Path) != name+".key" {
			continue
		}
		have, exists := h.Facts.Files[f.Path]
		sum := sha256.Sum256(f.Content)
		switch {
		case !exists:
			return []string{"its key is missing; muster apply installs it"}
		case have.SHA256 != hex.EncodeToString(sum[:]):
			return []string{"its key is not the one on the workstation; muster apply installs that"}
		case have.Mode != f.Mode.Perm() || have.Owner != f.Owner || have.Group != f.Group:
			return []string{fmt.Sprintf("its key has the mode %04o and the owner %s:%s, not %04o and %s:%s; muster apply corrects it", have.Mode, have.Owner, have.Group, f.Mode.Perm(), f.Owner, f.Group)}
		}
	}
	return nil
}

// served compares what the member shows with what is installed.
func (c *hostCertificates) served(ctx context.Context, h *step.Host, in *pki.Inspection, installed map[string]pki.Certificate) {
	client := in.Bundle.HealthcheckClient
	if len(client.Cert) == 0 || len(client.Key) == 0 {
		return // the workstation's part says so
	}
	for _, s := range step.LookAtServed(ctx, h, client) {
		if s.Err != nil {
			c.problems = append(c.problems, fmt.Sprintf("%s: %v", h.Name, s.Err))
			continue
		}
		one := in.Judge(h.Name, string(s.Role), s.PEM())
		if isStacked(h) && in.Succeeds(h.Name, string(s.Role), s.PEM()) {
			one.Problems = nil
		}
		if one.Serial != installed[string(s.Role)].Serial {
			one.Problems = append(one.Problems, "it is not the one that is installed; muster certs renew makes the member take that up")
		}
		c.certificates = append(c.certificates, FoundCertificate{Certificate: one, Place: PlaceServed, On: h.Name, Endpoint: s.Endpoint})
	}
}

// Recovery is what RecoverCertificates has brought back.
type Recovery struct {
	Changes []pki.Change
	// Missing is what no host has, by path.
	Missing []string
}

// RecoverCertificates rebuilds the directory on the workstation from what the
// hosts have. Nothing that is in the directory is replaced, and no host is
// changed. The CA's key is on no host. Hosts that cannot be reached are warned
// about: what only they have stays missing.
func RecoverCertificates(ctx context.Context, cluster *inventory.Cluster, o Options) (*Recovery, error) {
	o = o.withDefaults()
	r, err := begin("certs recover", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	unreachable := reach(ctx, r)
	if err := someReached(r, unreachable); err != nil {
		return nil, diagnose(ctx, r, err)
	}
	tellUnreached(r, unreachable)
	files := make([]map[string][]byte, len(r.Hosts))
	failed := make([]error, len(r.Hosts))
	var wg sync.WaitGroup
	for i, h := range r.Hosts {
		if unreachable[i] == nil {
			wg.Go(func() { files[i], failed[i] = step.ReadCertificates(ctx, h) })
		}
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	found := pki.Found{Hosts: map[string]pki.HostPairs{}}
	first := ""
	for i, h := range r.Hosts {
		ca := files[i]["ca.crt"]
		if len(ca) == 0 {
			continue
		}
		if found.CA == nil {
			found.CA, first = ca, h.Name
		}
		if !bytes.Equal(bytes.TrimSpace(ca), bytes.TrimSpace(found.CA)) {
			return nil, fmt.Errorf("%s and %s trust different CAs; take the one that is not of this cluster out of the inventory", first, h.Name)
		}
		pair := func(name string) pki.Pair { return pki.Pair{Cert: files[i][name+".crt"], Key: files[i][name+".key"]} }
		found.Hosts[h.Name] = pki.HostPairs{Server: pair("server"), Peer: pair("peer")}
		if c := pair("healthcheck-client"); len(c.Cert) > 0 && len(c.Key) > 0 {
			found.HealthcheckClient = c
		}
	}
	found.APIServerEtcdClient = deliveredClient(ctx, r, files)
	if found.CA == nil {
		return nil, errors.New("no host has a certificate of this cluster; is the inventory the right one?")
	}
	changes, missing, err := r.PKI.Restore(ctx, desired.Certificates(cluster), found)
	if err != nil {
		return nil, err
	}
	return &Recovery{Changes: changes, Missing: missing}, nil
}

// deliveredClient is the pair of a kube-apiserver's client that a host has, or a
// machine with a kube-apiserver; those that cannot be reached are warned about.
func deliveredClient(ctx context.Context, r *step.Run, files []map[string][]byte) (pair pki.Pair) {
	for _, a := range r.APIServers {
		if a.OnlyCalls {
			continue
		}
		err := step.LookAtAPIServer(ctx, a)
		if err == nil {
			var have map[string][]byte
			have, err = step.ReadCertificates(ctx, a)
			files = append(files, have)
		}
		if err != nil {
			r.Reporter.Report(step.Event{Time: time.Now(), Kind: step.Warning, Step: "connect", Host: a.Name, Text: err.Error()})
		}
	}
	for _, have := range files {
		if cert, key := have[pki.APIServerName+".crt"], have[pki.APIServerName+".key"]; len(cert) > 0 && len(key) > 0 {
			return pki.Pair{Cert: cert, Key: key}
		}
	}
	return pair
}

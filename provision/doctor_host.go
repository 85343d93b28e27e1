package provision

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"muster/provision/observed"
	"muster/provision/plan"
	"muster/provision/remote"
	"muster/provision/step"
)

// expirySoon is when a certificate is worth a word, before it ends.
const expirySoon = 30 * 24 * time.Hour

// examine looks at the facts of each host.
func (d *doctor) examine(ctx context.Context) error {
	problems, err := step.Examine(d.run)
	if err != nil {
		return err
	}
	for _, p := range problems {
		at := slices.IndexFunc(d.run.Hosts, func(h *step.Host) bool { return h.Name == p.Host })
		if at < 0 || d.looked(at) { // with a kube-apiserver alone, or a controller
			d.findText(p.Host, p.Text)
		}
	}
	for i, h := range d.run.Hosts {
		if !d.looked(i) || h.Remote.Privilege().Problem != "" {
			continue
		}
		d.installed(h)
		d.certificates(h, time.Now())
		if free, low := h.Low(); low {
			d.find(h.Name, fmt.Sprintf("only %d MiB are free for %s", free>>20, h.Want.Member.DataDir), "make room: without any the member stops taking writes")
		}
		by, err := h.Holder(ctx)
		switch {
		case errors.Is(err, remote.ErrConnectionLost):
			d.findText(h.Name, err.Error())
		case err == nil && by != "":
			d.find(h.Name, "another run of muster is at work: "+by, "wait for it; the lock is gone as soon as its SSH connection is")
		}
	}
	return nil
}

// installed finds a host on which an installation has stopped half-way, or of
// which somebody has removed a part.
func (d *doctor) installed(h *step.Host) {
	const apply = "muster apply completes what is missing"
	f, unit := h.Facts, h.Want.Units[0]
	var missing []string
	count := 0
	for _, want := range slices.Concat(programPaths(h), filePaths(h)) {
		count++
		if _, exists := f.Files[want]; !exists {
			missing = append(missing, want)
		}
	}
	some := len(missing) < count
	switch {
	case f.Unit.Loaded && len(missing) > 0:
		d.find(h.Name, fmt.Sprintf("%s is installed without %s", unit.Title(), strings.Join(missing, ", ")), apply)
	case some && !f.Unit.Loaded && f.Files[unit.Path].SHA256 != "":
		d.find(h.Name, fmt.Sprintf("systemd has not loaded %s", unit.Path), apply)
	case some && len(missing) > 0:
		d.find(h.Name, fmt.Sprintf("the installation is not complete: %d of %d files are missing, %s among them", len(missing), count, missing[0]), apply)
	case !some && f.Data == observed.DataFilled && f.Record != (observed.Record{}):
		d.find(h.Name, fmt.Sprintf("there is data of cluster %s in %s, and no server", f.Record.Cluster, h.Want.Member.DataDir), "muster apply starts it again; muster reset --data removes it")
	}
	switch {
	case !f.Unit.Loaded:
		return
	case !f.Unit.Enabled:
		d.find(h.Name, unit.Name+" does not start at boot", apply)
	}
	if f.Unit.Active != "active" {
		d.find(h.Name, fmt.Sprintf("%s is %s (%s, %s)", unit.Title(), f.Unit.Active, f.Unit.Sub, f.Unit.Result), "muster logs "+h.Name)
	} else if f.Unit.Restarts > 0 && !unit.IsPod() { // the kubelet's count goes on for ever
		d.find(h.Name, fmt.Sprintf("systemd has restarted the member %d times by itself", f.Unit.Restarts), "muster logs "+h.Name+" --since 1d says why it ended")
	}
	if f.RestartPending && !f.Unit.NeedsReload {
		d.find(h.Name, "the member does not use what is installed since", "muster apply restarts it")
	}
	if plan.BackupStale(h.Want.Paths, h.Want.Backup, f) {
		d.find(h.Name, "backups are not made as the inventory says", apply)
	}
	switch {
	case f.Unit.NeedsReload && unit.IsPod():
		d.find(h.Name, fmt.Sprintf("the kubelet runs another manifest than muster's: %s was changed", unit.Manifest), "muster plan shows how it differs; "+apply)
	case f.Unit.NeedsReload:
		d.find(h.Name, fmt.Sprintf("%s has changed, and systemd has not read it", unit.Path), apply)
	}
}

func programPaths(h *step.Host) []string {
	var paths []string
	for _, b := range h.Want.Binaries {
		paths = append(paths, b.Path)
	}
	return paths
}

func filePaths(h *step.Host) []string {
	var paths []string
	for _, f := range h.Want.Files {
		paths = append(paths, f.Path)
	}
	return paths
}

// certificates looks at those on the host: whether they hold now and for a while,
// whether the host's own CA has signed them, and whether they name the host.
func (d *doctor) certificates(h *step.Host, now time.Time) {
	const renew = "muster apply renews what has to be"
	var roots *x509.CertPool
	for _, file := range h.Want.Files {
		text := h.Facts.Files[file.Path].Text
		if path.Base(file.Path) == "ca.crt" && text != "" {
			roots = x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(text))
		}
	}
	for _, file := range h.Want.Files {
		text, known := h.Facts.Files[file.Path]
		if path.Ext(file.Path) != ".crt" || !known {
			continue
		}
		cert, err := parseCertificate(text.Text)
		if err != nil {
			d.find(h.Name, file.Path+" "+err.Error(), renew)
			continue
		}
		day := cert.NotAfter.Format(time.DateOnly)
		switch {
		case now.After(cert.NotAfter):
			d.find(h.Name, fmt.Sprintf("%s expired on %s", file.Path, day), renew)
		case now.Add(expirySoon).After(cert.NotAfter):
			d.find(h.Name, fmt.Sprintf("%s expires on %s", file.Path, day), renew)
		case now.Before(cert.NotBefore):
			d.find(h.Name, fmt.Sprintf("%s is valid only from %s", file.Path, cert.NotBefore.Format(time.RFC3339)), "compare the clocks of this workstation and the host")
		}
		if cert.IsCA {
			continue
		}
		if roots != nil {
			options := x509.VerifyOptions{Roots: roots, CurrentTime: middle(cert), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
			if _, err := cert.Verify(options); err != nil {
				d.find(h.Name, fmt.Sprintf("%s was not signed by the CA on the host (issuer %q)", file.Path, cert.Issuer.CommonName), renew)
			}
		}
		if base := path.Base(file.Path); base == "server.crt" || base == "peer.crt" {
			if err := cert.VerifyHostname(h.InternalAddress); err != nil {
				d.find(h.Name, fmt.Sprintf("%s does not name %s, by which the others know this host", file.Path, h.InternalAddress), renew)
			}
		}
	}
}

// middle is a time at which the certificate was or will be valid: whether it is
// now is another question.
func middle(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("is not a certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("is not a certificate: %w", err)
	}
	return cert, nil
}

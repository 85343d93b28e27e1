package step

import (
	"context"

	"muster/pki"
	"muster/provision/desired"
)

// MakeCertificates makes the CA and the certificates that are missing on the
// workstation, and with them completes what each host should have.
func MakeCertificates(ctx context.Context, r *Run) error {
	bundle, made, err := r.PKI.Ensure(ctx, desired.Certificates(r.Cluster))
	if err != nil {
		return &localError{err}
	}
	return r.adopt(bundle, made)
}

// Outline is what each host should have as far as it is known before the
// certificates are made: everything but the content of the files.
func Outline(r *Run) error {
	bundle := pki.Bundle{Hosts: map[string]pki.HostPairs{}}
	for _, h := range r.Cluster.Hosts {
		bundle.Hosts[h.Name] = pki.HostPairs{}
	}
	want, err := desired.For(r.Cluster, bundle)
	if err != nil {
		return err
	}
	r.AddHosts(want)
	return nil
}

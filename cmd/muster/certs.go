package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"muster/pki"
	"muster/provision"
	"muster/provision/desired"
	"muster/provision/inventory"
)

// certs are the commands that look after certificates.
type certs struct{ *app }

func newCertsCommand(a *app) *cobra.Command {
	c := certs{a}
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "check, renew, replace and export certificates",
		Long: `certs looks after the certificates of a cluster for as long as it runs. They are
kept in a directory on this workstation (pki.dir in the inventory), with the CA's
key, which never leaves it.

An encrypted CA key is opened when something has to be signed: the passphrase is
asked on the terminal, or taken from MUSTER_CA_PASSPHRASE; an age identity is read
from the file that --ca-identity or MUSTER_CA_IDENTITY names.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newCertsCheckCommand(c), newCertsRenewCommand(c), newCertsRotateCommand(c), newCertsExportCommand(c),
		newCertsCSRCommand(c), newCertsRecoverCommand(c), newCertsEncryptCommand(c), newCertsDecryptCommand(c),
	)
	return cmd
}

// errCertificates makes certs check exit with 1. Everything about it was
// printed.
var errCertificates = errors.New("certificates need somebody's attention")

func newCertsCheckCommand(c certs) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "judge every certificate, here, on the hosts and in use",
		Long: `check looks at every certificate on this workstation, in the files of the hosts
and in a handshake with every port of every member: whom it is for, who signed
it, until when, and what is wrong with it. It changes nothing. The exit code is 1
when something needs a person.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.check(cmd.Context()) },
	}
}

func (c certs) check(ctx context.Context) error {
	cluster, err := c.loadInventory()
	if err != nil {
		return err
	}
	check, err := provision.CheckCertificates(ctx, cluster, c.options(ctx, operationFlags{}, nil))
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(check); err != nil {
			return err
		}
	} else {
		c.print(check)
	}
	if !check.OK {
		return errCertificates
	}
	return nil
}

// print prints a line for each certificate, with the places where it is,
// and the problems below.
func (c certs) print(check *provision.CertificateCheck) {
	fmt.Fprintf(c.out, "cluster %s, the CA's key is %s\n\n", check.Cluster, check.CAKey)
	t := table.NewWriter()
	t.SetStyle(table.Style{Box: table.BoxStyle{PaddingRight: "  "}, Format: table.FormatOptions{Header: 0}})
	t.SetColumnConfigs([]table.ColumnConfig{{Name: "DAYS", Align: text.AlignRight, AlignHeader: text.AlignRight}})
	t.AppendHeader(table.Row{"ROLE", "HOST", "SERIAL", "SUBJECT", "ISSUER", "EXPIRES", "DAYS", "WHERE", "STATE", "NAMES"})
	for _, group := range grouped(check.Certificates) {
		first := group[0]
		expires, days := "-", "-"
		if !first.NotAfter.IsZero() {
			expires, days = first.NotAfter.Format(time.DateOnly), fmt.Sprint(first.DaysLeft)
		}
		state := "ok"
		if slices.ContainsFunc(group, func(one provision.FoundCertificate) bool { return len(one.Problems) > 0 }) {
			state = "see below"
		}
		t.AppendRow(table.Row{string(first.Role), orDash(first.Host), orDash(fmt.Sprintf("%.8s", first.Serial)), orDash(first.Subject), orDash(first.Issuer), expires, days, places(group), state, orDash(strings.Join(first.SANs, " "))})
	}
	for _, line := range strings.Split(t.Render(), "\n") {
		fmt.Fprintln(c.out, strings.TrimRight(line, " "))
	}
	for _, one := range check.Certificates {
		for _, p := range one.Problems {
			fmt.Fprintf(c.out, "%s: %s\n", where(one), p)
		}
	}
	for _, p := range check.Problems {
		fmt.Fprintln(c.out, p)
	}
}

// grouped puts together what is one and the same certificate in several
// places, in the order in which they were first met.
func grouped(all []provision.FoundCertificate) [][]provision.FoundCertificate {
	type identity struct{ role, owner, serial, path string }
	index := map[identity]int{}
	var groups [][]provision.FoundCertificate
	for _, c := range all {
		id := identity{role: string(c.Role), owner: c.Host, serial: c.Serial}
		if c.Serial == "" {
			id.path = c.On + c.Path // what is not there is nowhere else
		}
		at, known := index[id]
		if !known {
			at = len(groups)
			index[id] = at
			groups = append(groups, nil)
		}
		groups[at] = append(groups[at], c)
	}
	return groups
}

// places names the places of one certificate briefly.
func places(group []provision.FoundCertificate) string {
	var names []string
	hosts := map[string]bool{}
	served := false
	for _, c := range group {
		switch c.Place {
		case provision.PlaceWorkstation:
			names = append(names, "here")
		case provision.PlaceHost:
			hosts[c.On] = true
		case provision.PlaceServed:
			served = true
		}
	}
	if len(hosts) > 0 {
		names = append(names, count(len(hosts), "host"))
	}
	if served {
		names = append(names, "in use")
	}
	return strings.Join(names, ", ")
}

func where(c provision.FoundCertificate) string {
	switch c.Place {
	case provision.PlaceHost:
		return c.On + ": " + c.Path
	case provision.PlaceServed:
		return c.On + ": served on " + c.Endpoint
	}
	return c.Path
}

func newCertsRecoverCommand(c certs) *cobra.Command {
	return &cobra.Command{
		Use:   "recover",
		Short: "rebuild a lost directory of certificates from the hosts",
		Long: `recover reads the certificates and keys that the hosts have, and writes those
that the directory on this workstation lacks. What is there stays as it is, and no
host is changed. The CA's key is on no host: when it is lost for good, muster certs
rotate-ca makes a new CA without a pause.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.recover(cmd.Context()) },
	}
}

func (c certs) recover(ctx context.Context) error {
	cluster, err := c.loadInventory()
	if err != nil {
		return err
	}
	var r reporter = &plainReporter{out: c.err}
	if c.wantsJSON() {
		r = c.newReporter(nil)
	}
	recovery, err := provision.RecoverCertificates(ctx, cluster, c.options(ctx, operationFlags{}, r))
	if err != nil {
		c.explain(err)
		return err
	}
	if c.wantsJSON() {
		return json.NewEncoder(c.out).Encode(map[string]any{"time": time.Now(), "kind": "result", "changes": len(recovery.Changes), "missing": recovery.Missing})
	}
	for _, change := range recovery.Changes {
		fmt.Fprintf(c.out, "recovered %s\n", change.Path)
	}
	if len(recovery.Changes) == 0 {
		fmt.Fprintln(c.out, "there was nothing to recover")
	}
	for _, m := range recovery.Missing {
		fmt.Fprintf(c.out, "still missing: %s\n", m)
	}
	switch {
	case slices.Contains(recovery.Missing, "ca.key"):
		fmt.Fprintln(c.out, "put ca.key back if there is a copy; if it is lost, muster certs rotate-ca makes a new CA without a pause")
	case len(recovery.Missing) > 0:
		fmt.Fprintln(c.out, "muster apply makes what is missing")
	}
	return nil
}

func newCertsCSRCommand(c certs) *cobra.Command {
	var within time.Duration
	var all bool
	cmd := &cobra.Command{
		Use:   "csr",
		Short: "write certificate requests for a CA of your own to sign",
		Long: `csr is for inventories that say pki.external: muster has no CA's key then. It
writes a request (.csr) beside every certificate that is missing or does not fit,
and a private key where there is none. Have the requests signed, put each
certificate (.crt) beside its request, with intermediate CAs after it if there are
any, and the CA's own certificate in ca.crt. muster apply checks and installs
them.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.csr(cmd.Context(), all, within) },
	}
	cmd.Flags().BoolVar(&all, "all", false, "for every certificate")
	lifetimeVar(cmd.Flags(), &within, "within", "also for those that expire within that time, such as 60d")
	return cmd
}

func (c certs) csr(ctx context.Context, all bool, within time.Duration) error {
	cluster, err := c.loadInventory()
	if err != nil {
		return err
	}
	if !cluster.PKI.External {
		return &usageError{errors.New("this cluster's CA is muster's own, which signs by itself"), "muster certs renew makes new certificates; for a CA of your own write external: true under pki: in the inventory"}
	}
	paths, err := pki.Open(cluster.PKI.Dir, pki.Keys{}).Requests(ctx, desired.Certificates(cluster), func(_ string, expires time.Time) bool {
		return all || time.Until(expires) < within
	})
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		return json.NewEncoder(c.out).Encode(map[string]any{"requests": append([]string{}, paths...)})
	}
	if len(paths) == 0 {
		fmt.Fprintln(c.out, "every certificate is there and fits; nothing is to be signed")
	}
	for _, path := range paths {
		fmt.Fprintln(c.out, path)
	}
	return nil
}

func newCertsEncryptCommand(c certs) *cobra.Command {
	var recipients []string
	var passphrase bool
	cmd := &cobra.Command{
		Use:   "encrypt-key",
		Short: "encrypt the CA's key at rest",
		Long: `encrypt-key encrypts the CA's key on this workstation with age: for recipients
("age1...", as age-keygen prints them), or under a passphrase, which is asked on
the terminal twice or taken from MUSTER_CA_NEW_PASSPHRASE. A key that is encrypted
already is encrypted anew. The key of a CA made later by rotate-ca is kept the
same way.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if passphrase == (len(recipients) > 0) {
				return &usageError{errors.New("how is the key to be encrypted?"), "say either --passphrase or --recipient age1..."}
			}
			return c.key(cmd.Context(), func(ctx context.Context, s *pki.Store) error {
				return s.EncryptKey(ctx, recipients, c.newPassphrase(ctx))
			}, "the CA's key is encrypted")
		},
	}
	cmd.Flags().StringArrayVar(&recipients, "recipient", nil, "an age recipient; may be given several times")
	cmd.Flags().BoolVar(&passphrase, "passphrase", false, "under a passphrase")
	return cmd
}

func newCertsDecryptCommand(c certs) *cobra.Command {
	return &cobra.Command{
		Use:   "decrypt-key",
		Short: "keep the CA's key in clear again",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.key(cmd.Context(), func(ctx context.Context, s *pki.Store) error { return s.DecryptKey(ctx) }, "the CA's key is in clear")
		},
	}
}

func (c certs) key(ctx context.Context, do func(context.Context, *pki.Store) error, done string) error {
	cluster, err := c.loadInventory()
	if err != nil {
		return err
	}
	if err := do(ctx, pki.Open(cluster.PKI.Dir, c.caKeys(ctx))); err != nil {
		return err
	}
	if c.wantsJSON() {
		return json.NewEncoder(c.out).Encode(map[string]any{"time": time.Now(), "kind": "result", "text": done})
	}
	fmt.Fprintln(c.out, done)
	return nil
}

// lifetimeVar is a flag that is written as lifetimes are in an inventory.
func lifetimeVar(flags interface {
	Func(name, usage string, fn func(string) error)
}, into *time.Duration, name, usage string) {
	flags.Func(name, usage, func(text string) error {
		var l inventory.Lifetime
		if err := l.UnmarshalText([]byte(text)); err != nil {
			return errors.New("write a duration such as 60d, 12h or 1y")
		}
		*into = l.Duration()
		return nil
	})
}

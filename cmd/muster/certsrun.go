package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"muster/pki"
	"muster/provision"
	"muster/provision/desired"
	"muster/provision/inventory"
)

// The environment variables that open an encrypted CA key.
const (
	passphraseVariable    = "MUSTER_CA_PASSPHRASE" //nolint:gosec // a name
	newPassphraseVariable = "MUSTER_CA_NEW_PASSPHRASE"
	identityVariable      = "MUSTER_CA_IDENTITY"
)

// caKeys says how to open the CA's key. A passphrase is asked for once.
func (a *app) caKeys(ctx context.Context) pki.Keys {
	keys := pki.Keys{IdentityFile: a.caIdentity}
	if keys.IdentityFile == "" {
		keys.IdentityFile = os.Getenv(identityVariable)
	}
	if given := os.Getenv(passphraseVariable); given != "" {
		keys.Passphrase = func(string) ([]byte, error) { return []byte(given), nil }
	} else if a.canPrompt() {
		var typed []byte
		keys.Passphrase = func(question string) (_ []byte, err error) {
			if typed == nil {
				typed, err = a.askSecret(ctx, question)
			}
			return typed, err
		}
	}
	return keys
}

// newPassphrase asks for a passphrase that does not exist yet, twice.
func (c certs) newPassphrase(ctx context.Context) func(string) ([]byte, error) {
	if given := os.Getenv(newPassphraseVariable); given != "" {
		return func(string) ([]byte, error) { return []byte(given), nil }
	}
	if !c.canPrompt() {
		return func(string) ([]byte, error) {
			return nil, &usageError{errors.New("nobody can be asked for the new passphrase"), "run the command on a terminal, or set " + newPassphraseVariable}
		}
	}
	return func(question string) ([]byte, error) {
		first, err := c.askSecret(ctx, question)
		if err != nil {
			return nil, err
		}
		second, err := c.askSecret(ctx, "the same again")
		if err == nil && !bytes.Equal(first, second) {
			err = &usageError{errors.New("the two passphrases differ"), "run the command again; nothing was changed"}
		}
		return first, err
	}
}

func certsFlags(cmd *cobra.Command, flags *operationFlags) {
	f := cmd.Flags()
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	flags.timeout.addTo(f)
}

func newCertsRenewCommand(c certs) *cobra.Command {
	var flags operationFlags
	var which provision.Renewal
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "make new certificates and let the members take them up, without a pause",
		Long: `renew makes new certificates where less than a third of the lifetime is left, or
where --all or --within say so, installs them host by host, and proves by a
handshake with every port that the member serves the new one before it goes on.
musterd takes up new files by itself. A server that does not is restarted while
the others hold the quorum.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.renew(cmd.Context(), flags, which) },
	}
	certsFlags(cmd, &flags)
	cmd.Flags().BoolVar(&which.All, "all", false, "renew every certificate")
	cmd.Flags().StringVar(&which.Host, "host", "", "only those of this host")
	lifetimeVar(cmd.Flags(), &which.Within, "within", "renew those that expire within that time, such as 60d")
	cmd.MarkFlagsMutuallyExclusive("all", "within")
	return cmd
}

func (c certs) renew(ctx context.Context, flags operationFlags, which provision.Renewal) error {
	if err := flags.check(); err != nil {
		return err
	}
	cluster, err := c.loadInventory()
	if err != nil {
		return err
	}
	names := hostNames(cluster)
	if which.Host != "" && !slices.Contains(names, which.Host) {
		return &usageError{fmt.Errorf("--host is %q, which the inventory does not have", which.Host), "write one of " + strings.Join(names, ", ")}
	}
	if which.Host != "" && which.Within == 0 {
		which.All = true
	}
	r := c.newReporter(names)
	report, err := provision.RenewCertificates(ctx, cluster, c.options(ctx, flags, r), which)
	r.stop(err == nil)
	return c.done(cluster, report, err)
}

// done tells how an operation on certificates ended.
func (c certs) done(cluster *inventory.Cluster, report *provision.CertificateReport, err error) error {
	if err != nil {
		c.explain(err)
		return err
	}
	if c.wantsJSON() {
		return json.NewEncoder(c.out).Encode(map[string]any{
			"time": time.Now(), "kind": "result", "changes": report.Changes, "seconds": report.Elapsed.Seconds(), "phase": report.Phase, "status": report.Status,
		})
	}
	fmt.Fprintf(c.out, "cluster %s is verified: %s in %v\n\n", cluster.Name, count(report.Changes, "change"), report.Elapsed.Round(10*time.Millisecond))
	c.printMembers(report.Status)
	return nil
}

// phaseNames are what --until accepts.
func phaseNames() map[string]pki.Phase {
	return map[string]pki.Phase{"trust": pki.Trusting, "issue": pki.Issuing, "drop": pki.Dropping}
}

func newCertsRotateCommand(c certs) *cobra.Command {
	var flags operationFlags
	var until string
	cmd := &cobra.Command{
		Use:   "rotate-ca",
		Short: "replace the CA, without a pause",
		Long: `rotate-ca makes a new CA and introduces it in phases:

  trust   every member learns to trust the new CA beside the old one
  issue   every certificate is made anew by the new CA, host by host
  drop    every member unlearns the old CA, whose certificate is archived

Each phase is proved by handshakes with every port of every member, and the
cluster is verified before and after. A run that is stopped or killed is gone on
with by the same command.

After "trust" and before "issue", other clients, such as a kube-apiserver, need
the ca.crt of this workstation, which holds both CAs; after "issue" and before
"drop" they need certificates of the new CA (muster certs export). Without --yes
rotate-ca stops for that and asks; --until says where to end. The machines that
the inventory lists under kubernetes.apiservers, and the controllers of a stacked
cluster, are given the files in both cases;
a kube-apiserver reads ca.crt when it starts, and the rest when it connects.

The clusters of one file that have one pki.dir go through each phase together.

The old CA's key is not needed: rotate-ca is also the way when it is lost.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.rotate(cmd.Context(), flags, until) },
	}
	certsFlags(cmd, &flags)
	cmd.Flags().StringVar(&until, "until", "", "end after this phase: trust, issue or drop")
	cmd.Flags().BoolVarP(&flags.yes, "yes", "y", false, "do not ask between the phases")
	return cmd
}

func (c certs) rotate(ctx context.Context, flags operationFlags, until string) error {
	if err := flags.check(); err != nil {
		return err
	}
	last, known := phaseNames()[until]
	if until != "" && !known {
		return &usageError{fmt.Errorf("--until is %q", until), "write trust, issue or drop"}
	}
	if until == "" && !flags.yes && !c.canPrompt() {
		return &usageError{errors.New("rotate-ca asks before other clients are affected, and nobody can answer"), "say --until trust to end before that, or --yes"}
	}
	clusters, err := c.loadInventories()
	if err != nil {
		return err
	}
	if err := ofOneCA(clusters); err != nil {
		return err
	}
	stops := []pki.Phase{last}
	if until == "" && !flags.yes {
		stops = []pki.Phase{pki.Trusting, pki.Issuing, ""}
	}
	options := c.options(ctx, flags, nil) // once: a passphrase is not asked for again
	for _, stop := range stops {
		phase, err := c.rotateUntil(ctx, options, clusters, stop)
		if err != nil {
			return err
		}
		advice := afterPhase(clusters, phase)
		if advice == "" || c.wantsJSON() || stop != "" && phase != stop { // an earlier run has asked
			continue
		}
		fmt.Fprintf(c.out, "\n%s\n", advice)
		if until == "" && !flags.yes {
			if goOn, err := c.askYes(ctx, "go on now? [y/N] "); err != nil || !goOn {
				return err
			}
		}
	}
	return nil
}

// ofOneCA is an error unless the clusters are all of those that have one CA.
func ofOneCA(clusters []*inventory.Cluster) error {
	first := clusters[0]
	all := append([]*inventory.Cluster{first}, first.Siblings()...)
	for _, sibling := range first.Siblings() {
		if !slices.Contains(clusters, sibling) {
			return &usageError{
				fmt.Errorf("the clusters %s have one CA", strings.Join(clusterNames(all), ", ")),
				"name all of them, or leave --cluster out: the CA is replaced in all of them together",
			}
		}
	}
	if len(clusters) > len(all) {
		return &usageError{
			fmt.Errorf("this works on the clusters of one CA, and the inventory has more: %s", strings.Join(clusterNames(clusters), ", ")),
			"say which ones are meant: --cluster " + strings.Join(clusterNames(all), ","),
		}
	}
	return nil
}

// rotateUntil goes on to the end of a phase, and tells what came of it.
func (c certs) rotateUntil(ctx context.Context, o provision.Options, clusters []*inventory.Cluster, stop pki.Phase) (pki.Phase, error) {
	if len(clusters) == 1 {
		r := c.newReporter(hostNames(clusters[0]))
		o.Reporter = c.reporter(r)
		report, err := provision.RotateCA(ctx, clusters[0], o, stop)
		r.stop(err == nil)
		if err := c.done(clusters[0], report, err); err != nil {
			return "", err
		}
		return report.Phase, nil
	}
	var r reporter = &plainReporter{out: c.err}
	if c.wantsJSON() {
		r = c.newReporter(nil)
	}
	reports, err := provision.RotateSharedCA(ctx, clusters, func(cluster *inventory.Cluster) provision.Options {
		o.Reporter = inCluster{cluster.Name, c.reporter(r)}
		return o
	}, stop)
	if err != nil {
		c.explain(err)
		return "", err
	}
	for i, cluster := range clusters {
		if err := c.done(cluster, reports[i], nil); err != nil {
			return "", err
		}
		if !c.wantsJSON() && i < len(clusters)-1 {
			fmt.Fprintln(c.out)
		}
	}
	return reports[len(reports)-1].Phase, nil
}

// afterPhase says what is to be done by hand before the next phase.
func afterPhase(clusters []*inventory.Cluster, phase pki.Phase) string {
	cluster := clusters[0]
	var names []string
	if cluster.Topology == inventory.Stacked {
		names = hostNames(cluster)
	}
	for _, a := range cluster.Callers() {
		if !slices.Contains(names, a.Name) {
			names = append(names, a.Name)
		}
	}
	delivered := strings.Join(names, ", ")
	switch {
	case phase == pki.Trusting && delivered != "":
		return fmt.Sprintf("every member trusts both CAs. ca.crt has both on %s; now restart every kube-apiserver, which\nreads it at its start, and give %s/ca.crt to every other client; then muster certs rotate-ca goes on", delivered, cluster.PKI.Dir)
	case phase == pki.Trusting:
		return fmt.Sprintf("every member trusts both CAs. Now give %s/ca.crt, which holds both, to every other client\n(muster certs export --for kube-apiserver DIR); then muster certs rotate-ca goes on", cluster.PKI.Dir)
	case phase == pki.Issuing && delivered != "":
		return fmt.Sprintf("every member serves certificates of the new CA. A client's is on %s, which a kube-apiserver takes up by\nitself; now give new ones to every other client; then muster certs rotate-ca goes on and drops the old CA", delivered)
	case phase == pki.Issuing:
		return "every member serves certificates of the new CA. Now give new certificates to every other client\n(muster certs export --for kube-apiserver DIR); then muster certs rotate-ca goes on and drops the old CA"
	}
	return ""
}

// kubeAPIServer is the one purpose that --for knows.
const kubeAPIServer = "kube-apiserver"

func newCertsExportCommand(c certs) *cobra.Command {
	var purpose, client string
	cmd := &cobra.Command{
		Use:   "export DIR|-",
		Short: "hand out what a client of the cluster needs",
		Long: `export writes the CA's certificate, a client's certificate and its key into a
directory, or as a tar archive to standard output:

  muster certs export --for kube-apiserver DIR   # ca.crt, apiserver-etcd-client.crt and .key
  muster certs export --client backup - | ssh host tar -x -C /etc/backup/pki

--client makes a certificate for one more client, with the name as its common
name, and keeps it on this workstation below clients/: it is renewed and replaced
with all others. A ca.crt of something else in the directory is never replaced.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one directory to write to, or - for a tar archive on standard output")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.export(cmd.Context(), purpose, client, args[0])
		},
	}
	cmd.Flags().StringVar(&purpose, "for", "", "whom it is for: "+kubeAPIServer)
	cmd.Flags().StringVar(&client, "client", "", "name of one more client")
	return cmd
}

func (c certs) export(ctx context.Context, purpose, client, to string) error {
	switch {
	case (purpose == "") == (client == ""):
		return &usageError{errors.New("whom is it for?"), "say either --for " + kubeAPIServer + " or --client NAME"}
	case purpose != "" && purpose != kubeAPIServer:
		return &usageError{fmt.Errorf("--for is %q", purpose), "write " + kubeAPIServer + ", or --client NAME for another client"}
	}
	if f, ok := c.out.(*os.File); ok && to == standardInput && term.IsTerminal(int(f.Fd())) { //nolint:gosec // a descriptor fits an int
		return &usageError{errors.New("a tar archive with a private key does not belong on a terminal"), "name a directory, or send the output to a program"}
	}
	cluster, err := c.loadInventory()
	if err != nil {
		return err
	}
	store, spec := pki.Open(cluster.PKI.Dir, c.caKeys(ctx)), desired.Certificates(cluster)
	if in, err := store.Inspect(spec); err != nil {
		return err
	} else if len(in.Bundle.CA) == 0 {
		return &usageError{fmt.Errorf("there are no certificates in %s yet", cluster.PKI.Dir), "muster apply makes them; muster certs recover takes those of a cluster that exists from its hosts"}
	}
	name := client
	if client != "" {
		if _, _, err := store.Client(ctx, spec, client); err != nil {
			return err
		}
	}
	bundle, _, err := store.Ensure(ctx, spec)
	if err != nil {
		return err
	}
	pair := bundle.Clients[client]
	if purpose == kubeAPIServer {
		name, pair = pki.APIServerName, bundle.APIServerEtcdClient
	}
	files := pki.ExportOf(bundle.CA, name, pair)
	if to == standardInput {
		return writeTar(c.out, files)
	}
	changed, err := store.Export(to, files)
	if err != nil {
		return fmt.Errorf("export to %s: %w", to, err)
	}
	if c.wantsJSON() {
		return json.NewEncoder(c.out).Encode(map[string]any{"directory": to, "changed": append([]string{}, changed...)})
	}
	if len(changed) == 0 {
		fmt.Fprintf(c.out, "%s holds all of it already\n", to)
		return nil
	}
	fmt.Fprintf(c.out, "wrote %s to %s\n", strings.Join(changed, ", "), to)
	return nil
}

func writeTar(out io.Writer, files []pki.File) error {
	w := tar.NewWriter(out)
	for _, f := range files {
		header := &tar.Header{Name: f.Name, Mode: int64(f.Mode), Size: int64(len(f.Content)), ModTime: time.Now().Truncate(time.Second), Uname: "root", Gname: "root"}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := w.Write(f.Content); err != nil {
			return err
		}
	}
	return w.Close()
}

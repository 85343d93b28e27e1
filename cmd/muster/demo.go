package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/pki"
	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/member"
	"muster/provision/practice"
)

func newDemoCommand(a *app) *cobra.Command {
	d := &demo{app: a}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "see a whole cluster come up on this machine",
		Long: `demo starts practice hosts, which are SSH servers in this process with their own
files and units, applies an inventory of them exactly as "muster apply" does,
shows the members, writes a value and reads it back. The cluster runs until
Ctrl-C; then everything is removed. Nothing on this machine is changed and no
root is needed.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	cmd.Flags().BoolVar(&d.once, "once", false, "show everything, remove it and exit")
	cmd.Flags().IntVar(&d.count, "hosts", 3, "how many hosts to start")
	cmd.Flags().StringVar(&d.binaryDir, "binary-dir", "", "directory of musterd and musterctl; made from the checkout when left out")
	return cmd
}

// demo is one run of muster demo.
type demo struct {
	*app
	once      bool
	count     int
	binaryDir string
}

func (d *demo) run(ctx context.Context) (err error) {
	if d.wantsJSON() {
		return &usageError{
			err:  errors.New("the demo is for people and has no JSON form"),
			hint: "muster apply and muster status have one",
		}
	}
	if d.count < 1 {
		return &usageError{err: fmt.Errorf("--hosts is %d", d.count), hint: "write how many hosts to start, 1 or more"}
	}
	if runtime.GOOS != "linux" {
		return &usageError{
			err:  fmt.Errorf("the demo runs Linux programs, and this is %s", runtime.GOOS),
			hint: "run it on a Linux machine; muster apply works from here all the same",
		}
	}
	dir, err := os.MkdirTemp("", "muster-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	hosts, err := practice.StartCluster(practice.ClusterOptions{Dir: dir, Hosts: d.count, Name: "demo", Log: d.log})
	if err != nil {
		return fmt.Errorf("start the practice hosts: %w", err)
	}
	defer func() { err = errors.Join(err, hosts.Close()) }()

	d.say("%d practice hosts are up: SSH servers in this process, each with its own files and units.\n", len(hosts.Hosts))
	cluster, err := d.install(ctx, hosts)
	if err != nil {
		return err
	}
	if err := d.writeAndRead(ctx, cluster); err != nil {
		return err
	}
	d.explain(hosts.Inventory, cluster)
	if !d.once {
		d.say("Ctrl-C stops the cluster and removes %s.", dir)
		<-ctx.Done()
		d.say("")
	}
	d.say("stopped; nothing is left behind.")
	return nil
}

// say prints one line of the story. A reader who has gone misses it.
func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// install is muster apply.
func (d *demo) install(ctx context.Context, hosts *practice.Cluster) (*inventory.Cluster, error) {
	d.files = []string{hosts.Inventory}
	cluster, err := d.loadInventory()
	if err != nil {
		return nil, err
	}
	d.say("$ muster apply -f %s", hosts.Inventory)
	r := d.newReporter(hostNames(cluster))
	opts := d.options(ctx, operationFlags{binaryDir: d.binaryDir}, r)
	// The operator's own ssh configuration and agent have no part in this.
	opts.SSH.SSHDir, opts.SSH.ConfigFiles, opts.SSH.AgentSocket = filepath.Dir(hosts.Inventory), []string{}, "none"
	report, err := provision.Apply(ctx, cluster, opts)
	r.stop(err == nil)
	if err != nil {
		d.app.explain(err)
		return nil, err
	}
	d.say("cluster %s is verified: %s in %v\n", cluster.Name, count(report.Changes, "change"), report.Elapsed.Round(10*time.Millisecond))
	d.printMembers(report.Status)
	d.say("")
	return cluster, nil
}

// A value that is written through one member and read through another.
const (
	demoKey   = "greeting"
	demoValue = "hello from muster"
	demoLimit = 10 * time.Second
)

func (d *demo) writeAndRead(ctx context.Context, cluster *inventory.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, demoLimit)
	defer cancel()
	ca, pair, err := pki.OpenClient(cluster.PKI.Dir)
	if err != nil {
		return err
	}
	config, err := member.TLS(ca, pair)
	if err != nil {
		return err
	}
	first, last := cluster.Hosts[0], cluster.Hosts[len(cluster.Hosts)-1]
	var dialer net.Dialer
	writer, err := member.Connect(first.ClientURL(), config, dialer.DialContext)
	if err != nil {
		return err
	}
	defer writer.Close() //nolint:errcheck // the answers are in
	list, err := writer.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("ask %s for the members: %w", first.Name, err)
	}
	started := 0
	for _, m := range list.Members {
		if m.Name != "" { // a member has no name until it has started, as etcd has it
			started++
		}
	}
	d.say("%d of %d members started", started, len(list.Members))
	put, err := writer.Put(ctx, demoKey, demoValue)
	if err != nil {
		return fmt.Errorf("put %s through %s: %w", demoKey, first.Name, err)
	}
	reader, err := member.Connect(last.ClientURL(), config, dialer.DialContext)
	if err != nil {
		return err
	}
	defer reader.Close() //nolint:errcheck // the answers are in
	got, err := reader.Get(ctx, demoKey)
	if err != nil {
		return fmt.Errorf("get %s through %s: %w", demoKey, last.Name, err)
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != demoValue {
		return fmt.Errorf("%s does not have what %s acknowledged: %v", last.Name, first.Name, got.Kvs)
	}
	d.say("put %s %q through %s, over mutual TLS: revision %d", demoKey, demoValue, first.Name, put.Header.Revision)
	d.say("get %s through %s: %q\n", demoKey, last.Name, got.Kvs[0].Value)
	return nil
}

// explain tells how to talk to the cluster.
func (d *demo) explain(file string, cluster *inventory.Cluster) {
	endpoints := make([]string, len(cluster.Hosts))
	for i, h := range cluster.Hosts {
		endpoints[i] = h.ClientURL()
	}
	stays := ""
	if d.once {
		stays = "without --once it stays, and you "
	}
	d.say("%stalk to it from another terminal, with etcdctl or with musterctl, which is the same:", stays)
	d.say("  export ETCDCTL_ENDPOINTS=%s", strings.Join(endpoints, ","))
	d.say("  export ETCDCTL_CACERT=%s", filepath.Join(cluster.PKI.Dir, "ca.crt"))
	d.say("  export ETCDCTL_CERT=%s", filepath.Join(cluster.PKI.Dir, "healthcheck-client.crt"))
	d.say("  export ETCDCTL_KEY=%s", filepath.Join(cluster.PKI.Dir, "healthcheck-client.key"))
	d.say("  go run ./cmd/musterctl member list -w table")
	d.say("  go run ./cmd/musterctl get %s", demoKey)
	d.say("  go run ./cmd/muster status -f %s\n", file)
}

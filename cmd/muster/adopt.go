package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/step"
	"muster/templates"
)

// adoptFlags are those of adopt alone.
type adoptFlags struct {
	operationFlags
	identityFile string
	keepEtcd     string // path of an etcd
	caKey        string // path of a key
	undo         bool
	topology     string // empty: as it is now
}

func newAdoptCommand(a *app) *cobra.Command {
	var flags adoptFlags
	cmd := &cobra.Command{
		Use:   "adopt [[user@]address[:port]...]",
		Short: "take over an etcd that kubeadm, etcdadm or kubespray has installed",
		Long: `adopt with the hosts of an etcd looks at them, says what it finds, and writes an
inventory to the file that --file names. It only reads. adopt without arguments
then takes over what the inventory names:

  - Without server.binary the cluster becomes a musterd. Its data is moved by a
    snapshot. From before that is taken until the new members have proved that
    they have all of it, every write is refused; how long that was is printed.
    With topology: stacked, which is written for an etcd of kubeadm's, that takes
    the place of etcd in the static pod.
  - With --keep-etcd, which is server.binary and dataDir in the inventory, it
    stays an etcd with its data and its IDs, and its members are taken over one
    at a time while the others serve.

Either way the cluster keeps its CA, whose key is brought from a host (or named
with --ca-key), so that clients go on with the certificates they have. Nothing is
deleted: the old unit is disabled, the manifest of a static pod is moved to
/etc/kubernetes, and old data that was moved stays where it was.

When the new members do not come up, the old ones are started again. A run that
was killed is gone on with by the next one; --undo goes back instead. Later, too,
--undo gives the cluster back to what ran it before: what was written meanwhile
goes with it, and writes are refused until it is proved to be there.`,
		Example: `  muster adopt root@10.240.0.10 root@10.240.0.11 root@10.240.0.12
  muster adopt`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.check(); err != nil {
				return err
			}
			if t := inventory.Topology(flags.topology); t != "" && t != inventory.External && t != inventory.Stacked {
				return &usageError{fmt.Errorf("%q is not a topology", flags.topology), "write external or stacked"}
			}
			if len(args) > 0 {
				return a.lookToAdopt(cmd.Context(), flags, args)
			}
			return a.adopt(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.identityFile, "identity-file", "", "with hosts: private key to log in with")
	f.StringVar(&flags.keepEtcd, "keep-etcd", "", "with hosts: path of the etcd program that the cluster goes on with")
	f.StringVar(&flags.caKey, "ca-key", "", "file of the CA's key, when it is on no host")
	f.StringVar(&flags.topology, "topology", "", "with hosts: external or stacked; when left out, what kubeadm runs stays stacked")
	f.BoolVar(&flags.undo, "undo", false, "give the cluster back to its old members")
	f.StringVar(&flags.binaryDir, "binary-dir", "", "directory of musterd-linux-ARCH and musterctl-linux-ARCH to install")
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	flags.timeout.addTo(f)
	f.BoolVarP(&flags.yes, "yes", "y", false, "do not ask")
	return cmd
}

// lookToAdopt finds an etcd and writes its inventory.
func (a *app) lookToAdopt(ctx context.Context, flags adoptFlags, args []string) error {
	if flags.undo || flags.caKey != "" {
		return &usageError{errors.New("--undo and --ca-key go with an inventory, not with hosts"), "muster adopt without hosts takes over what the inventory names"}
	}
	file, err := a.oneFile()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(file); err == nil && file != standardInput {
		return &usageError{fmt.Errorf("%s already exists", file), "muster adopt without hosts takes over what it names; or name another file with --file"}
	}
	name := "prod"
	if len(a.selected) > 0 {
		name = a.selected[0]
	}
	hosts, err := hostsFrom(name, flags.identityFile, args)
	if err != nil {
		return err
	}
	if flags.keepEtcd != "" {
		if flags.keepEtcd, err = filepath.Abs(flags.keepEtcd); err != nil {
			return err
		}
	}
	var quiet reporter = &plainReporter{out: io.Discard}
	etcd, err := provision.FindEtcd(ctx, hosts, a.options(ctx, flags.operationFlags, quiet), flags.keepEtcd, inventory.Topology(flags.topology))
	if err != nil {
		a.explain(err)
		return err
	}
	text, err := adoptedInventory(etcd)
	if err != nil {
		return err
	}
	cluster, warnings, err := inventory.Load(file, bytes.NewReader(text), inventory.CanPrompt())
	if err != nil {
		return fmt.Errorf("make an inventory of what was found: %w", err)
	}
	for _, w := range warnings {
		fmt.Fprintf(a.err, "warning: %s\n", w)
	}
	found, err := provision.CheckAdoption(ctx, cluster, a.options(ctx, flags.operationFlags, quiet))
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		if err := json.NewEncoder(a.out).Encode(foundEvent{Time: time.Now(), Kind: "found", Found: *found, Left: etcd.Left}); err != nil {
			return err
		}
	} else {
		fmt.Fprint(a.err, takeoverText(*found), leftText(etcd.Left))
	}
	if file == standardInput {
		_, err := a.out.Write(text)
		return err
	}
	if err := writeNew(file, text); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "wrote %s; no host was changed\nnext: muster adopt -f %[1]s\n", file)
	return nil
}

// foundEvent is adopt's JSON output when it only looks.
type foundEvent struct {
	Time  time.Time         `json:"time"`
	Kind  string            `json:"kind"`
	Found step.Takeover     `json:"found"`
	Left  map[string]string `json:"left,omitempty"`
}

// hostsFrom makes a cluster of arguments, by the rules of init.
func hostsFrom(name, identityFile string, args []string) (*inventory.Cluster, error) {
	starter := templates.Inventory{Cluster: name, IdentityFile: identityFile}
	for _, arg := range args {
		c, err := parseMachine(arg)
		if err != nil {
			return nil, &usageError{fmt.Errorf("%q is not a machine: %w", arg, err), "write [user@]address[:port], with an IPv6 address in brackets when a port follows"}
		}
		starter.Controllers = append(starter.Controllers, c)
	}
	text, err := starter.Render()
	if err != nil {
		return nil, err
	}
	if err := checkStarter(text); err != nil {
		return nil, err
	}
	cluster, _, err := inventory.Load(defaultInventory, bytes.NewReader(text), inventory.CanPrompt())
	return cluster, err
}

func adoptedInventory(etcd *provision.FoundEtcd) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString("# Written by muster adopt, from what it found on the hosts.\n")
	if etcd.Inventory.Server.Binary == "" {
		out.WriteString("# The cluster becomes a musterd. For it to stay an etcd, name that program and the\n# data that is there: server: {binary: path/to/etcd, dataDir: /var/lib/etcd}\n")
	}
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(etcd.Inventory); err != nil {
		return nil, fmt.Errorf("encode the inventory: %w", err)
	}
	return out.Bytes(), encoder.Close()
}

// takeoverText says what was found and what will happen.
func takeoverText(t step.Takeover) string {
	var b strings.Builder
	if t.Returns {
		fmt.Fprintf(&b, "cluster %s goes back to what ran it before, with a database of %s:\n", t.Cluster, humanize.IBytes(uint64(max(t.Bytes, 0)))) //nolint:gosec // not negative
		for _, h := range t.Hosts {
			fmt.Fprintf(&b, "  %s: to the etcd of %s (%s), with its data in %s\n", h.Name, h.Installer, h.Source, h.DataDir)
		}
		b.WriteString("everything that was written since goes with it. Writes are refused until the old members have proved that they\nhave all of it, and reads too while nobody runs. The data that is there now is kept.\n")
		return b.String()
	}
	fmt.Fprintf(&b, "cluster %s is an etcd of %s, with a database of %s:\n", t.Cluster, count(len(t.Hosts), "member"), humanize.IBytes(uint64(max(t.Bytes, 0)))) //nolint:gosec // not negative
	for _, h := range t.Hosts {
		state := "etcd " + h.Version
		switch {
		case h.Version == "":
			state = "an etcd that does not answer"
		case h.Leader:
			state += ", the leader"
		}
		fmt.Fprintf(&b, "  %s: %s, by %s (%s), data in %s\n", h.Name, state, h.Installer, h.Source, h.DataDir)
	}
	switch {
	case t.InPlace:
		fmt.Fprintf(&b, "it stays an etcd with this data: one member after the other is stopped and goes on as %s,\nwhile the others serve. There is no pause. What starts the old members now is disabled and kept.\n", t.Unit)
	default:
		fmt.Fprintf(&b, "it becomes a cluster of %s, as %s, with its data in %s:\nfrom before a last snapshot is taken until the new members have proved that they have all of it, writes are\nrefused, and reads too while nobody runs. That takes some seconds, and longer the more data there is: a first\nsnapshot beforehand shows how long. The old data, and what starts the old members now, are kept.\n", t.Server, t.Unit, t.DataDir)
	}
	return b.String()
}

func leftText(left map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(left)) {
		fmt.Fprintf(&b, "the flag %s does not go on: %s\n", name, left[name])
	}
	return b.String()
}

// errNoAdoption is returned when the question of adopt reaches nobody.
var errNoAdoption = &usageError{err: errors.New("muster asks before it takes anything over or gives it back, and nobody can answer"), hint: "answer on a terminal, or say --yes"}

func (a *app) adopt(ctx context.Context, flags adoptFlags) error {
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	how := provision.AdoptOptions{Undo: flags.undo}
	if flags.caKey != "" {
		if how.CAKey, err = os.ReadFile(flags.caKey); err != nil {
			return &usageError{fmt.Errorf("read the key of the CA: %w", err), "name the file with --ca-key"}
		}
	}
	how.Confirm = func(ctx context.Context, t step.Takeover) (bool, error) {
		if !a.wantsJSON() {
			fmt.Fprint(a.err, takeoverText(t))
		}
		switch {
		case flags.yes:
			return true, nil
		case !a.canPrompt():
			return false, errNoAdoption
		}
		return a.askYes(ctx, "Go on? [y/N] ")
	}
	// Lines rather than a live display: the question needs a quiet terminal.
	var r reporter = &plainReporter{out: a.err}
	if a.wantsJSON() {
		r = a.newReporter(nil)
	}
	report, err := provision.Adopt(ctx, cluster, a.options(ctx, flags.operationFlags, r), how)
	if errors.Is(err, provision.ErrDeclined) {
		return errDeclined
	}
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		return json.NewEncoder(a.out).Encode(adoptResult{applyResult{
			Time: time.Now(), Kind: "result", Changes: report.Changes, Seconds: report.Elapsed.Seconds(), Status: report.Status,
		}, report.Pause.Seconds()})
	}
	if flags.undo {
		fmt.Fprintf(a.out, "the old members of cluster %s serve again: %s in %v%s\n", cluster.Name, count(report.Changes, "change"), report.Elapsed.Round(10*time.Millisecond), pauseText(report.Pause))
		return nil
	}
	fmt.Fprintf(a.out, "cluster %s is taken over and verified: %s in %v%s\n\n", cluster.Name, count(report.Changes, "change"), report.Elapsed.Round(10*time.Millisecond), pauseText(report.Pause))
	a.printMembers(report.Status)
	fmt.Fprintf(a.out, "\nfrom now on: muster plan, muster apply. When nobody needs it any more, remove what is left of the old etcd.\n")
	return nil
}

func pauseText(pause time.Duration) string {
	if pause <= 0 {
		return ""
	}
	return fmt.Sprintf(", writes were refused for %v", pause.Round(10*time.Millisecond))
}

// adoptResult is the last line of adopt's JSON output.
type adoptResult struct {
	applyResult
	Pause float64 `json:"pauseSeconds"`
}

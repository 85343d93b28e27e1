package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/step"
)

// defaultBump is what etcd's operation guide proposes for a snapshot that is up to
// a week old, at 1500 writes a second.
const defaultBump = 1_000_000_000

func newRestoreCommand(a *app) *cobra.Command {
	var flags operationFlags
	var lose string
	var bump int64
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "found the cluster anew from a snapshot; what was written since is lost",
		Long: `restore stops every member, moves its data aside, and founds the cluster anew
from a snapshot that muster backup or "etcdctl snapshot save" has written, with
another cluster ID, on every host of the inventory. It needs no member that
works and no data on any host: that is what it is for.

Before anything is stopped it says what will be lost and asks for the name of
the cluster; --yes-lose-writes CLUSTER answers for a script. The old data stays
on the hosts, in a directory named after it with .before-restore- and the time.
Remove it when nobody needs it any more.

With another server.binary in the inventory than the cluster has, this changes
it from etcd's own server to musterd, or back.

A run that failed or was killed is repeated with the same file: it goes on
where that one has stopped.

Clients may have seen what the snapshot does not have: a kube-apiserver, and
whoever watches through it. The new cluster's revision is therefore higher than
the snapshot's, by --bump-revision, and its history begins there. Clients that
have seen less are told to read everything anew; nothing has to be restarted.
1000000000 are 1500 writes a second for a week. It takes more to restore once
again what is older than an earlier restore, and restore says so when the cluster
still answers. With 0 the revisions since the snapshot come once more, for other
writes.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.restore(cmd.Context(), flags, args[0], lose, bump)
		},
	}
	f := cmd.Flags()
	f.StringVar(&lose, "yes-lose-writes", "", "do not ask; the name of the cluster whose writes since the snapshot may be lost")
	f.Int64Var(&bump, "bump-revision", defaultBump, "by how much the revision is higher than the snapshot's; more than clients may have seen since")
	f.StringVar(&flags.binaryDir, "binary-dir", "", "directory of musterd-linux-ARCH and musterctl-linux-ARCH to install")
	f.IntVar(&flags.concurrency, "concurrency", provision.DefaultConcurrency, "how many hosts to work on at once")
	flags.timeout.addTo(f)
	return cmd
}

func (a *app) restore(ctx context.Context, flags operationFlags, file, lose string, bump int64) error {
	if err := flags.check(); err != nil {
		return err
	}
	if bump < 0 {
		return &usageError{fmt.Errorf("--bump-revision is %d; revisions only grow", bump), "leave the flag out, or say 0 to go on at the snapshot's revision"}
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	if lose != "" && lose != cluster.Name {
		return &usageError{fmt.Errorf("--yes-lose-writes names %q, and this inventory is cluster %q", lose, cluster.Name), "name the inventory of that cluster with --file, or correct the flag"}
	}
	// Lines rather than a live display: the question needs a quiet terminal.
	var r reporter = &plainReporter{out: a.err}
	if a.wantsJSON() {
		r = a.newReporter(nil)
	}
	report, err := provision.Restore(ctx, cluster, a.options(ctx, flags, r), provision.RestoreOptions{
		File:         file,
		BumpRevision: bump,
		Confirm:      func(loss step.Loss) (bool, error) { return a.confirmLoss(ctx, loss, lose != "") },
	})
	if errors.Is(err, provision.ErrDeclined) {
		return errKept
	}
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		return json.NewEncoder(a.out).Encode(applyResult{
			Time: time.Now(), Kind: "result", Changes: report.Changes, Seconds: report.Elapsed.Seconds(), Status: report.Status,
		})
	}
	at := fmt.Sprintf("at revision %d", report.Snapshot.Revision)
	if report.Revision != report.Snapshot.Revision {
		at = fmt.Sprintf("as of revision %d, goes on from %d,", report.Snapshot.Revision, report.Revision)
	}
	fmt.Fprintf(a.out, "cluster %s is restored %s and verified: %s in %v\n\n", cluster.Name, at, count(report.Changes, "change"), report.Elapsed.Round(10*time.Millisecond))
	a.printMembers(report.Status)
	return nil
}

var (
	errKept = errors.New("nothing was changed: the cluster's name was not typed")
	// errNobodyAgrees is returned when the question of restore reaches nobody.
	errNobodyAgrees = &usageError{
		err:  errors.New("restore asks before anything is lost, and nobody can answer"),
		hint: "answer on a terminal, or say --yes-lose-writes CLUSTER",
	}
)

// confirmLoss tells what will be lost, and wants to read the cluster's name.
func (a *app) confirmLoss(ctx context.Context, loss step.Loss, agreed bool) (bool, error) {
	if !a.wantsJSON() {
		fmt.Fprint(a.err, lossText(loss))
	}
	if agreed {
		return true, nil
	}
	if !a.canPrompt() {
		return false, errNobodyAgrees
	}
	fmt.Fprintf(a.err, "type the name of the cluster to go on: ")
	text, err := answer(ctx, func() (string, error) { return bufio.NewReader(a.in).ReadString('\n') })
	if err != nil {
		fmt.Fprintln(a.err)
		return false, fmt.Errorf("read the answer: %w", err)
	}
	return strings.TrimSpace(text) == loss.Cluster, nil
}

func lossText(l step.Loss) string {
	var b strings.Builder
	fmt.Fprintf(&b, "the snapshot ends at revision %d and has %s", l.Snapshot.Revision, count(l.Snapshot.Keys, "key"))
	if l.Origin.Cluster != "" {
		fmt.Fprintf(&b, " (from cluster %s, %s)", l.Origin.Cluster, l.Origin.ClusterID)
	}
	b.WriteString("\n")
	switch c := l.Current; {
	case c == nil:
		fmt.Fprintf(&b, "cluster %s does not answer: what was written since the snapshot cannot be told, and WILL BE LOST\n", l.Cluster)
	case l.Origin.ClusterID == "":
		// Another cluster's revisions say nothing, nor do those that a restore has left out.
		fmt.Fprintf(&b, "cluster %s (%s) is at revision %d and has %s: whatever of that the snapshot does not have WILL BE LOST\n", l.Cluster, c.ClusterID, c.Revision, count(int(c.Keys), "key"))
	case l.Origin.ClusterID != c.ClusterID:
		fmt.Fprintf(&b, "cluster %s (%s) is at revision %d and has %s: THIS SNAPSHOT IS ANOTHER CLUSTER'S, and all of that WILL BE LOST\n", l.Cluster, c.ClusterID, c.Revision, count(int(c.Keys), "key"))
	case c.Revision > l.Snapshot.Revision:
		fmt.Fprintf(&b, "cluster %s (%s) is at revision %d and has %s: %s since the snapshot WILL BE LOST\n", l.Cluster, c.ClusterID, c.Revision, count(int(c.Keys), "key"), count(int(c.Revision-l.Snapshot.Revision), "revision"))
	default:
		fmt.Fprintf(&b, "cluster %s (%s) is at revision %d and has %s\n", l.Cluster, c.ClusterID, c.Revision, count(int(c.Keys), "key"))
	}
	if c := l.Current; c != nil && l.Begins > l.Snapshot.Revision && l.Begins <= c.Revision {
		fmt.Fprintf(&b, "the new cluster would begin at revision %d, which clients have seen already: say --bump-revision %d, or restart every client\n", l.Begins, c.Revision-l.Snapshot.Revision+defaultBump)
	}
	b.WriteString("every client is cut off until the new cluster is up; the old data is moved aside:\n")
	for _, at := range l.Aside {
		fmt.Fprintf(&b, "  %s: %s\n", at.Host, at.Dir)
	}
	return b.String()
}

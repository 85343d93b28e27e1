package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/snapshot"
)

func newBackupCommand(a *app) *cobra.Command {
	var keep int
	cmd := &cobra.Command{
		Use:   "backup [DIR|FILE]",
		Short: "save a checked snapshot of the cluster on this workstation",
		Long: `backup saves a snapshot of the cluster through a member that answers, a follower
if there is one. Everything the cluster had acknowledged before is in it. It
appears under its name when it is complete, was read back, compared with its
checksum and gone through key by key; FILE.json beside it says what it holds.

DIR gets a file named after cluster, time and revision; without an argument it
is CLUSTER-backups beside the inventory. With --keep older snapshots of this
cluster go, but only files that backup has made, as it has made them. A name
with an extension that is no directory is a file's, and must not exist.

The file is what "etcdctl snapshot save" writes. It holds every secret of the
cluster in clear: keep it where only you can read it.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.backup(cmd.Context(), args, keep) },
	}
	cmd.Flags().IntVar(&keep, "keep", 0, "how many snapshots stay in the directory; 0 keeps all")
	return cmd
}

// backupDir is where snapshots go when no other place is named.
func backupDir(cluster *inventory.Cluster) string {
	return filepath.Join(filepath.Dir(cluster.File()), cluster.Name+"-backups")
}

func (a *app) backup(ctx context.Context, args []string, keep int) error {
	if keep < 0 {
		return &usageError{fmt.Errorf("--keep is %d", keep), "write how many snapshots are to stay, or 0 for all"}
	}
	cluster, err := a.loadInventory()
	if err != nil {
		return err
	}
	place := snapshot.Place{Dir: backupDir(cluster), Keep: keep}
	if len(args) > 0 {
		place = snapshot.PlaceFor(args[0], keep)
	}
	if place.File != "" && keep > 0 {
		return &usageError{errors.New("--keep needs a directory"), "name a directory, or leave --keep out"}
	}
	begun := time.Now()
	r := a.newReporter(nil)
	saved, err := provision.Backup(ctx, cluster, a.options(ctx, operationFlags{}, r), place)
	r.stop(err == nil)
	if err != nil {
		a.explain(err)
		return err
	}
	if a.wantsJSON() {
		return json.NewEncoder(a.out).Encode(backupResult{
			Time: time.Now(), Kind: "result", Seconds: time.Since(begun).Seconds(), Path: saved.Path, Snapshot: saved.Manifest, Removed: saved.Removed,
		})
	}
	fmt.Fprintf(a.out, "%s\n", saved.Path)
	fmt.Fprintf(a.out, "  cluster %s (%s), through %s\n", saved.Cluster, saved.ClusterID, saved.Member)
	fmt.Fprintf(a.out, "  revision %d, %s, %s, hash %s\n", saved.Revision, count(saved.Keys, "key"), humanize.IBytes(uint64(saved.Size)), saved.Hash) //nolint:gosec // not negative
	fmt.Fprintf(a.out, "  sha256 %s, verified\n", saved.SHA256)
	for _, path := range saved.Removed {
		fmt.Fprintf(a.out, "removed %s\n", path)
	}
	return nil
}

// backupResult is the last line of backup's JSON output.
type backupResult struct {
	Time     time.Time         `json:"time"`
	Kind     string            `json:"kind"`
	Seconds  float64           `json:"seconds"`
	Path     string            `json:"path"`
	Snapshot snapshot.Manifest `json:"snapshot"`
	Removed  []string          `json:"removed,omitempty"`
}

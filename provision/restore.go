package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/snapshot"
	"muster/provision/step"
)

// RestoreOptions say what is restored.
type RestoreOptions struct {
	// File is a snapshot of etcd's or musterd's.
	File string
	// BumpRevision is by how much the restored cluster's revision is higher than
	// the snapshot's, from 0. It should be more than the revisions that clients
	// may have seen since: see snapshot.Bump. The file is copied for it to the
	// directory for temporary files.
	BumpRevision int64
	// Confirm is shown what will be lost and says whether to go on. It is not
	// called when no host has data that would go.
	Confirm func(step.Loss) (bool, error)
}

// restoreSteps is what Restore does, in order. Everything that can fail for a
// reason that is known beforehand comes before the members stop.
func restoreSteps(s *step.Restore, confirm func(step.Loss) (bool, error)) []step.Step {
	return []step.Step{
		step.EachHost("connect", step.Connect),
		step.Together("lock", step.Lock),
		step.EachHost("facts", step.GatherFacts),
		step.Together("preflight", s.Preflight),
		step.Together("confirm", s.Confirm(confirm)),
		step.Together("certificates", step.MakeCertificates),
		step.EachHost("account", step.MakeAccount),
		step.EachHost("directories", step.MakeDirectories),
		step.EachHost("programs", step.InstallPrograms),
		step.EachHost("snapshot", s.Upload),
		step.EachHost("files", step.InstallFiles),
		step.EachHost("unit", step.InstallUnit),
		step.Together("identify", s.Identify),
		step.Together("stop", s.Stop),
		step.EachHost("put aside", s.PutAside),
		step.EachHost("data directory", step.MakeDataDirectory),
		step.Together("start", step.StartMembers),
		step.Together("restart if due", step.RollMembers),
		step.Together("ready", step.AwaitReady),
		step.Together("verify", step.Verify),
		step.Together("compare", s.Compare),
		step.EachHost("tidy", s.Tidy),
	}
}

// RestoreReport is the outcome of a Restore that succeeded.
type RestoreReport struct {
	Snapshot snapshot.Contents
	// Revision is that at which the cluster began.
	Revision int64
	Changes  int
	Elapsed  time.Duration
	Status   Status
}

// Restore founds the cluster anew, with another cluster ID, from a snapshot, on
// all hosts of the inventory. It needs none of the old members, and no data. Data
// that is there is moved aside and kept. A run that was interrupted is repeated
// with the same file.
func Restore(ctx context.Context, cluster *inventory.Cluster, o Options, restore RestoreOptions) (*RestoreReport, error) {
	begun := time.Now()
	o = o.withDefaults()
	s := &step.Restore{File: restore.File}
	var err error
	if s.Saved, err = snapshot.Check(ctx, restore.File); err != nil {
		return nil, err
	}
	if recorded, err := snapshot.ReadManifest(restore.File); err != nil {
		o.Log.Warn("what is recorded of the snapshot is of no use", "error", err)
	} else if recorded != nil && recorded.SHA256 == s.Saved.SHA256 {
		s.Origin = recorded.Origin
	}
	s.Contents = s.Saved
	if restore.BumpRevision != 0 {
		dir, err := os.MkdirTemp("", "muster-restore-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // what is left is in the directory for temporary files
		if err := bump(ctx, s, restore.BumpRevision, dir); err != nil {
			return nil, err
		}
	}
	if s.FileSum, err = snapshot.FileSum(s.File); err != nil {
		return nil, err
	}
	r, err := begin("restore", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	// What the cluster has can be asked only with its certificates; without
	// them there is none to ask.
	if ca, client, err := pki.OpenClient(cluster.PKI.Dir); err == nil {
		r.Bundle.CA, r.Bundle.HealthcheckClient = ca, client
	}
	if err := r.Do(ctx, restoreSteps(s, restore.Confirm)...); err != nil {
		if errors.Is(err, ErrDeclined) {
			return nil, ErrDeclined
		}
		return nil, diagnose(ctx, r, err)
	}
	return &RestoreReport{Snapshot: s.Saved, Revision: s.Contents.Revision, Changes: r.Changes(), Elapsed: time.Since(begun), Status: verified(r)}, nil
}

// bump has the restore take a copy of the snapshot, whose revision is higher.
func bump(ctx context.Context, s *step.Restore, by int64, dir string) (err error) {
	saved, to := s.File, filepath.Join(dir, "snapshot.db")
	err = snapshot.Bump(ctx, saved, s.Saved, by, to)
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w; name a directory with %s to spare in TMPDIR", err, humanize.IBytes(uint64(s.Saved.Size))) //nolint:gosec // not negative
	}
	if err != nil {
		return fmt.Errorf("bump the revision of %s: %w", saved, err)
	}
	s.File = to
	s.Contents, err = snapshot.Check(ctx, to)
	return err
}

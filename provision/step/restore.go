package step

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/observed"
	"muster/provision/remote"
	"muster/provision/runner"
	"muster/provision/snapshot"
)

// Restore holds the steps that found a cluster anew from a snapshot, with a new
// cluster ID, on all hosts. What each host has done is recorded there, so that
// a run that was killed can be repeated at any point: data that came from this
// snapshot is gone on with, any other data is moved aside first. Nothing is
// deleted.
type Restore struct {
	// File is the snapshot's path on the workstation, FileSum the SHA-256 of all
	// of it in hexadecimal, Contents what it holds.
	File     string
	FileSum  string
	Contents snapshot.Contents
	// Saved is what the snapshot held before its revision was bumped, Origin
	// where it was taken as far as that is recorded.
	Saved  snapshot.Contents
	Origin snapshot.Origin
	// Adopts says that the snapshot is of an etcd that is taken over.
	Adopts bool

	id string // of this restore
}

// Identify makes an ID for the restore, unless an earlier run has: the restored
// cluster is another one each time, also when the snapshot is the same.
func (s *Restore) Identify(_ context.Context, r *Run) error {
	s.id = rand.Text()
	for _, h := range r.Hosts {
		if h.Facts.Restoring.Of(s.Contents.SHA256) {
			s.id = h.Facts.Restoring.ID
		}
	}
	return nil
}

// placed is where the snapshot lies on a host: beside the data directory, on
// whose disk there has to be room anyway.
func placed(h *Host) string { return h.Want.Member.DataDir + ".restore.db" }

// continues says that the host's data comes from this snapshot already, by a
// run that was interrupted. Such a run may have come to an end on this host,
// and not on another one.
func (s *Restore) continues(h *Host) bool {
	moved := func(h *Host) bool { return h.Facts.Restoring.Of(s.Contents.SHA256) && h.Facts.Restoring.Moved }
	over := h.Facts.Restoring == (observed.Restoring{}) && h.Facts.Record.Snapshot == s.Contents.SHA256
	return moved(h) || over && slices.ContainsFunc(h.run.Hosts, moved)
}

// Upload places the snapshot on the host. The members go on meanwhile.
func (s *Restore) Upload(ctx context.Context, h *Host) error {
	if s.continues(h) && h.Facts.Unit.Running() {
		return nil
	}
	name := placed(h)
	result, err := h.Remote.Run(ctx, remote.Command{
		Label: "look for the snapshot", Script: `if [ -e "$1" ]; then sha256sum < "$1"; fi`, Args: []string{name},
	})
	if err != nil {
		return err
	}
	if strings.HasPrefix(result.Stdout, s.FileSum) {
		return nil
	}
	sentence := fmt.Sprintf("copied the snapshot to %s (%s)", name, humanize.IBytes(uint64(s.Contents.Size))) //nolint:gosec // not negative
	return h.Change(ctx, sentence, func(ctx context.Context) error {
		f, err := os.Open(s.File)
		if err != nil {
			return &localError{err}
		}
		defer f.Close()
		file := remote.File{Path: name, Mode: 0o640, Owner: "root", Group: h.Want.Account.Group}
		return h.Remote.WriteFrom(ctx, file, s.FileSum, &counted{Reader: f, total: s.Contents.Size, tell: h.progress("snapshot")})
	})
}

// Stop stops every member whose data is not the snapshot's: from here until
// the members start again there is no cluster. They are stopped before the
// first of them loses its data, so that none serves what the others have not.
func (s *Restore) Stop(ctx context.Context, r *Run) error {
	return r.forAll(func(h *Host) *Error {
		unit := h.unit().Title()
		stopped := !h.Facts.Unit.Loaded || h.Facts.Unit.Active == "inactive" || h.Facts.Unit.Active == "failed"
		if stopped || s.continues(h) {
			return nil
		}
		err := h.changeByScript(ctx, "stopped "+unit, remote.Command{
			Label: "stop " + unit, Functions: runner.Functions(h.Want), Script: "unit_stop",
		})
		if err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		h.Facts.Unit.Active = "inactive"
		return nil
	})
}

// asideFunction moves the directory $1 to $2, once. A file system of its own
// cannot be renamed: there, what it holds is moved into a directory in it.
const asideFunction = `set -eu
put_aside() (
dir=$1 aside=$2
[ -d "$dir" ] && [ ! -e "$aside" ] || exit 0
mv -fT "$dir" "$aside" 2>/dev/null && exit 0
inside=$dir/${aside##*/}
mkdir -p "$inside"
chmod 0700 "$inside"
for entry in "$dir"/* "$dir"/.[!.]*; do
	case $entry in
	"$aside" | */lost+found | *` + asideMark + `*) continue ;;
	esac
	[ -e "$entry" ] || continue
	mv -f "$entry" "$inside/"
done
sync "$dir"
)
`

// asideScript is asideFunction for its arguments.
const asideScript = asideFunction + `put_aside "$1" "$2"`

// asideMark is in the names of data that a restore has put aside.
const asideMark = ".before-restore-"

// PutAside records on the host that the restore is under way, has the member
// begin with the snapshot when it starts next, and moves the old data aside.
// The order matters: whenever the data is gone, a start founds from the
// snapshot, and never from nothing.
func (s *Restore) PutAside(ctx context.Context, h *Host) error {
	if s.continues(h) {
		return nil
	}
	state := h.Facts.Restoring
	if !state.Of(s.Contents.SHA256) {
		state = observed.Restoring{
			Snapshot: s.Contents.SHA256, Saved: s.Saved.SHA256, Bump: s.Contents.Revision - s.Saved.Revision,
			ID: s.id, Begun: time.Now().UTC().Truncate(time.Millisecond), Adopts: s.Adopts,
		}
	}
	if state.Aside == "" {
		filled, err := h.hasData(ctx)
		if err != nil {
			return err
		}
		if filled {
			state.Aside = h.Want.Member.DataDir + asideMark + state.Begun.Format(asideTime)
		}
	}
	if state != h.Facts.Restoring {
		if err := h.writeRestoring(ctx, state); err != nil {
			return err
		}
	}
	ready, err := s.prepare(ctx, h)
	if err != nil {
		return err
	}
	record := h.Facts.Record
	record.ClusterID, record.MemberID, record.Snapshot = "", "", s.Contents.SHA256
	if err := writeRecord(ctx, h, record, "took the cluster and member ID from "+h.Want.Paths.Record); err != nil {
		return err
	}
	if state.Aside != "" {
		err := h.changeByScript(ctx, fmt.Sprintf("moved the data in %s aside, as %s", h.Want.Member.DataDir, path.Base(state.Aside)), remote.Command{
			Label: "move the data aside", Script: asideScript, Args: []string{h.Want.Member.DataDir, state.Aside},
		})
		if err != nil {
			return err
		}
	}
	if err := ready(); err != nil {
		return err
	}
	h.Facts.Data = observed.DataAbsent
	delete(h.Facts.Files, h.Want.Member.DataDir)
	state.Moved = true
	return h.writeRestoring(ctx, state)
}

// hasData is whether a member has written anything. It is asked again when the
// members have been stopped: one that had nothing when the facts were read may
// have founded a cluster since.
func (h *Host) hasData(ctx context.Context) (bool, error) {
	result, err := h.Remote.Run(ctx, remote.Command{
		Label: "look for data", Script: `ls -A "$1" 2>/dev/null | grep -v -E '^(restore|lost[+]found)$' || :`, Args: []string{h.Want.Member.DataDir},
	})
	return result.Stdout != "", err
}

// prepare has the host's server begin with the snapshot when it finds no data.
// What it returns is called when the old data is away.
func (s *Restore) prepare(ctx context.Context, h *Host) (ready func() error, err error) {
	etcd, err := h.etcdVersion(ctx)
	if err != nil {
		return nil, err
	}
	if etcd != "" {
		return s.prepareEtcd(ctx, h, etcd)
	}
	if h.unit().IsPod() {
		return func() error { return s.stage(ctx, h) }, nil
	}
	lines := "ETCD_RESTORE_SNAPSHOT=" + placed(h) + "\n"
	if s.id != "" {
		lines += "ETCD_RESTORE_ID=" + s.id + "\n"
	}
	err = h.Remote.WriteFile(ctx, remote.File{Path: h.Want.Paths.Environment, Mode: 0o644, Owner: "root", Group: "root"}, []byte(lines))
	return func() error { return nil }, err
}

// stageScript puts the snapshot $2 and the ID $3 into the data directory $1: a
// container sees nothing else.
const stageScript = `set -eu
dir=$1 snapshot=$2 id=$3
umask 077
mkdir -p "$dir/restore"
chmod 0700 "$dir"
if [ -e "$snapshot" ]; then
	mv -fT "$snapshot" "$dir/restore/snapshot.db"
fi
printf '%s\n' "$id" >"$dir/restore/id"
sync "$dir/restore/id"
sync "$dir/restore"
`

// stagedDir is the directory that stageScript makes.
func stagedDir(h *Host) string { return path.Join(h.Want.Member.DataDir, "restore") }

func (s *Restore) stage(ctx context.Context, h *Host) error {
	return h.changeByScript(ctx, "moved the snapshot to "+stagedDir(h), remote.Command{
		Label: "put the snapshot where the container finds it", Script: stageScript, Args: []string{h.Want.Member.DataDir, placed(h), s.id},
	})
}

func (h *Host) writeRestoring(ctx context.Context, state observed.Restoring) error {
	line, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("%s: record the restore: %w", h.Name, err)
	}
	if err := h.Remote.WriteFile(ctx, remote.File{Path: h.Want.Paths.Restoring, Mode: 0o644, Owner: "root", Group: "root"}, append(line, '\n')); err != nil {
		return err
	}
	h.Facts.Restoring = state
	return nil
}

// Compare proves that every member has, at the snapshot's revision, as many keys
// as the snapshot. Clients may write already.
func (s *Restore) Compare(ctx context.Context, r *Run) error {
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	for _, h := range r.Hosts {
		var got *clientv3.GetResponse
		err := c.until(ctx, "count the keys of "+h.Name, func(ctx context.Context) error {
			client, err := c.client(h, h.Want.Member.ClientURL)
			if err != nil {
				return err
			}
			got, err = client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly(), clientv3.WithSerializable(), clientv3.WithRev(s.Contents.Revision))
			if errors.Is(err, rpctypes.ErrCompacted) { // by a client, since
				got, err = nil, nil
			}
			return err
		})
		if err != nil {
			return &hostError{h.Name, err}
		}
		if got != nil && got.Count != int64(s.Contents.Keys) {
			return &hostError{h.Name, fmt.Errorf("%s has %d keys at revision %d, and the snapshot has %d; the data from before the restore is still on the hosts", h.Name, got.Count, s.Contents.Revision, s.Contents.Keys)}
		}
	}
	return nil
}

// Tidy removes what only the restore needed. The data that was put aside
// stays. The record goes last: until then the restore is not over.
func (s *Restore) Tidy(ctx context.Context, h *Host) error {
	return h.changeByScript(ctx, "removed the snapshot "+placed(h), remote.Command{
		Label:  "tidy up",
		Script: `rm -rf -- "$1" "$2" "$3" && rm -f -- "$4"`,
		Args:   []string{placed(h), h.Want.Paths.Environment, stagedDir(h), h.Want.Paths.Restoring},
	})
}

package step

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/version"

	"muster/provision/desired"
	"muster/provision/remote"
)

// The programs among Host.Want.Binaries.
const (
	serverProgram = "musterd"
	clientProgram = "musterctl"
)

// binary is where a program is on the host.
func (h *Host) binary(program string) string {
	for _, b := range h.Want.Binaries {
		if b.Program == program {
			return b.Path
		}
	}
	return program
}

// runsMusterd asks the server that is installed whether it is musterd, which
// founds a cluster from a snapshot by itself, or etcd's own, which does not.
func (h *Host) runsMusterd(ctx context.Context) (bool, error) {
	result, err := h.Remote.Run(ctx, h.askVersion())
	return strings.Contains(result.Stdout, "musterd Version:"), err
}

// unpackScript makes a data directory of etcd's from a snapshot, with etcd's own
// tool, beside the one that is in use. An older etcd refuses the storage of a
// newer one: for it there is a version to go down to.
const unpackScript = `set -eu
tool=$1 snapshot=$2 new=$3 owner=$4 storage=$5
shift 5
rm -rf "$new"
"$tool" utl snapshot restore "$snapshot" --data-dir "$new" "$@" 2>&1
[ -z "$storage" ] || "$tool" utl migrate --data-dir "$new" --target-version "$storage" 2>&1
chown -R "$owner" "$new"
sync "$new"
`

// fillScript puts it in place. What a start in between has founded is no
// member's of this cluster; it is kept all the same.
const fillScript = `set -eu
dir=$1 new=$2 owner=$3 found=$4
mkdir -p "$dir"
if [ -e "$dir/member" ]; then
	mkdir -p "$found"
	mv -f "$dir/member" "$found/"
fi
chown "$owner" "$dir"
chmod 0700 "$dir"
mv -fT "$new/member" "$dir/member"
rm -rf "$new"
sync "$dir"
`

// oldestStorage is the oldest version of the storage that etcd's tool writes, which
// older servers read as well.
var oldestStorage = semver.Version{Major: 3, Minor: 5}

// storageVersion is the version of the storage for an etcd of that version, which
// may be unknown; empty for that of the snapshot.
func storageVersion(server string) (string, error) {
	if server == "" {
		return "", nil
	}
	old, err := semver.NewVersion(server)
	if err != nil {
		return "", err
	}
	if !old.LessThan(semver.Version{Major: version.V3_7.Major, Minor: version.V3_7.Minor}) {
		return "", nil
	}
	if old.LessThan(oldestStorage) {
		old = &oldestStorage
	}
	return fmt.Sprintf("%d.%d", old.Major, old.Minor), nil
}

// unpack makes a directory with the data of a member of etcd's, in that version
// of the storage; empty for the snapshot's.
func (s *Restore) unpack(ctx context.Context, h *Host, dir, owner, member, initialCluster, storage string) error {
	return h.changeByScript(ctx, "unpacked the snapshot to "+dir, remote.Command{
		Label: "unpack the snapshot", Script: unpackScript,
		Args: []string{
			h.binary(clientProgram), placed(h), dir, owner, storage,
			"--name", member, "--initial-advertise-peer-urls", h.Want.Member.PeerURL,
			"--initial-cluster", initialCluster,
			"--initial-cluster-token", h.run.Cluster.Token + "-" + s.Contents.SHA256[:12],
		},
	})
}

// prepareEtcd unpacks the snapshot for etcd's own server. The cluster gets a
// token of its own, and so another ID than the one that was there.
func (s *Restore) prepareEtcd(ctx context.Context, h *Host) (ready func() error, err error) {
	dir, owner := h.Want.Member.DataDir, h.Want.Account.User+":"+h.Want.Account.Group
	unpacked := dir + ".restoring"
	if err := s.unpack(ctx, h, unpacked, owner, h.Name, desired.Founding(h.run.Cluster).InitialCluster, ""); err != nil {
		return nil, err
	}
	return func() error {
		found := dir + asideMark + time.Now().UTC().Format(asideTime)
		return h.changeByScript(ctx, "made "+path.Join(dir, "member")+" of the snapshot", remote.Command{
			Label: "put the snapshot in place", Script: fillScript, Args: []string{dir, unpacked, owner, found},
		})
	}, nil
}

package step

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/coreos/go-semver/semver"

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

// etcdVersion asks the server that is installed for its version. It is empty for
// musterd, which founds a cluster from a snapshot by itself.
func (h *Host) etcdVersion(ctx context.Context) (string, error) {
	result, err := h.Remote.Run(ctx, h.askVersion())
	if err != nil || strings.Contains(result.Stdout, "musterd Version:") {
		return "", err
	}
	_, text, _ := strings.Cut(result.Stdout, "etcd Version: ")
	if fields := strings.Fields(text); len(fields) > 0 {
		return fields[0], nil
	}
	return "", fmt.Errorf("%s: the server does not tell its version: %q", h.Name, result.Stdout)
}

// unpackScript makes a data directory of etcd's from a snapshot, with etcd's own
// tool, beside the one that is in use. For an etcd that is older than the snapshot
// it is made fit.
const unpackScript = `set -eu
tool=$1 snapshot=$2 new=$3 owner=$4 older=$5
shift 5
rm -rf "$new"
"$tool" utl snapshot restore "$snapshot" --data-dir "$new" "$@" 2>&1
[ -z "$older" ] || "$tool" storage "$new" "$older" 2>&1
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

// newerStorage is the first version of etcd that reads the storage of every
// snapshot.
var newerStorage = semver.Version{Major: 3, Minor: 7}

// older says which version of etcd the data has to be made fit for, when the
// server is of that version, which may be unknown; empty for none.
func older(server string) (string, error) {
	if server == "" {
		return "", nil
	}
	v, err := semver.NewVersion(server)
	if err != nil || !v.LessThan(newerStorage) {
		return "", err
	}
	return server, nil
}

// unpack makes a directory with the data of a member of etcd's, fit for that older
// version of etcd, or as the snapshot has it.
func (s *Restore) unpack(ctx context.Context, h *Host, dir, owner, member, initialCluster, older string) error {
	return h.changeByScript(ctx, "unpacked the snapshot to "+dir, remote.Command{
		Label: "unpack the snapshot", Script: unpackScript,
		Args: []string{
			h.binary(clientProgram), placed(h), dir, owner, older,
			"--name", member, "--initial-advertise-peer-urls", h.Want.Member.PeerURL,
			"--initial-cluster", initialCluster,
			"--initial-cluster-token", h.run.Cluster.Token + "-" + s.Contents.SHA256[:12],
		},
	})
}

// prepareEtcd unpacks the snapshot for etcd's own server. The cluster gets a
// token of its own, and so another ID than the one that was there.
func (s *Restore) prepareEtcd(ctx context.Context, h *Host, version string) (ready func() error, err error) {
	older, err := older(version)
	if err != nil {
		return nil, fmt.Errorf("%s: the version of the server: %w", h.Name, err)
	}
	dir, owner := h.Want.Member.DataDir, h.Want.Account.User+":"+h.Want.Account.Group
	unpacked := dir + ".restoring"
	if err := s.unpack(ctx, h, unpacked, owner, h.Name, desired.Founding(h.run.Cluster).InitialCluster, older); err != nil {
		return nil, err
	}
	return func() error {
		found := dir + asideMark + time.Now().UTC().Format(asideTime)
		return h.changeByScript(ctx, "made "+path.Join(dir, "member")+" of the snapshot", remote.Command{
			Label: "put the snapshot in place", Script: fillScript, Args: []string{dir, unpacked, owner, found},
		})
	}, nil
}

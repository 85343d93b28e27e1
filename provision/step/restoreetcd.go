package step

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"path"
	"strings"
	"time"

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

// serverPackage is what musterd was compiled from.
const serverPackage = "muster/cmd/musterd"

// runsMusterd asks the server that is installed whether it is musterd, which
// founds a cluster from a snapshot by itself, or etcd's own, which does not. The
// one in a container is looked at here.
func (h *Host) runsMusterd(ctx context.Context) (bool, error) {
	if h.unit().IsPod() {
		server, err := h.run.Programs.Find(ctx, serverProgram, h.Server.Binary, goArch(h.Facts.Machine))
		if err != nil {
			return false, &localError{err}
		}
		info, err := buildinfo.Read(bytes.NewReader(server.Content()))
		return err == nil && info.Path == serverPackage, nil
	}
	result, err := h.Remote.Run(ctx, remote.Command{
		Label: "ask the server for its version", Script: `"$1" --version`, Args: []string{h.binary(serverProgram)},
	})
	return strings.Contains(result.Stdout, "musterd Version:"), err
}

// unpackScript makes a data directory of etcd's from a snapshot, with etcd's own
// tool, beside the one that is in use.
const unpackScript = `set -eu
tool=$1 snapshot=$2 new=$3 owner=$4
shift 4
rm -rf "$new"
"$tool" utl snapshot restore "$snapshot" --data-dir "$new" "$@" 2>&1
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

// prepareEtcd unpacks the snapshot for etcd's own server. The cluster gets a
// token of its own, and so another ID than the one that was there.
func (s *Restore) prepareEtcd(ctx context.Context, h *Host) (ready func() error, err error) {
	dir, owner := h.Want.Member.DataDir, h.Want.Account.User+":"+h.Want.Account.Group
	unpacked := dir + ".restoring"
	if err := h.changeByScript(ctx, "unpacked the snapshot to "+unpacked, remote.Command{
		Label: "unpack the snapshot", Script: unpackScript,
		Args: []string{
			h.binary(clientProgram), placed(h), unpacked, owner,
			"--name", h.Name, "--initial-advertise-peer-urls", h.Want.Member.PeerURL,
			"--initial-cluster", desired.Founding(h.run.Cluster).InitialCluster,
			"--initial-cluster-token", h.run.Cluster.Token + "-" + s.Contents.SHA256[:12],
		},
	}); err != nil {
		return nil, err
	}
	return func() error {
		found := dir + asideMark + time.Now().UTC().Format("20060102T150405.000Z")
		return h.changeByScript(ctx, "made "+path.Join(dir, "member")+" of the snapshot", remote.Command{
			Label: "put the snapshot in place", Script: fillScript, Args: []string{dir, unpacked, owner, found},
		})
	}, nil
}

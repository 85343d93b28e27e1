package step

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"muster/pki"
	"muster/provision/found"
	"muster/provision/observed"
	"muster/provision/remote"
	"muster/provision/runner"
)

// Old is the etcd that somebody else has installed on a host, and what is
// needed to take it over. The pair of its client stays in memory.
type Old struct {
	found.Etcd
	// Unit runs it; empty when the kubelet does.
	Unit string
	// Owner of the data directory, USER:GROUP; empty when it does not exist.
	Owner string
	// HasData says that there is a member's data in it.
	HasData bool
	// CACert is in PEM. CAKey is the path of its key on the host, empty when it
	// is not there. OnePeerCA says that the peers are trusted by the same CA.
	CACert    []byte
	CAKey     string
	OnePeerCA bool
	client    pki.Pair
}

// oldScript looks at the data directory, and which of the other files exist.
const oldScript = `datadir=$1
shift
[ -d "$datadir" ] && printf 'owner|%s\n' "$(stat -c '%U:%G' -- "$datadir")"
[ -d "$datadir/member" ] && [ -n "$(ls -A "$datadir/member")" ] && echo 'data|filled'
for path in "$@"; do
	[ -f "$path" ] && printf 'exists|%s\n' "$path"
done
exit 0
`

// FindOld finds the etcd of a host. Without one the error is, or wraps,
// found.ErrNothing. It only reads.
func FindOld(ctx context.Context, h *Host) (*Old, error) {
	texts, err := readSecret(ctx, h, "look for an etcd", found.Files())
	if err != nil {
		return nil, err
	}
	state, err := h.Remote.Run(ctx, remote.Command{
		Label: "ask for the state of " + found.UnitName, Script: `systemctl show -p ActiveState "$1" || true`, Args: []string{found.UnitName},
	})
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for name, text := range texts {
		files[name] = string(text)
	}
	_, active, _ := strings.Cut(strings.TrimSpace(state.Stdout), "=")
	etcd, err := found.Read(files, active)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	old := &Old{Etcd: *etcd}
	if etcd.Installer != found.Kubeadm {
		old.Unit = found.UnitName
	}
	return old, old.complete(ctx, h)
}

// complete reads what the flags name.
func (o *Old) complete(ctx context.Context, h *Host) error {
	args := append([]string{o.DataDir()}, o.CAKeys()...)
	for _, p := range o.Clients() {
		args = append(args, p.Cert, p.Key)
	}
	result, err := h.Remote.Run(ctx, remote.Command{Label: "look at the etcd", Script: oldScript, Args: args})
	if err != nil {
		return err
	}
	exists := map[string]bool{}
	for _, line := range strings.Split(result.Stdout, "\n") {
		switch kind, value, _ := strings.Cut(line, "|"); kind {
		case "owner":
			o.Owner = value
		case "data":
			o.HasData = true
		case "exists":
			exists[value] = true
		}
	}
	for _, key := range o.CAKeys() {
		if exists[key] {
			o.CAKey = key
			break
		}
	}
	var client found.Pair
	for _, p := range o.Clients() {
		if exists[p.Cert] && exists[p.Key] {
			client = p
			break
		}
	}
	files, err := readSecret(ctx, h, "read the certificates of the etcd", []string{o.CA(), o.PeerCA(), client.Cert, client.Key})
	if err != nil {
		return err
	}
	o.CACert, o.client = files[o.CA()], pki.Pair{Cert: files[client.Cert], Key: files[client.Key]}
	o.OnePeerCA = string(files[o.PeerCA()]) == string(o.CACert)
	if len(o.CACert) == 0 {
		return fmt.Errorf("%s: %s names the CA %s, which does not exist", h.Name, o.Source, o.CA())
	}
	return nil
}

// oldOf is what a host remembers of its old etcd, enough to start it again.
func oldOf(o *Old) observed.Adoption {
	a := observed.Adoption{Installer: string(o.Installer), Member: o.Flags["name"], Unit: o.Unit, DataDir: o.DataDir(), Owner: o.Owner}
	if o.Unit == "" {
		a.Manifest, a.Kept = o.Source, keptManifest
	}
	return a
}

// keptManifest is where the manifest of an etcd that is taken over stays: out
// of the directory that the kubelet reads, on the same file system.
const keptManifest = "/etc/kubernetes/etcd.yaml.before-muster"

// stopOldScript has the old etcd started by nobody any more, and waits until its
// process is gone: that holds a lock on its database. Where an earlier run has
// come to starting the new member, that one may hold the lock, and its manifest
// ($5) be where the old one's was.
const stopOldScript = `set -eu
unit=$1 manifest=$2 kept=$3 database=$4/member/snap/db new=$5
[ -e "$new" ] || new=/dev/null
if [ -n "$manifest" ]; then
	if [ -e "$manifest" ] && [ "$(sha256sum <"$manifest")" != "$(sha256sum <"$new")" ]; then
		mv -fT "$manifest" "$kept"
		sync "$kept"
	fi
else
	systemctl stop "$unit"
	systemctl disable "$unit" 2>/dev/null
fi
case $(unit_facts | grep ^ActiveState=) in
*=active | *=activating | *=reloading) exit 0 ;;
esac
if [ -e "$database" ]; then
	flock -w 120 "$database" sh -c : || { echo "the old etcd still has $database open"; exit 1; }
fi
`

// startOldScript undoes it.
const startOldScript = `set -eu
unit=$1 manifest=$2 kept=$3
if [ -n "$manifest" ]; then
	if [ -e "$kept" ]; then
		mv -fT "$kept" "$manifest"
		sync "$manifest"
	fi
else
	systemctl enable "$unit" 2>/dev/null
	systemctl start --no-block "$unit"
fi
`

func (h *Host) stopOld(ctx context.Context, a observed.Adoption) error {
	sentence := "stopped and disabled " + a.Unit
	if a.Unit == "" {
		sentence = fmt.Sprintf("moved %s to %s, so that the kubelet stopped etcd", a.Manifest, a.Kept)
	}
	return h.changeByScript(ctx, sentence, remote.Command{
		Label: "stop the old etcd", Functions: runner.Functions(h.Want), Script: stopOldScript, Args: []string{a.Unit, a.Manifest, a.Kept, a.DataDir, h.unit().Path},
	})
}

func (h *Host) startOld(ctx context.Context, a observed.Adoption) error {
	sentence := "started " + a.Unit + " again"
	if a.Unit == "" {
		sentence = fmt.Sprintf("moved %s back to %s, so that the kubelet starts etcd again", a.Kept, a.Manifest)
	}
	return h.changeByScript(ctx, sentence, remote.Command{
		Label: "start the old etcd again", Script: startOldScript, Args: []string{a.Unit, a.Manifest, a.Kept},
	})
}

// giveData gives the data directory and all that is in it to an owner.
func (h *Host) giveData(ctx context.Context, dir, owner string) error {
	return h.changeByScript(ctx, fmt.Sprintf("gave %s to %s", dir, owner), remote.Command{
		Label: "give the data to " + owner, Script: `chown -R "$2" "$1" && chmod 0700 "$1"`, Args: []string{dir, owner},
	})
}

// stopNew has our own member started by nobody.
func (h *Host) stopNew(ctx context.Context) error {
	unit := h.unit().Title()
	return h.changeByScript(ctx, "stopped and disabled "+unit, remote.Command{
		Label: "stop " + unit, Functions: runner.Functions(h.Want), Script: `unit_stop 2>/dev/null; unit_disable 2>/dev/null; rm -f ` + h.Want.Paths.RestartMark,
	})
}

// errNoClient is returned for a host on which nothing identifies a client.
var errNoClient = errors.New("no certificate that etcd admits a client by is on the host")

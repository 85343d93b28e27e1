package step

import (
	"context"
	"fmt"
	"strings"
	"time"

	"muster/provision/remote"
)

// factsScript reads everything there is to know about a host in one round
// trip, as "kind|value" lines. It changes nothing: the file that measures how
// fast the disk is goes away again, and is not made where a member has data.
//
// Arguments: data directory, unit, user, group, record, then the paths of
// everything the host should have.
const factsScript = `datadir=$1 unit=$2 user=$3 group=$4 record=$5
shift 5
say() { printf '%s|%s\n' "$1" "$2"; }
free() {
	dir=$2
	while [ ! -d "$dir" ]; do dir=${dir%/*}; dir=${dir:-/}; done
	say free "$1 $(df -Pk "$dir" | tail -n 1)"
}
say clock "$(date +%s%N)"
say machine "$(uname -m)"
say kernel "$(uname -s)"
for tool in ` + requiredTools + `; do
	command -v "$tool" >/dev/null 2>&1 || say missing "$tool"
done
[ -d /run/systemd/system ] && say systemd "$(systemctl --version 2>/dev/null | head -n 1)"
say user "$(getent passwd "$user")"
say group "$(getent group "$group")"
systemctl show -p LoadState -p ActiveState -p SubState -p Result -p UnitFileState -p MainPID -p NeedDaemonReload -p NRestarts "$unit" 2>/dev/null |
	while read -r line; do say unit "$line"; done
command -v ss >/dev/null 2>&1 || say sockets unknown
ss -Hltnp 2>/dev/null | while read -r line; do say socket "$line"; done
stat -c 'file|%F|%a|%U|%G|%n' -- "$@" 2>/dev/null
for path in "$@"; do
	[ -L "$path" ] && say link "$(readlink "$path")|$path"
done
sha256sum -- "$@" 2>/dev/null | while read -r sum path; do say sha256 "$sum|$path"; done
free data "$datadir"
free programs /usr/local/bin
free uploads /var/tmp
if [ -L "$datadir" ]; then
	say data link
elif [ ! -d "$datadir" ]; then
	say data absent
elif [ -n "$(ls -A "$datadir" 2>/dev/null)" ]; then
	say data filled
else
	say data empty
fi
if [ ! -L "$datadir" ] && [ -z "$(ls -A "$datadir" 2>/dev/null)" ]; then
	dir=$datadir
	while [ ! -d "$dir" ]; do dir=${dir%/*}; dir=${dir:-/}; done
	say sync "$(dd if=/dev/zero of="$dir/.muster-sync-probe" bs=4k count=` + syncProbes + ` oflag=dsync 2>&1 | tail -n 1)"
	rm -f "$dir/.muster-sync-probe"
fi
say record "$(cat "$record" 2>/dev/null)"
[ -e ` + restartMark + ` ] && say restart yes
say clock "$(date +%s%N)"
`

// requiredTools are the commands a host must have beyond the shell's own.
const requiredTools = "cat chmod chown date df flock getent groupadd head install journalctl ln mktemp mv readlink rm sha256sum stat sync systemctl systemd-analyze tail timeout useradd"

// syncProbes is how many 4 KiB blocks are written, each flushed to disk, to
// learn how fast the disk flushes.
const syncProbes = "16"

// GatherFacts reads what the host is and what it has.
func GatherFacts(ctx context.Context, h *Host) error {
	paths := []string{}
	for _, d := range h.Want.Directories {
		paths = append(paths, d.Path)
	}
	for _, f := range h.Want.Files {
		paths = append(paths, f.Path)
	}
	for _, b := range h.Want.Binaries {
		paths = append(paths, b.Path)
	}
	for _, l := range h.Want.Links {
		paths = append(paths, l.Path)
	}
	begin := time.Now()
	result, err := h.Remote.Run(ctx, remote.Command{
		Label:   "read the facts",
		Script:  factsScript,
		Args:    append([]string{h.Want.Member.DataDir, h.unit().Name, h.Want.Account.User, h.Want.Account.Group, recordPath}, paths...),
		AsLogin: h.Remote.Privilege().Problem != "",
	})
	if err != nil {
		return err
	}
	h.Facts, err = parseFacts(result.Stdout, begin, begin.Add(result.Elapsed))
	if err != nil {
		return fmt.Errorf("%s: read the facts: %w", h.Name, err)
	}
	h.restart = h.Facts.RestartPending
	return nil
}

// goArch is the architecture uname -m names, in Go's words; empty when no
// program can be made for it.
func goArch(machine string) string {
	return map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[strings.TrimSpace(machine)]
}

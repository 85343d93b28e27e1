package observed

import (
	"context"
	"fmt"
	"time"

	"muster/provision/desired"
	"muster/provision/remote"
	"muster/provision/runner"
)

// script reads everything there is to know about a host in one round
// trip, as "kind|value" lines. It changes nothing, but for the file that
// measures how fast the disk is: that goes away again, and is not made where a
// member has data or where nothing at all may be touched.
//
// Arguments: data directory, commands it needs, user, group, record, "probe" to
// measure the disk, the container images asked for, then the paths of everything
// the host should have. The functions of package runner go before it.
const script = `datadir=$1 tools=$2 user=$3 group=$4 record=$5 probe=$6 images=$7
shift 7
` + sayScript + `free() {
	dir=$2
	while [ ! -d "$dir" ]; do dir=${dir%/*}; dir=${dir:-/}; done
	say free "$1 $(df -Pk "$dir" | tail -n 1)"
}
say clock "$(date +%s%N)"
say machine "$(uname -m)"
say kernel "$(uname -s)"
[ -z "$images" ] || tools="$tools $(image_tool)"
for tool in $tools; do
	command -v "$tool" >/dev/null 2>&1 || say missing "$tool"
done
[ -d /run/systemd/system ] && say systemd "$(systemctl --version 2>/dev/null | head -n 1)"
say user "$(getent passwd "$user")"
say group "$(getent group "$group")"
unit_facts 2>/dev/null | while read -r line; do say unit "$line"; done
if [ -n "$images" ]; then
	say kubelet "$(systemctl is-active kubelet 2>/dev/null)"
	image_facts | while read -r line; do say image "$line"; done
fi
say timer "$(systemctl is-active "$timer" 2>/dev/null)"
say timer "$(systemctl is-enabled "$timer" 2>/dev/null)"
command -v ss >/dev/null 2>&1 || say sockets unknown
ss -Hltnp 2>/dev/null | while read -r line; do say socket "$line"; done
unit_facts 2>/dev/null | while read -r line; do say unit "$line"; done # once more: the sockets may be of a process that started since
` + filesScript + `free data "$datadir"
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
if [ "$probe" = probe ] && [ ! -L "$datadir" ] && [ -z "$(ls -A "$datadir" 2>/dev/null)" ]; then
	dir=$datadir
	while [ ! -d "$dir" ]; do dir=${dir%/*}; dir=${dir:-/}; done
	say sync "$(dd if=/dev/zero of="$dir/.muster-sync-probe" bs=4k count=` + syncProbes + ` oflag=dsync 2>&1 | tail -n 1)"
	rm -f "$dir/.muster-sync-probe"
fi
say record "$(cat "$record" 2>/dev/null)"
say restoring "$(cat "$restoring" 2>/dev/null)"
say adoption "$(cat "$adoption" 2>/dev/null)"
[ -e "$mark" ] && say restart yes
say clock "$(date +%s%N)"
`

const sayScript = `say() { printf '%s|%s\n' "$1" "$2"; }
`

// filesScript tells of the files, directories and links that its arguments name.
const filesScript = `stat -c 'file|%F|%a|%U|%G|%n' -- "$@" 2>/dev/null
for path in "$@"; do
	[ -L "$path" ] && say link "$(readlink "$path")|$path"
done
sha256sum -- "$@" 2>/dev/null | while read -r sum path; do say sha256 "$sum|$path"; done
for path in "$@"; do
	case $path in
	*.crt | *.service | *.timer | *.yaml)
		if [ -f "$path" ]; then
			say text "$path"
			head -c 65536 "$path"
			printf '\nend of text|%s\n' "$path"
		fi
		;;
	esac
done
`

// requiredTools are the commands a host must have beyond the shell's own.
const requiredTools = "cat chmod chown date df flock getent groupadd head install journalctl ln mktemp mv readlink rm sha256sum stat sync systemctl systemd-analyze tail timeout useradd"

// podTools are the further commands that a member in a static pod needs, beside
// that of its container runtime.
const podTools = " grep ps sleep"

// syncProbes is how many 4 KiB blocks are written, each flushed to disk, to
// learn how fast the disk flushes.
const syncProbes = "16"

// Gather asks a host about everything it should have. Without probe nothing on
// the host is touched, and Facts.Sync stays 0.
func Gather(ctx context.Context, host *remote.Host, want desired.Host, probe bool) (Facts, error) {
	tools, images, functions := requiredTools, "", runner.Functions(want)
	functions += fmt.Sprintf("timer='%s' restoring='%s' adoption='%s' mark='%s'\n", want.Paths.BackupTimer, want.Paths.Restoring, want.Paths.Adoption, want.Paths.RestartMark)
	if want.Units[0].IsPod() {
		tools, images = tools+podTools, "all"
		functions += runner.ImageFunctions
	}
	args := []string{want.Member.DataDir, tools, want.Account.User, want.Account.Group, want.Paths.Record, "touch nothing", images}
	if probe {
		args[5] = "probe"
	}
	for _, d := range want.Directories {
		args = append(args, d.Path)
	}
	for _, f := range want.Files {
		args = append(args, f.Path)
	}
	for _, b := range want.Binaries {
		args = append(args, b.Path)
	}
	for _, l := range want.Links {
		args = append(args, l.Path)
	}
	args = append(args, want.Paths.BackupUnits()...)
	if unit := want.Units[0]; unit.IsPod() {
		args = append(args, unit.Manifest)
	}
	if want.Backup != nil {
		args = append(args, want.Backup.Directory.Path)
	}
	facts, err := ask(ctx, host, want.Name, functions, script, args)
	if err == nil && want.Units[0].IsPod() && facts.Unit.NeedsReload { // a kubelet reloads by itself: it was given another one
		facts.RestartPending = true
	}
	return facts, err
}

func ask(ctx context.Context, host *remote.Host, name, functions, script string, args []string) (Facts, error) {
	begin := time.Now()
	result, err := host.Run(ctx, remote.Command{
		Label: "read the facts", Functions: functions, Script: script, Args: args, AsLogin: host.Privilege().Problem != "",
	})
	if err != nil {
		return Facts{}, err
	}
	facts, err := parseFacts(result.Stdout, begin, begin.Add(result.Elapsed))
	if err != nil {
		return Facts{}, fmt.Errorf("%s: read the facts: %w", name, err)
	}
	return facts, nil
}

// GatherFiles asks a host about the files and directories it should have, and
// its clock. Nothing on the host is touched.
func GatherFiles(ctx context.Context, host *remote.Host, want desired.Host) (Facts, error) {
	var args []string
	for _, d := range want.Directories {
		args = append(args, d.Path)
	}
	for _, f := range want.Files {
		args = append(args, f.Path)
	}
	clock := "say clock \"$(date +%s%N)\"\n"
	return ask(ctx, host, want.Name, "", sayScript+clock+filesScript+clock, args)
}

// Package runner holds the shell functions by which a host's member is started,
// stopped and looked at: with systemd, or with the kubelet of its node. Scripts
// call the functions and need not know which. The names of variables that begin
// with unit_ are theirs.
//
//	unit_facts        properties as "systemctl show" prints them
//	unit_start        has the member started, and does not wait
//	unit_stop         returns when the member runs no more
//	unit_enable       has the member started at boot
//	unit_disable      undoes it; a pod is forgotten
//	unit_reload       after a change of the unit's file
//	unit_log LINES    the last lines of the member's output
package runner

import (
	"strings"

	"muster/provision/desired"
)

// Functions returns the functions for the member of a host. They go before the
// script that calls them.
func Functions(want desired.Host) string {
	unit := want.Units[0]
	if !unit.IsPod() {
		return assign("unit_name", unit.Name) + systemd
	}
	return assign("unit_file", unit.Path) + assign("unit_manifest", unit.Manifest) + assign("unit_data", want.Member.DataDir) + kubelet
}

// assign sets a variable. The inventory admits no name or path with a quote.
func assign(name, value string) string {
	return name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'\n"
}

const systemd = `unit_facts() {
	systemctl show -p LoadState -p ActiveState -p SubState -p Result -p UnitFileState -p MainPID -p NeedDaemonReload -p NRestarts "$unit_name"
}
unit_start() {
	systemctl reset-failed "$unit_name" 2>/dev/null
	systemctl start --no-block "$unit_name"
}
unit_stop() { systemctl stop "$unit_name"; }
unit_enable() { systemctl enable "$unit_name"; }
unit_disable() { systemctl disable "$unit_name"; }
unit_reload() { systemctl daemon-reload; }
unit_log() { journalctl -u "$unit_name" -n "$1" --no-pager -o cat 2>&1; }
`

// kubelet has the same for a static pod. A kubelet without an API server says
// nothing about its pods, so what the host itself shows has to do: the manifest,
// the process, and the files of its output, which are numbered by restart. The
// copy of a manifest is made on the same file system, outside the directory that
// the kubelet watches. Without a file of ours whatever runs is somebody else's.
//
// A kubelet that has not seen its API server since it started stops no pod, and
// starts none of the same name, as it may not know all of them (SeenAllSources in
// Kubernetes). That is how it is before kubeadm has been there, and on machines
// that come up without a quorum. It forgets the pod when it starts again. What it
// writes to its journal tells; and whether it stops the pod in 40 s: it looks at
// the manifests every 20 s.
const kubelet = `unit_pid() (
	ps -C etcd -o pid=,args= | while read -r pid args; do
		case " $args " in
		*" --data-dir=$unit_data "*)
			echo "$pid"
			break
			;;
		esac
	done
)
unit_logs() { ls -1dt ` + desired.PodLogs + ` 2>/dev/null | head -n 1; }
unit_restarts() (
	restarts=0
	for log in "$(unit_logs)"/*.log; do
		number=${log##*/} number=${number%.log}
		[ -e "$log" ] && [ "$number" -gt "$restarts" ] && restarts=$number
	done
	echo "$restarts"
)
unit_facts() (
	pid= state=inactive sub=dead load=not-found reload=no
	if [ -e "$unit_file" ]; then
		load=loaded pid=$(unit_pid)
		if [ -e "$unit_manifest" ]; then
			state=activating sub=waiting
			[ -n "$pid" ] && state=active sub=running
			[ "$(sha256sum <"$unit_manifest")" = "$(sha256sum <"$unit_file")" ] || reload=yes
		elif [ -n "$pid" ]; then
			state=deactivating sub=stopping
		fi
	fi
	restarts=$(unit_restarts)
	printf '%s\n' "LoadState=$load" "ActiveState=$state" "SubState=$sub" Result=success UnitFileState=enabled "MainPID=${pid:-0}" "NeedDaemonReload=$reload" "NRestarts=$restarts"
)
unit_start() (
	unit_copy=${unit_manifest%/*/*}/.muster-${unit_manifest##*/}
	(umask 077 && cat "$unit_file" >"$unit_copy") && sync "$unit_copy" && mv -fT "$unit_copy" "$unit_manifest"
)
unit_kubelet_alone() {
	journalctl -u kubelet -n 20000 --no-pager -o cat 2>/dev/null |
		grep -E 'Kubelet version|Successfully registered node' | tail -n 1 | grep -q 'Kubelet version'
}
unit_ended() (
	tries=$1
	while [ -n "$(unit_pid)" ]; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || exit 1
		sleep 0.2
	done
)
unit_stop() (
	[ -e "$unit_file" ] || exit 0
	rm -f "$unit_manifest"
	unit_kubelet_alone || ! unit_ended 200 || exit 0
	pid= left=
	systemctl stop kubelet && pid=$(unit_pid)
	[ -z "$pid" ] || kill "$pid"
	unit_ended 400 || left=$(unit_pid)
	systemctl start kubelet
	[ -z "$left" ] || {
		echo "the process $left of the pod does not end; see journalctl -u kubelet" >&2
		exit 1
	}
)
unit_enable() { :; }
unit_disable() { rm -f "$unit_file"; }
unit_reload() { :; }
unit_log() (
	logs=$(unit_logs) last=$(unit_restarts)
	if [ -n "$logs" ]; then
		cat "$logs/$((last - 1)).log" "$logs/$last.log" 2>/dev/null | tail -n "$1" | while read -r _ _ _ line; do printf '%s\n' "$line"; done
	fi
	[ -n "$(unit_pid)" ] && exit 0
	echo "the kubelet says of it:"
	journalctl -u kubelet -n 200 --no-pager -o cat 2>&1 | grep etcd | tail -n 5
)
`

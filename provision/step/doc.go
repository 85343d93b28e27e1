// Package step holds what the installer does to a cluster, one file per step,
// named after it. Each operation in package provision is an ordered list of
// these steps.
//
// Every change to a host goes through Host.Change, which takes a sentence that
// says what is done: that is where changes are reported and counted.
//
// # What a host is asked to run
//
// All scripts are POSIX sh, run by "sh -c SCRIPT muster ARG..." as the login
// user, or as root behind "sudo -n" or "doas -n". They use these commands and
// no others, with these options:
//
//	[                    -e -d -f -L -S -n -z -s, = and !=
//	cat                  FILE, or standard input
//	chmod, chown         MODE FILE, OWNER:GROUP FILE; chown -R
//	command              -v NAME
//	chroot               DIR COMMAND ARG... (CRI-O)
//	ctr                  -n k8s.io images ls -q, import, label, rm; run --rm
//	date                 +%s%N
//	dd                   if= of= bs= count= oflag=dsync
//	df                   -Pk DIR
//	doas, sudo           -n COMMAND ARG...
//	echo, printf, exit, set -eu, shift, trap EXIT, umask, read -r, case, for, while
//	flock                -w SECONDS FILE COMMAND ARG...
//	getent               passwd NAME, group NAME
//	grep                 [-E] [-q] PATTERN, of standard input
//	groupadd             --system NAME
//	gzip                 -dc FILE
//	head                 -n N, -c N
//	id                   -u, -un
//	install              -d -m MODE -o OWNER -g GROUP DIR
//	journalctl           -u UNIT -n N --no-pager -q -o cat or json, --since @SECONDS,
//	                     --after-cursor CURSOR
//	kill                 PID
//	ln                   -sfn TARGET LINK
//	ls                   -A DIR, -1dt or -1tr FILE...
//	mkdir                -p DIR
//	mktemp               -d TEMPLATE
//	mv                   -fT FROM TO, -f FILE DIR/
//	podman               images --format, load -q -i, image exists, image mount, image
//	                     unmount, rmi, untag (CRI-O)
//	ps                   -C NAME -o pid=,args=
//	readlink             LINK
//	rm, rmdir            -f, -rf; rmdir DIR
//	sha256sum            [--] FILE..., or standard input
//	sleep                SECONDS
//	ss                   -Hltnp
//	stat                 -c FORMAT -- FILE... with %F %a %U %G %s %n
//	sync                 FILE, DIR
//	systemctl            --version, daemon-reload, enable, disable, start [--no-block],
//	                     stop, restart --no-block, reset-failed,
//	                     show -p PROPERTY... UNIT with LoadState ActiveState SubState
//	                     Result UnitFileState MainPID NeedDaemonReload NRestarts,
//	                     is-active UNIT, is-enabled UNIT
//	systemd-analyze      verify FILE
//	tail                 -n N, -n +N FILE
//	timeout              SECONDS COMMAND ARG...
//	uname                -m, -s
//	useradd              --system --gid GROUP --home-dir DIR --no-create-home --shell SHELL
//	                     --comment TEXT NAME
//	userdel, groupdel    NAME
package step

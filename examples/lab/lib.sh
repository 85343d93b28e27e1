# Settings and functions shared by up, down, image and require. Sourced by bash.

# A second lab beside the first takes another name and another /24:
#   MUSTER_LAB_NAME=other MUSTER_LAB_NET=10.78.0 examples/lab/up
LAB_NAME=${MUSTER_LAB_NAME:-muster-lab}
LAB_NET=${MUSTER_LAB_NET:-10.77.0}

# The hosts of a control plane wait for a kubelet. Those of the kind kubernetes have
# containerd; those of the kind crio have what CRI-O needs, and wait for it, too:
#   MUSTER_LAB_KIND=kubernetes examples/lab/up
LAB_KIND=${MUSTER_LAB_KIND:-plain}

LAB_DIR=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
LAB_STATE=$LAB_DIR/.state
STATE=$LAB_STATE/$LAB_NAME

# Debian keeps dockerd, debootstrap and iptables where only root looks.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

say() { printf '%s: %s\n' "$LAB_NAME" "$*" >&2; }

die() {
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# as_root runs a command as root: directly, or through sudo without a prompt.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n env PATH="$PATH" "$@"
  else
    die "root is needed to run: $*" "run this as root, or let $(id -un) use sudo without a password"
  fi
}

# docker is the docker client with the rights to reach its engine.
docker() {
  if [ "$(id -u)" = 0 ] || [ -w /var/run/docker.sock ]; then
    command docker "$@"
  else
    as_root docker "$@"
  fi
}

# wait_for SECONDS COMMAND... polls until the command succeeds. It fails when
# the time is over.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

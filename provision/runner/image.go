package runner

// ImageFunctions are the functions for container images. Those of the server are
// told by the repository of their name.
//
//	image_tool            the command that they need: ctr, or podman with CRI-O
//	image_facts           the names of the server's images that the runtime has
//	image_import FILE NAME  has the runtime read an image from a tar archive
//	image_run NAME COMMAND...  runs a command with the image's files
//	image_tidy NAME       removes the server's images, but for this one
//
// containerd keeps the images of Kubernetes in a name space of its own. It is
// told to keep ours even when nothing uses it: no registry could send it again.
// CRI-O has no command to import an image, but shares its images with podman.
// What it keeps is in its own configuration, so the kubelet may collect an image
// there that no container has, and "muster apply" imports it again.
//
// The kubelet says which of them it uses, by its flag or in the files of kubeadm;
// where it does not, the socket that is there tells.
const ImageFunctions = `image_tool() (
	kubelet=$(
		ps -C kubelet -o pid=,args=
		cat /var/lib/kubelet/kubeadm-flags.env /var/lib/kubelet/instance-config.yaml /var/lib/kubelet/config.yaml
	) 2>/dev/null
	case $kubelet in
	*/crio.sock*) echo podman ;;
	*/containerd.sock*) echo ctr ;;
	*) if [ -S /run/crio/crio.sock ] && ! [ -S /run/containerd/containerd.sock ]; then echo podman; else echo ctr; fi ;;
	esac
)
image_facts() {
	case $(image_tool) in
	podman) podman images --format '{{.Repository}}:{{.Tag}}' ;;
	*) ctr -n k8s.io images ls -q ;;
	esac 2>/dev/null | grep '^muster\.local/etcd:'
}
image_import() {
	case $(image_tool) in
	podman) podman load -q -i "$1" >/dev/null && podman image exists "$2" ;;
	*) ctr -n k8s.io images import "$1" >/dev/null && ctr -n k8s.io images label "$2" io.cri-containerd.pinned=pinned >/dev/null ;;
	esac
}
image_run() (
	image=$1
	shift
	case $(image_tool) in
	podman)
		status=0
		{ root=$(podman image mount "$image") && chroot "$root" "$@"; } || status=$?
		podman image unmount "$image" >/dev/null 2>&1
		exit "$status"
		;;
	*) ctr -n k8s.io run --rm "$image" "muster-$$" "$@" ;;
	esac
)
image_tidy() {
	image_facts | while read -r name; do
		[ "$name" != "$1" ] || continue
		case $(image_tool) in
		podman) podman rmi "$name" >/dev/null 2>&1 || podman untag "$name" "$name" ;; # a container that has ended may keep it
		*) ctr -n k8s.io images rm "$name" >/dev/null ;;
		esac
	done
}
`

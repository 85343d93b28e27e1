package runner

// ImageFunctions are the functions for container images. Those of the server are
// told by the repository of their name.
//
//	image_facts           the names of the server's images that the runtime has
//	image_import FILE NAME  has the runtime read an image from a tar archive, and
//	                      keep it when nothing uses it: nobody could send it again
//	image_run NAME COMMAND...  runs a command in a container of its own
//	image_tidy NAME       removes the server's images, but for this one
//
// containerd keeps the images of Kubernetes in a name space of its own.
const ImageFunctions = `image_facts() { ctr -n k8s.io images ls -q 2>/dev/null | grep '^muster\.local/etcd:'; }
image_import() {
	ctr -n k8s.io images import "$1" >/dev/null && ctr -n k8s.io images label "$2" io.cri-containerd.pinned=pinned >/dev/null
}
image_run() (
	image=$1
	shift
	ctr -n k8s.io run --rm "$image" "muster-$$" "$@"
)
image_tidy() {
	image_facts | while read -r name; do
		[ "$name" = "$1" ] || ctr -n k8s.io images rm "$name" >/dev/null
	done
}
`

// Package desired works out, without touching a host, exactly what every
// host of a cluster should have: accounts, directories, files, links, units
// and the member it runs. The same input gives the same output, byte by byte.
package desired

import "io/fs"

// Host is everything one host should have. Lists are in the order in which
// they can be made: a directory precedes what is inside it.
type Host struct {
	Name        string // the inventory's
	Paths       Paths
	Account     Account
	Directories []Directory
	Binaries    []Binary
	Image       string // of the member's container; empty without one
	Links       []Link
	Files       []File
	Units       []Unit
	Backup      *Backup // nil when the host saves none
	Member      Member
}

// Account is a system user and the group of its own that the server runs as.
type Account struct {
	User  string
	Group string
	Home  string // not created
	Shell string
}

// AccountComment is what /etc/passwd says of an account that was made for the
// server. Another one was there before, and stays.
const AccountComment = "made by muster"

// Directory is a directory with its own owner and mode.
type Directory struct {
	Path  string
	Mode  fs.FileMode // permission bits only
	Owner string
	Group string
	// Data marks the member's data directory: it is never deleted, and its
	// content is none of our business.
	Data bool
	// Shared marks a directory that is Kubernetes' as well: it is made when it
	// is not there, and otherwise stays as it is.
	Shared bool
}

// ImageProgram is the Program of a Binary that is the server's container image,
// as a tar archive.
const ImageProgram = "etcd-image"

// Binary is a program to install. Its content depends on the host's
// architecture, so whoever holds the program supplies it.
type Binary struct {
	Program string // "musterd", "musterctl" or ImageProgram
	// Source is the path on the workstation the inventory asks for; empty
	// for the program that came with muster.
	Source string
	Path   string // on the host
	Mode   fs.FileMode
	Owner  string
	Group  string
}

// Link is a symbolic link.
type Link struct {
	Path   string
	Target string // as stored in the link
}

// File is a file with known content.
type File struct {
	Path    string
	Mode    fs.FileMode // permission bits only
	Owner   string
	Group   string
	Content []byte
	// Secret content must not be printed, logged or shown in a diff.
	Secret bool
	// Kept says that what the host has there is as good, and stays.
	Kept bool
}

// Unit is what a host runs its member by: a unit of systemd's or, with a
// Manifest, a static pod of the kubelet's.
type Unit struct {
	Name string // "musterd.service", or "etcd" for the pod
	Path string // of the unit file, which is among Files
	// Manifest is where the kubelet looks for a static pod. The file at Path is
	// copied to it when the member is to run, and the copy is removed when it is
	// not: a kubelet runs whatever is there.
	Manifest string
	// Enabled says that it starts at boot.
	Enabled bool
	// RestartOn lists the files and binaries whose change takes effect only
	// when the unit restarts.
	RestartOn []string
}

// IsPod says that the kubelet runs the member.
func (u Unit) IsPod() bool { return u.Manifest != "" }

// Title is what messages call the unit.
func (u Unit) Title() string {
	if u.IsPod() {
		return "the static pod " + u.Name
	}
	return u.Name
}

// Journal says where the unit's output is to be read on the host.
func (u Unit) Journal() string {
	if u.IsPod() {
		return PodLogs + " and journalctl -u kubelet"
	}
	return "journalctl -u " + u.Name
}

// PodLogs is the pattern of the directories that have the pod's output, one for
// each pod that the kubelet has made of a manifest.
const PodLogs = "/var/log/pods/kube-system_etcd-*/etcd"

// Member is the cluster member a host runs.
type Member struct {
	Name       string
	PeerURL    string // advertised
	ClientURL  string // advertised
	MetricsURL string // /health and /metrics in clear, from the host only
	DataDir    string
}

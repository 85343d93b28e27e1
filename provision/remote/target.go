package remote

import (
	"net"
	"strconv"
)

// Target says where the SSH server of one host is and who to be there. What
// is left empty comes from the user's ssh_config first, and is port 22, user
// root and ssh's usual identity files second.
type Target struct {
	// Name is what messages call the host.
	Name string
	// Address is an IP, a DNS name or an alias from ssh_config.
	Address string
	Port    int
	User    string
	// IdentityFile, when set, is the only private key file offered. Keys of
	// the ssh-agent are offered after it.
	IdentityFile string
	// HostKey pins the host's key by its fingerprint, as ssh-keygen -l
	// prints it ("SHA256:..."). It wins over known_hosts.
	HostKey string
	// Bastion is the machine the connection goes through; nil leaves that to
	// ProxyJump in ssh_config.
	Bastion *Target
}

// hop is one SSH server on the way to a target, fully resolved.
type hop struct {
	name          string
	host          string // to dial
	port          int
	user          string
	identityFiles []string
	identityGiven bool // identityFiles was chosen by the user, not by default
	hostKey       string
	knownHosts    []string
}

func (h hop) address() string { return net.JoinHostPort(h.host, strconv.Itoa(h.port)) }

// title is how messages call the hop: name and address, once when they agree.
func (h hop) title() string {
	if h.name == h.host || h.name == "" {
		return h.address()
	}
	return h.name + " (" + h.address() + ")"
}

// key tells connections apart that can be shared.
func (h hop) key() string { return h.user + "@" + h.address() + " " + h.hostKey }

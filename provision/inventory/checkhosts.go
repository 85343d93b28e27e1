package inventory

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
)

func (d *document) checkHosts(hosts []Host) {
	if d.bad["controllers"] || d.bad[""] {
		return
	}
	if len(hosts) == 0 {
		d.problem("controllers", "there are none", `write one "- ADDRESS" line for each machine`)
		return
	}
	for i, h := range hosts {
		field := element("controllers", i)
		if d.bad[field] {
			continue
		}
		d.checkName(join(field, "name"), h.Name, false)
		d.checkHostAddresses(field, h, len(hosts) > 1)
		d.checkHostSSH(field, h.SSH)
		d.checkServer(join(field, "server"), h.Server)
	}
	d.checkDuplicates(hosts)
	switch n := len(hosts); {
	case n%2 == 0:
		d.warn("controllers", fmt.Sprintf("%d members survive the loss of %d, the same as %d would", n, (n-1)/2, n-1),
			"an odd number is the better use of machines")
	case n > manyVoters:
		d.warn("controllers", fmt.Sprintf("%d members make every write wait for %d of them", n, n/2+1),
			fmt.Sprintf("%d or fewer is the better use of machines", manyVoters))
	}
}

// checkPractice reports hosts that are not on this machine.
func (d *document) checkPractice(hosts []Host) {
	for i, h := range hosts {
		field := join(element("controllers", i), "address")
		if d.given(field) && addressFault(h.Address) == nil && !isLoopback(h.Address) {
			d.problem(field, fmt.Sprintf("%q is not on this machine", h.Address), "write a loopback address, or remove practice: true")
		}
	}
}

func (d *document) checkHostAddresses(field string, h Host, several bool) {
	address := join(field, "address")
	if h.Address == "" && !d.bad[address] {
		d.problem(address, "is missing", "write the IP address or the name of the machine")
	}
	for _, a := range []struct{ field, value string }{
		{address, h.Address},
		{join(field, "internalAddress"), h.InternalAddress},
	} {
		d.checkAddress(a.field, a.value, several)
	}
}

// checkAddress reports an address that is none, or is the machine's own where
// there are several.
func (d *document) checkAddress(field, value string, several bool) {
	if !d.given(field) {
		return
	}
	fault := addressFault(value)
	if fault == nil && several && !d.allowLoopback && isLoopback(value) {
		fault = &addressProblem{"is the machine itself, which other members cannot reach", "write an address that is reachable from every member"}
	}
	if fault != nil {
		d.problem(field, fmt.Sprintf("%q %s", withoutUser(value), fault.text), fault.hint)
	}
}

// checkDuplicates reports names and addresses that two hosts share. Each is
// reported once, at the later host.
func (d *document) checkDuplicates(hosts []Host) {
	names, addresses, internal := map[string]int{}, map[string]int{}, map[string]int{}
	for i, h := range hosts {
		field := element("controllers", i)
		sharing := d.allowLoopback && isLoopback(h.InternalAddress)
		d.checkUnique(names, i, join(field, "name"), h.Name, "name")
		if sharing {
			d.checkSharedPorts(hosts, i)
			continue
		}
		if d.checkUnique(addresses, i, join(field, "address"), h.Address, "address") {
			d.checkUnique(internal, i, join(field, "internalAddress"), h.InternalAddress, "internal address")
		}
	}
}

func (d *document) checkUnique(seen map[string]int, i int, field, value, what string) bool {
	return d.checkUniqueIn("controllers", seen, i, field, value, value, what)
}

// checkUniqueIn reports an element of a list whose key an earlier one has.
func (d *document) checkUniqueIn(list string, seen map[string]int, i int, field, key, value, what string) bool {
	if value == "" || d.bad[field] || d.bad[element(list, i)] {
		return true
	}
	if earlier, found := seen[key]; found {
		d.problem(field, fmt.Sprintf("%q is the %s of %s as well", printable(value), what, element(list, earlier)), "write a different one")
		return false
	}
	seen[key] = i
	return true
}

// checkSharedPorts reports ports of host i that an earlier host on the same
// machine uses.
func (d *document) checkSharedPorts(hosts []Host, i int) {
	for j, earlier := range hosts[:i] {
		if !isLoopback(earlier.InternalAddress) {
			continue
		}
		used := map[int]bool{earlier.Server.ClientPort: true, earlier.Server.PeerPort: true, earlier.Server.MetricsPort: true}
		server := join(element("controllers", i), "server")
		for _, p := range []struct {
			name string
			port int
		}{
			{"clientPort", hosts[i].Server.ClientPort},
			{"peerPort", hosts[i].Server.PeerPort},
			{"metricsPort", hosts[i].Server.MetricsPort},
		} {
			if used[p.port] {
				d.problem(join(server, p.name), fmt.Sprintf("%d is used by controllers[%d] on the same machine", p.port, j), "write a different port")
			}
		}
	}
}

// addressProblem says what is wrong with an address and what to write.
type addressProblem struct{ text, hint string }

// hostName is a DNS name of at least one label; its length is checked apart.
var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

const maxHostName = 253

// addressFault returns what keeps s from being the IP address or DNS name of
// one machine, or nil.
func addressFault(s string) *addressProblem {
	const plain = "write the IP address or the name alone"
	if ip, err := netip.ParseAddr(s); err == nil {
		return ipFault(ip)
	}
	switch {
	case strings.Contains(s, "://"):
		return &addressProblem{"is a URL", plain}
	case strings.Contains(s, "@"):
		return &addressProblem{"carries a user", "write the address alone, and the user as ssh: {user: NAME}"}
	case isPrefix(s):
		return &addressProblem{"is a network", "write the address of one machine, without /"}
	case hasPort(s):
		return &addressProblem{"carries a port", "write the address alone, and the port as ssh: {port: N} or server: {clientPort: N}"}
	case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
		return &addressProblem{"is in brackets", "write the IPv6 address without them"}
	case strings.Count(s, ":") > 1:
		return &addressProblem{"is not an IPv6 address", "write eight groups or ::, and no port: that goes to ssh: {port: N}"}
	case !isASCII(s):
		return &addressProblem{"is not ASCII", "write the IP address, or the name in its xn-- form"}
	case len(s) > maxHostName || !hostName.MatchString(strings.ToLower(s)):
		return &addressProblem{"is neither an IP address nor a DNS name", plain}
	case looksNumeric(s):
		return &addressProblem{"is not an IPv4 address", "write four numbers from 0 to 255, without leading zeros"}
	}
	return nil
}

// withoutUser returns an address fit for a message: what stands before an @
// may be a password.
func withoutUser(address string) string {
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		address = "..." + address[at:]
	}
	return printable(address)
}

func ipFault(ip netip.Addr) *addressProblem {
	const other = "write the address of one machine"
	switch {
	case ip.Zone() != "":
		return &addressProblem{"is only good on one link of one machine", "write an address without %zone"}
	case ip.Is4In6():
		return &addressProblem{"is an IPv4 address written as IPv6", "write " + ip.Unmap().String()}
	case ip.IsUnspecified():
		return &addressProblem{"stands for every address", other}
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return &addressProblem{"stands for a group of machines", other}
	}
	return nil
}

func isPrefix(s string) bool {
	if _, err := netip.ParsePrefix(s); err == nil {
		return true
	}
	return false
}

func hasPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && port != ""
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > '~' })
}

// looksNumeric says that the last label is a number, which no DNS name ends
// in: it is an IPv4 address gone wrong.
func looksNumeric(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	return strings.Trim(last, "0123456789") == ""
}

// isLoopback expects the canonical spelling.
func isLoopback(address string) bool {
	if ip, err := netip.ParseAddr(address); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return address == "localhost" || strings.HasSuffix(address, ".localhost")
}

package inventory

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
)

// fillDefaults completes the cluster. It changes nothing that was given,
// except that addresses get their canonical spelling and paths become
// absolute.
func (d *document) fillDefaults(c *Cluster) {
	fill(&c.Topology, External)
	if c.Topology == Stacked {
		fill(&c.Token, StackedToken)
		fill(&c.Server.DataDir, StackedDataDir)
	}
	fill(&c.Token, "etcd-cluster-"+c.Name)
	if c.Instance != "" {
		fill(&c.Server.DataDir, DefaultDataDir+"-"+c.Instance)
	}
	fill(&c.Server.DataDir, DefaultDataDir)
	fill(&c.Server.ClientPort, DefaultClientPort)
	fill(&c.Server.PeerPort, DefaultPeerPort)
	fill(&c.Server.MetricsPort, DefaultMetricsPort)
	fill(&c.PKI.Dir, c.Name+"-pki")
	fill(&c.PKI.CALifetime, DefaultCALifetime)
	fill(&c.PKI.LeafLifetime, DefaultLeafLifetime)
	fill(&c.PKI.KeyAlgorithm, ECDSAP256)
	c.PKI.Dir = d.expandPath(c.PKI.Dir)
	c.Backup.fillDefaults()
	d.completeSSH(&c.SSH)
	d.completeServer(&c.Server)
	for i := range c.Hosts {
		h := &c.Hosts[i]
		fill(&h.Name, fmt.Sprintf("controller-%d", i))
		h.Address = canonical(h.Address)
		fill(&h.InternalAddress, h.Address)
		h.InternalAddress = canonical(h.InternalAddress)
		d.completeSSH(&h.SSH)
		d.completeServer(&h.Server)
		h.SSH.inherit(c.SSH)
		h.Server.inherit(c.Server)
	}
	d.fillKubernetes(c)
}

func (d *document) completeSSH(s *SSH) {
	for ; s != nil; s = s.Bastion {
		s.Address = canonical(s.Address)
		if s.IdentityFile != "" {
			s.IdentityFile = d.expandPath(s.IdentityFile)
		}
	}
}

func (d *document) completeServer(s *Server) {
	if s.Binary != "" {
		s.Binary = d.expandPath(s.Binary)
	}
}

func (s *SSH) inherit(from SSH) {
	fill(&s.User, from.User)
	fill(&s.Port, from.Port)
	fill(&s.IdentityFile, from.IdentityFile)
	if s.Bastion == nil {
		s.Bastion = from.Bastion.clone()
	}
}

func (s *SSH) clone() *SSH {
	if s == nil {
		return nil
	}
	c := *s
	c.Bastion = s.Bastion.clone()
	return &c
}

func (s *Server) inherit(from Server) {
	fill(&s.DataDir, from.DataDir)
	fill(&s.ClientPort, from.ClientPort)
	fill(&s.PeerPort, from.PeerPort)
	fill(&s.MetricsPort, from.MetricsPort)
	fill(&s.Binary, from.Binary)
	own := s.Flags
	s.Flags = maps.Clone(from.Flags)
	if s.Flags == nil {
		s.Flags = own
		return
	}
	maps.Copy(s.Flags, own)
}

// fill sets a field that was not given.
func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// canonical returns the one spelling of an IP address or DNS name that
// comparisons and URLs need. Anything else is returned as it is.
func canonical(address string) string {
	if ip, err := netip.ParseAddr(address); err == nil {
		return ip.String()
	}
	if lower := strings.ToLower(address); hostName.MatchString(lower) {
		return lower
	}
	return address
}

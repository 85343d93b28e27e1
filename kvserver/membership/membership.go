// Package membership names the members of a cluster: the peer lists of the
// command line, and the 64-bit ids derived from them. It is pure.
//
// The ids are derived exactly as etcd derives them (server/etcdserver/api/
// membership: computeMemberID and genID), so that a member configured with
// the same peer URLs and cluster token has the same id under either server.
package membership

import (
	"crypto/sha1" //nolint:gosec // etcd's id derivation, not a security boundary
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sort"
	"strings"
)

// ErrUnknownName is returned when --name is not among the members of
// --initial-cluster.
var ErrUnknownName = errors.New("member name is not in the initial cluster")

// Peer is one member of an initial cluster.
type Peer struct {
	ID   uint64
	Name string
	// PeerURLs are sorted and hold at least one URL with scheme, host and port.
	PeerURLs []string
}

// Cluster is an initial cluster. Peers are sorted by id.
type Cluster struct {
	ID    uint64
	Token string
	Peers []Peer
}

// ParseInitialCluster reads the value of --initial-cluster, a comma-separated
// list of name=peerURL in which a name may stand several times, and derives
// every id. The token is --initial-cluster-token.
func ParseInitialCluster(text, token string) (Cluster, error) {
	urls := map[string][]string{}
	owner := map[string]string{}
	for _, part := range strings.Split(text, ",") {
		name, raw, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" {
			return Cluster{}, fmt.Errorf("--initial-cluster: %q is not name=peer-url; write for example controller-0=https://10.0.0.10:2380", part)
		}
		peerURL, err := CheckURL(raw)
		if err != nil {
			return Cluster{}, fmt.Errorf("--initial-cluster: member %s: %w", name, err)
		}
		if other, taken := owner[peerURL]; taken {
			return Cluster{}, fmt.Errorf("--initial-cluster: %s stands twice, for %s and %s; every peer URL belongs to one member", peerURL, other, name)
		}
		owner[peerURL] = name
		urls[name] = append(urls[name], peerURL)
	}
	cluster := Cluster{Token: token}
	for name, peerURLs := range urls {
		sort.Strings(peerURLs)
		cluster.Peers = append(cluster.Peers, Peer{ID: MemberID(peerURLs, token), Name: name, PeerURLs: peerURLs})
	}
	slices.SortFunc(cluster.Peers, func(a, b Peer) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	cluster.ID = clusterID(cluster.Peers)
	return cluster, nil
}

// ByName returns the member called name, or ErrUnknownName.
func (c Cluster) ByName(name string) (Peer, error) {
	known := make([]string, 0, len(c.Peers))
	for _, peer := range c.Peers {
		if peer.Name == name {
			return peer, nil
		}
		known = append(known, peer.Name)
	}
	sort.Strings(known)
	return Peer{}, fmt.Errorf("%w: --name is %q, --initial-cluster has %s", ErrUnknownName, name, strings.Join(known, ", "))
}

// CheckURL returns raw as a normalised scheme://host:port, or an error that
// says what is missing.
func CheckURL(raw string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return "", fmt.Errorf("%q is not a URL: %w", raw, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("%q: the scheme must be http or https", raw)
	}
	if _, port, err := net.SplitHostPort(u.Host); err != nil || port == "" {
		return "", fmt.Errorf("%q: host and port are needed, as in https://10.0.0.10:2380", raw)
	}
	if u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("%q: a path is not allowed", raw)
	}
	return u.Scheme + "://" + u.Host, nil
}

// MemberID derives the id of a founding member from its peer URLs and the
// cluster token: the first eight bytes of the SHA-1 of both.
func MemberID(peerURLs []string, token string) uint64 {
	sorted := slices.Sorted(slices.Values(peerURLs))
	sum := sha1.Sum([]byte(strings.Join(sorted, "") + token)) //nolint:gosec // see the import
	return binary.BigEndian.Uint64(sum[:8])
}

// FromSnapshot returns the cluster with the id it has when it is founded from
// a snapshot with this checksum. Members that were started with different
// snapshots, or one of them without, are thus in different clusters and refuse
// each other.
func (c Cluster) FromSnapshot(checksum string) Cluster {
	c.ID = hashID(append(idsOf(c.Peers), checksum...))
	return c
}

func clusterID(sorted []Peer) uint64 { return hashID(idsOf(sorted)) }

func idsOf(sorted []Peer) []byte {
	var ids []byte
	for _, peer := range sorted {
		ids = binary.BigEndian.AppendUint64(ids, peer.ID)
	}
	return ids
}

func hashID(ids []byte) uint64 {
	sum := sha1.Sum(ids) //nolint:gosec // see the import
	return binary.BigEndian.Uint64(sum[:8])
}

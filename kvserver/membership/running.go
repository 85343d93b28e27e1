package membership

import (
	"context"
	"crypto/sha1" //nolint:gosec // etcd's id derivation, not a security boundary
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/pkg/v3/netutil"
	"go.uber.org/zap"
)

var (
	// ErrBadURLs is returned for peer URLs that no member can be reached at.
	ErrBadURLs = errors.New("given member URLs are invalid")
	// ErrNotListed is returned when no member of a running cluster has the
	// peer URLs of the one that wants to join it.
	ErrNotListed = errors.New("not a member of the running cluster")
	// ErrDifferentMembers is returned when --initial-cluster and a running
	// cluster do not have the same members.
	ErrDifferentMembers = errors.New("--initial-cluster differs from the running cluster")
)

// resolveTimeout bounds the resolution of host names when URLs are compared.
const resolveTimeout = 2 * time.Second

// CheckPeerURLs returns the URLs as a member list shows them: those of a
// member that is added sorted, as etcd has them. The error is ErrBadURLs.
func CheckPeerURLs(raw []string) ([]string, error) {
	urls, err := types.NewURLs(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadURLs, err)
	}
	for _, u := range urls {
		if plain := (url.URL{Scheme: u.Scheme, Host: u.Host}); u != plain || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || strings.ContainsAny(u.Host, " ,") {
			return nil, fmt.Errorf("%w: %q is not http or https with a host and a port", ErrBadURLs, u.String())
		}
	}
	return urls.StringSlice(), nil
}

// AddedMemberID derives the id of a member that is added to a running cluster,
// as etcd does: the second makes it another one when the URLs return.
func AddedMemberID(peerURLs []string, now time.Time) uint64 {
	sorted := slices.Sorted(slices.Values(peerURLs))
	text := strings.Join(sorted, "") + strconv.FormatInt(now.Unix(), 10)
	sum := sha1.Sum([]byte(text)) //nolint:gosec // see the import
	return binary.BigEndian.Uint64(sum[:8])
}

// Adopt gives the members of the initial cluster, which name is one of, the
// ids that they have in a running one, by their peer URLs; every member must
// be in both. It returns the member called name, too. The error is
// ErrNotListed, ErrDifferentMembers or ErrUnknownName.
func (c Cluster) Adopt(ctx context.Context, name string, id uint64, running []Peer) (Cluster, Peer, error) {
	self, err := c.ByName(name)
	if err != nil {
		return c, self, err
	}
	adopted := Cluster{ID: id, Token: c.Token}
	unmatched := slices.Clone(c.Peers)
	var strangers []string
	for _, member := range running {
		i := slices.IndexFunc(unmatched, func(p Peer) bool { return sameURLs(ctx, p.PeerURLs, member.PeerURLs) })
		if i < 0 {
			strangers = append(strangers, describe(member))
			continue
		}
		adopted.Peers = append(adopted.Peers, Peer{ID: member.ID, Name: unmatched[i].Name, PeerURLs: member.PeerURLs})
		unmatched = slices.Delete(unmatched, i, i+1)
	}
	missing := make([]string, 0, len(unmatched))
	for _, peer := range unmatched {
		if peer.Name == name {
			return c, self, fmt.Errorf("%w: none has the peer URLs %s", ErrNotListed, strings.Join(self.PeerURLs, ", "))
		}
		missing = append(missing, describe(peer))
	}
	switch {
	case len(strangers) > 0:
		err = fmt.Errorf("%w: it lacks %s; give it every member as `etcdctl member list` shows them", ErrDifferentMembers, strings.Join(strangers, " and "))
	case len(missing) > 0:
		err = fmt.Errorf("%w: no member has the peer URLs of %s; leave out who is no member", ErrDifferentMembers, strings.Join(missing, " and "))
	default:
		self, err = adopted.ByName(name)
	}
	return adopted, self, err
}

func describe(p Peer) string {
	name := p.Name
	if name == "" {
		name = "member " + strconv.FormatUint(p.ID, 16)
	}
	return name + " (" + strings.Join(p.PeerURLs, ", ") + ")"
}

// sameURLs compares as etcd does: by address when the names differ.
func sameURLs(ctx context.Context, a, b []string) bool {
	if len(a) == len(b) && slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	same, err := netutil.URLStringsEqual(ctx, zap.NewNop(), a, b)
	return err == nil && same
}

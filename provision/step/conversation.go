package step

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/member"
	"muster/provision/plan"
)

// tryTimeout bounds one try of several questions, of which one may go to a
// member that does not answer.
const tryTimeout = 3 * callTimeout

// conversation is with the members of the cluster, each through the connection
// of its host. A member that is not in the inventory is reached from any host
// that is.
type conversation struct {
	*Run
	config  *tls.Config
	clients map[string]*clientv3.Client // by client URL
	mu      sync.Mutex
}

// converse begins a conversation with the certificates of the run.
func converse(r *Run) (*conversation, error) {
	config, err := member.TLS(r.Bundle.CA, r.Bundle.HealthcheckClient)
	if err != nil {
		return nil, err
	}
	return &conversation{Run: r, config: config, clients: map[string]*clientv3.Client{}}, nil
}

func (c *conversation) close() {
	for _, client := range c.clients {
		_ = client.Close() // nothing is lost
	}
}

// client is one of the member at a client URL, seen from a host.
func (c *conversation) client(from *Host, url string) (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[url]; client != nil {
		return client, nil
	}
	client, err := member.Connect(url, c.config, from.Remote.DialContext)
	if err != nil {
		return nil, &hostError{from.Name, err}
	}
	c.clients[url] = client
	return client, nil
}

// look asks the member of every host, and returns the views of those that
// answer.
func (c *conversation) look(ctx context.Context, hosts []*Host) (map[string]member.View, error) {
	var mu sync.Mutex
	views := map[string]member.View{}
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if !knock(call, h, h.Want.Member.ClientURL) {
				errs[i] = &hostError{h.Name, fmt.Errorf("%s: nobody listens at %s", h.Name, h.Want.Member.ClientURL)}
				return
			}
			client, err := c.client(h, h.Want.Member.ClientURL)
			if err != nil {
				errs[i] = err
				return
			}
			v, err := member.Look(call, client)
			if err != nil {
				errs[i] = &hostError{h.Name, fmt.Errorf("%s: %w", h.Name, err)}
				return
			}
			mu.Lock()
			views[h.Name] = v
			mu.Unlock()
		})
	}
	wg.Wait()
	return views, errors.Join(errs...)
}

// roster is what the members say together.
type roster struct {
	members plan.Members // empty when nobody could say
	views   map[string]member.View
	leader  uint64
	cluster uint64
}

// id is the member ID on the list of a host's member, 0 when it is not there.
func (r roster) id(h *Host) uint64 {
	l, _ := r.members.Find(h.Want.Member)
	return l.ID
}

// ask puts the roster together. Every host's member is asked, and those on the
// list that are on no host of the inventory too.
func (c *conversation) ask(ctx context.Context, hosts []*Host) roster {
	views, err := c.look(ctx, hosts)
	if err != nil { // who does not answer has no view
		c.Log.Debug("not all members answer", "error", err)
	}
	answer := roster{views: views}
	var from *Host
	for _, h := range hosts {
		v, ok := views[h.Name]
		if !ok || v.Leader == 0 || len(v.Members) == 0 {
			continue
		}
		from, answer.leader, answer.cluster = h, v.Leader, v.ClusterID
		for _, m := range v.Members {
			answer.members = append(answer.members, plan.Listed{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner, Replaced: m.ID == c.replacedID})
		}
		break
	}
	var wg sync.WaitGroup
	for i := range answer.members {
		l := &answer.members[i]
		if at := slices.IndexFunc(c.Hosts, func(h *Host) bool { return slices.Contains(l.PeerURLs, h.Want.Member.PeerURL) || h.Name == l.Name }); at >= 0 {
			v, ok := views[c.Hosts[at].Name]
			l.Alive = ok && v.Leader != 0 && v.MemberID == l.ID
			continue
		}
		wg.Go(func() { l.Alive = c.alive(ctx, from, l.ClientURLs) })
	}
	wg.Wait()
	return answer
}

// alive asks a member that is on no host of the inventory for its status.
func (c *conversation) alive(ctx context.Context, from *Host, urls []string) bool {
	if len(urls) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if !knock(ctx, from, urls[0]) {
		return false
	}
	client, err := c.client(from, urls[0])
	if err != nil {
		return false
	}
	status, err := client.Status(ctx, urls[0])
	return err == nil && status.Leader != 0
}

// knockTimeout bounds the wait for a connection between two hosts.
const knockTimeout = 2 * time.Second

// knock says whether somebody listens at a URL. A client would not tell, but
// try again for as long as it may.
func knock(ctx context.Context, from *Host, text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	conn, err := from.Remote.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was said
	return true
}

// until repeats a try, of tryTimeout at most, until it succeeds or the run's patience ends, in which
// case it returns the last error. A change of the members can be refused during
// an election, or while a member that has just started is not yet counted.
func (c *conversation) until(ctx context.Context, what string, try func(context.Context) error) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(outer, c.ReadyTimeout)
	defer cancel()
	tick := time.NewTicker(verifyPoll)
	defer tick.Stop()
	var last error
	for {
		call, cancel := context.WithTimeout(ctx, tryTimeout)
		err := try(call)
		cancel()
		if ctx.Err() != nil && last != nil {
			err = last // this try was cut off and knows nothing
		}
		last = err
		if err == nil || errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrUserEmpty) {
			return err
		}
		select {
		case <-ctx.Done():
			if outer.Err() != nil {
				return context.Cause(outer)
			}
			if what != "" {
				err = fmt.Errorf("%s: %w", what, err)
			}
			return fmt.Errorf("%w (after %v, --timeout); see muster status", err, c.ReadyTimeout)
		case <-tick.C:
		}
	}
}

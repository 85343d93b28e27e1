package step

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muster/provision/member"
)

const (
	// verifyPoll is the time between two roll calls.
	verifyPoll = 100 * time.Millisecond
	// callTimeout bounds one question to one member.
	callTimeout = 5 * time.Second
	// verifyPrefix is where the key lies that Verify writes, reads and
	// deletes.
	verifyPrefix = "muster/verify/"
)

// Verify calls the roll: every member of the inventory answers through its
// own endpoint, with the client certificate that was made, all agree on the
// cluster, its members and its one leader, and what is written through one
// member is read linearizably from every one.
func Verify(ctx context.Context, r *Run) error {
	config, err := member.TLS(r.Bundle.CA, r.Bundle.HealthcheckClient)
	if err != nil {
		return err
	}
	c := &rollCall{Run: r}
	defer c.close()
	for _, h := range r.Hosts {
		client, err := member.Connect(h.Want.Member.ClientURL, config, h.Remote.DialContext)
		if err != nil {
			return &hostError{h.Name, err}
		}
		c.clients = append(c.clients, client)
	}
	ctx, cancel := context.WithTimeout(ctx, r.ReadyTimeout)
	defer cancel()
	views, err := c.untilVerified(ctx)
	if err != nil {
		return err
	}
	r.Views = views
	return r.forAll(func(h *Host) *Error {
		v := views[h.Name]
		if err := checkIDs(h, v); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		if err := rememberIDs(ctx, h, v.ClusterID, v.MemberID); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

// rollCall asks the members of a run, each through its own client.
type rollCall struct {
	*Run
	clients []*clientv3.Client // in the order of Hosts
}

func (c *rollCall) close() {
	for _, client := range c.clients {
		_ = client.Close() // nothing is lost
	}
}

// untilVerified asks all members until they agree and serve, or the context
// ends. An election in between disturbs both for a moment.
func (c *rollCall) untilVerified(ctx context.Context) (map[string]member.View, error) {
	expected := c.Expected()
	key := verifyPrefix + rand.Text()
	tick := time.NewTicker(verifyPoll)
	defer tick.Stop()
	for {
		views, err := c.lookAtAll(ctx)
		if err == nil {
			err = member.CallRoll(expected, views)
		}
		if err == nil {
			err = c.writeAndRead(ctx, key)
		}
		if err == nil {
			return views, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (after %v); see muster status", err, c.ReadyTimeout)
		case <-tick.C:
		}
	}
}

func (c *rollCall) lookAtAll(ctx context.Context) (map[string]member.View, error) {
	var mu sync.Mutex
	views := map[string]member.View{}
	errs := make([]error, len(c.clients))
	var wg sync.WaitGroup
	for i, h := range c.Hosts {
		wg.Go(func() {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			v, err := member.Look(call, c.clients[i])
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

// writeAndRead proves that the cluster takes a write and that every member
// returns it.
func (c *rollCall) writeAndRead(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	value := rand.Text()
	put, err := c.clients[0].Put(ctx, key, value)
	if err != nil {
		return &hostError{c.Hosts[0].Name, fmt.Errorf("%s: write the key %s: %w", c.Hosts[0].Name, key, err)}
	}
	for i, client := range c.clients {
		name := c.Hosts[i].Name
		got, err := client.Get(ctx, key)
		if err != nil {
			return &hostError{name, fmt.Errorf("%s: read the key %s: %w", name, key, err)}
		}
		if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value || got.Kvs[0].ModRevision != put.Header.Revision {
			return &hostError{name, fmt.Errorf("%s: the key %s, written at revision %d, was not read back: %v", name, key, put.Header.Revision, got.Kvs)}
		}
	}
	if _, err := c.clients[0].Delete(ctx, key); err != nil {
		return &hostError{c.Hosts[0].Name, fmt.Errorf("%s: delete the key %s: %w", c.Hosts[0].Name, key, err)}
	}
	return nil
}

// checkIDs compares the member with what the host remembers of it.
func checkIDs(h *Host, v member.View) error {
	record := h.Facts.Record
	if record.ClusterID != "" && record.ClusterID != fmt.Sprintf("%x", v.ClusterID) {
		return fmt.Errorf("%s: the member is in cluster %x, and this host was in cluster %s: its data directory is another one's; stop it and bring the right one back", h.Name, v.ClusterID, record.ClusterID)
	}
	return nil
}

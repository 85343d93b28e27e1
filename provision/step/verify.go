package step

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

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
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	views, err := c.verify(ctx)
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

// verify asks all members until they agree and serve. An election in between
// disturbs both for a moment.
func (c *conversation) verify(ctx context.Context) (views map[string]member.View, err error) {
	expected := c.Expected()
	key := verifyPrefix + rand.Text()
	err = c.until(ctx, "", func(ctx context.Context) error {
		if views, err = c.look(ctx, c.Hosts); err != nil {
			return err
		}
		if err := member.CallRoll(expected, views); err != nil {
			return err
		}
		return c.writeAndRead(ctx, key)
	})
	return views, err
}

// writeAndRead proves that the cluster takes a write and that every member
// returns it.
func (c *conversation) writeAndRead(ctx context.Context, key string) error {
	first := c.Hosts[0]
	client, err := c.client(first, first.Want.Member.ClientURL)
	if err != nil {
		return err
	}
	value := rand.Text()
	put, err := client.Put(ctx, key, value)
	if err != nil {
		return &hostError{first.Name, fmt.Errorf("%s: write the key %s: %w", first.Name, key, err)}
	}
	for _, h := range c.Hosts {
		name := h.Name
		reader, err := c.client(h, h.Want.Member.ClientURL)
		if err != nil {
			return err
		}
		got, err := reader.Get(ctx, key)
		if err != nil {
			return &hostError{name, fmt.Errorf("%s: read the key %s: %w", name, key, err)}
		}
		if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value || got.Kvs[0].ModRevision != put.Header.Revision {
			return &hostError{name, fmt.Errorf("%s: the key %s, written at revision %d, was not read back: %v", name, key, put.Header.Revision, got.Kvs)}
		}
	}
	if _, err := client.Delete(ctx, key); err != nil {
		return &hostError{first.Name, fmt.Errorf("%s: delete the key %s: %w", first.Name, key, err)}
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

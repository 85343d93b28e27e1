// Package v2tree is the data of etcd's API version 2: a tree of directories and
// files in the Pebble of the member's state machine, and the last thousand
// changes of it.
//
// It is deterministic: a request carries the time by which it was made, and what
// expires is removed by a request of its own. Readers say what time it is.
// Semantics, quirks included, are those of etcd 3.4's store; events and errors
// have etcd's own types. DESIGN.md says how it lies on disk.
package v2tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/v2tree/v2pb"
)

// Prefix begins all keys of the tree.
const Prefix = "s/v2/"

// Keys of the tree. On disk: do not change.
const (
	headKey      = Prefix + "head"   // -> v2pb.Head
	nodePrefix   = Prefix + "node/"  // length of the parent's path: 4 bytes, the path, the name -> v2pb.Node
	expiryPrefix = Prefix + "ttl/"   // time: 8 bytes, path -> nothing
	eventPrefix  = Prefix + "event/" // index: 8 bytes -> v2pb.Event
)

// What is above everything in the tree, as in etcd: its members (empty here), the
// clients' keys, and version 2's users and roles.
const (
	ClusterPrefix = "/0"
	KeysPrefix    = "/1"
	AuthPrefix    = "/2"
)

// firstIndex is the index before the first change: what a new member of etcd
// takes for its own entry, its name and the cluster's version.
const firstIndex = 3

// Tree reads.
type Tree struct {
	r    pebble.Reader
	head *v2pb.Head
}

// Open returns the tree of a store, or of an indexed batch. The reader must not
// change while the tree is used.
func Open(r pebble.Reader) (*Tree, error) {
	t := &Tree{r: r, head: &v2pb.Head{Index: firstIndex}}
	if _, err := t.get([]byte(headKey), t.head); err != nil {
		return nil, err
	}
	for len(t.head.GetCounts()) < int(counters) {
		t.head.Counts = append(t.head.Counts, 0)
	}
	return t, nil
}

// Index is that of the last change.
func (t *Tree) Index() uint64 { return t.head.GetIndex() }

// get reads a message; found is false when there is none.
func (t *Tree) get(key []byte, m proto.Message) (found bool, err error) {
	value, closer, err := t.r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %q: %w", key, err)
	}
	err = proto.Unmarshal(value, m)
	if err = errors.Join(err, closer.Close()); err != nil {
		return false, fmt.Errorf("read %q: %w", key, err)
	}
	return true, nil
}

// fixed tells whether a directory is always there and cannot be changed.
func fixed(path string) bool {
	return path == "/" || path == ClusterPrefix || path == KeysPrefix
}

// childPrefix begins the keys of what is directly in a directory.
func childPrefix(dir string) []byte {
	b := make([]byte, 0, len(nodePrefix)+4+len(dir)+32)
	b = binary.BigEndian.AppendUint32(append(b, nodePrefix...), uint32(len(dir))) //nolint:gosec // a request is far shorter
	return append(b, dir...)
}

func nodeKey(at string) []byte {
	dir, name := path.Split(at)
	return append(childPrefix(path.Clean(dir)), name...)
}

// lookup returns a node, nil when there is none. The path must be clean.
func (t *Tree) lookup(at string) (*v2pb.Node, error) {
	if fixed(at) {
		return &v2pb.Node{Dir: true}, nil
	}
	n := &v2pb.Node{}
	found, err := t.get(nodeKey(at), n)
	if err != nil || !found {
		return nil, err
	}
	return n, nil
}

// find returns the node at a path, or etcd's error about the first part of the
// path that is missing or a file.
func (t *Tree) find(at string) (*v2pb.Node, error) {
	n, err := t.lookup(at)
	if n != nil || err != nil {
		return n, err
	}
	for i := 1; i <= len(at); i++ {
		if i < len(at) && at[i] != '/' {
			continue
		}
		n, err := t.lookup(at[:i])
		switch {
		case err != nil:
			return nil, err
		case n == nil:
			return nil, t.refuse(v2error.EcodeKeyNotFound, at[:i])
		case !n.GetDir():
			return nil, t.refuse(v2error.EcodeNotDir, at[:i])
		}
	}
	return nil, fmt.Errorf("read %q: it was not there, and now all of it is", at)
}

// refuse makes an error for the client.
func (t *Tree) refuse(code int, cause string) *v2error.Error {
	return v2error.NewError(code, cause, t.head.GetIndex())
}

// Get returns the node at a path as etcd's event: a directory with what is in
// it, or with everything below it when recursive. Hidden nodes, whose names
// begin with _, are left out. TTLs are told as of now. Nodes are sorted by key.
// The error is a *v2error.Error or a failure of the store.
func (t *Tree) Get(at string, recursive bool, now time.Time) (*v2store.Event, error) {
	clean := path.Clean(path.Join("/", at))
	n, err := t.find(clean)
	if err != nil {
		return nil, err
	}
	event := &v2store.Event{Action: v2store.Get, Node: external(at, n, now), EtcdIndex: t.Index()}
	if n.GetDir() {
		event.Node.Nodes, err = t.children(clean, recursive, now)
	}
	return event, err
}

func (t *Tree) children(dir string, recursive bool, now time.Time) (v2store.NodeExterns, error) {
	nodes := v2store.NodeExterns{}
	err := t.each(dir, func(at string, n *v2pb.Node) error {
		if strings.HasPrefix(path.Base(at), "_") {
			return nil
		}
		node := external(at, n, now)
		nodes = append(nodes, node)
		if !recursive || !n.GetDir() {
			return nil
		}
		var err error
		node.Nodes, err = t.children(at, true, now)
		return err
	})
	return nodes, err
}

// each calls fn with what is directly in a directory, by name.
func (t *Tree) each(dir string, fn func(at string, n *v2pb.Node) error) error {
	prefix := childPrefix(dir)
	return t.scan(prefix, func(key, value []byte) (bool, error) {
		n := &v2pb.Node{}
		if err := proto.Unmarshal(value, n); err != nil {
			return false, err
		}
		return true, fn(path.Join(dir, "/", string(key[len(prefix):])), n)
	})
}

// scan calls fn with the keys that begin with prefix, in order, until it
// returns false.
func (t *Tree) scan(prefix []byte, fn func(key, value []byte) (bool, error)) error {
	return t.scanFrom(prefix, prefix, fn)
}

func (t *Tree) scanFrom(from, prefix []byte, fn func(key, value []byte) (bool, error)) error {
	it, err := t.r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return fmt.Errorf("read %q: %w", prefix, err)
	}
	more := true
	for valid := it.First(); valid && more && err == nil; valid = it.Next() {
		var value []byte
		if value, err = it.ValueAndErr(); err == nil {
			more, err = fn(it.Key(), value)
		}
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return fmt.Errorf("read %q: %w", prefix, err)
	}
	return nil
}

// prefixEnd is the first key after all that begin with prefix, which has a byte
// below 0xff.
func prefixEnd(prefix []byte) []byte {
	end := append([]byte{}, prefix...)
	for end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	end[len(end)-1]++
	return end
}

// external is a node as clients see it, without what is in it.
func external(at string, n *v2pb.Node, now time.Time) *v2store.NodeExtern {
	e := &v2store.NodeExtern{Key: at, Dir: n.GetDir(), ModifiedIndex: n.GetModified(), CreatedIndex: n.GetCreated()}
	if !n.GetDir() {
		value := string(n.GetValue())
		e.Value = &value
	}
	if n.GetExpires() != 0 {
		at := time.Unix(0, n.GetExpires()).UTC()
		e.Expiration = &at
		left := at.Sub(now)
		e.TTL = int64(left / time.Second)
		if left%time.Second > 0 {
			e.TTL++
		}
	}
	return e
}

func expiryKey(expires int64, at string) []byte {
	// With the sign turned bytewise order is the order of time.
	b := binary.BigEndian.AppendUint64([]byte(expiryPrefix), uint64(expires)^(1<<63)) //nolint:gosec // the bits are wanted
	return append(b, at...)
}

// NextExpiry returns when the first of the nodes expires that do so; ok is false
// when none does.
func (t *Tree) NextExpiry() (at time.Time, ok bool, err error) {
	if t.head.GetExpiring() == 0 {
		return time.Time{}, false, nil
	}
	err = t.eachExpiring(func(expires int64, _ string) (bool, error) {
		at, ok = time.Unix(0, expires), true
		return false, nil
	})
	return at, ok, err
}

// eachExpiring calls fn with the nodes that expire, by time and then path, until
// it returns false.
func (t *Tree) eachExpiring(fn func(expires int64, at string) (bool, error)) error {
	return t.scan([]byte(expiryPrefix), func(key, _ []byte) (bool, error) {
		rest := key[len(expiryPrefix):]
		if len(rest) < 8 {
			return false, fmt.Errorf("%d bytes, want 8 and more", len(rest))
		}
		return fn(int64(binary.BigEndian.Uint64(rest)^(1<<63)), string(rest[8:])) //nolint:gosec // see expiryKey
	})
}

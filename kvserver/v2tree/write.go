package v2tree

import (
	"bytes"
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

// Result is what became of a request: Event or Err, and neither for SYNC.
type Result struct {
	Event *v2store.Event
	Err   *v2error.Error
}

// Change is one change of the tree, for those who watch it.
type Change struct {
	Event *v2store.Event
	// Removed are the paths of all nodes that went with this change, a
	// directory's after those in it.
	Removed []string
}

// Writer carries out requests, each of which sees what the ones before it wrote.
type Writer struct {
	*Tree
	batch   *pebble.Batch
	changes []Change
}

// NewWriter writes to an indexed batch. It must end with Finish before the batch
// is committed.
func NewWriter(batch *pebble.Batch) (*Writer, error) {
	tree, err := Open(batch)
	if err != nil {
		return nil, err
	}
	return &Writer{Tree: tree, batch: batch}, nil
}

// Finish completes the batch and returns what changed, in order.
func (w *Writer) Finish() ([]Change, error) {
	return w.changes, w.put([]byte(headKey), w.head)
}

func (w *Writer) put(key []byte, m proto.Message) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err == nil {
		err = w.batch.Set(key, value, nil)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", key, err)
	}
	return nil
}

// earliestExpiry is 2000-01-01: a node that is made to expire earlier does not
// expire at all.
var earliestExpiry = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).UnixNano()

// maxPathBytes bounds what the directories of a path take, each of which is stored
// under its whole path: a megabyte of slashes would be more than a store can hold.
// etcd has no bound, and runs out of memory.
const maxPathBytes = 16 << 20

// Apply carries out one request. The error is a failure of the store, and the
// batch must not be committed then.
func (w *Writer) Apply(r *v2pb.Request) (Result, error) {
	r = proto.CloneOf(r)
	r.Path = []byte(path.Clean(path.Join("/", string(r.GetPath()))))
	if len(r.GetPath())*bytes.Count(r.GetPath(), []byte("/")) > maxPathBytes {
		return Result{Err: w.refuse(v2error.EcodeInvalidForm, "the path has too many parts")}, nil
	}
	var event *v2store.Event
	var err error
	switch r.GetMethod() {
	case v2pb.Request_PUT:
		event, err = w.update(r)
	case v2pb.Request_POST:
		event, err = w.create(r, true)
	case v2pb.Request_DELETE:
		event, err = w.remove(r)
	case v2pb.Request_SYNC:
		err = w.expire(r.GetTime())
	default:
		err = w.refuse(v2error.EcodeInvalidForm, "unknown method")
	}
	var refused *v2error.Error
	if errors.As(err, &refused) {
		return Result{Err: refused}, nil
	}
	return Result{Event: event}, err
}

// update is PUT, which is one of several operations.
func (w *Writer) update(r *v2pb.Request) (*v2store.Event, error) {
	compares := r.GetPrevIndex() > 0 || len(r.GetPrevValue()) > 0
	switch {
	case r.PrevExist != nil && !r.GetPrevExist():
		return w.create(r, false)
	case compares:
		return w.compareAndSwap(r)
	case r.PrevExist != nil:
		return w.change(r)
	default:
		return w.set(r)
	}
}

func (w *Writer) remove(r *v2pb.Request) (*v2store.Event, error) {
	if r.GetPrevIndex() > 0 || len(r.GetPrevValue()) > 0 {
		return w.compareAndDelete(r)
	}
	return w.delete(r)
}

// create makes a node that must not exist; inOrder, below the path, under a name
// that is larger than those before.
func (w *Writer) create(r *v2pb.Request, inOrder bool) (*v2store.Event, error) {
	at := string(r.GetPath())
	if inOrder {
		at = path.Join(at, fmt.Sprintf("%020d", w.Index()+1))
	}
	e, err := w.write(r, at, v2store.Create, r.GetValue(), false)
	w.count(CreateSuccess, err)
	return w.commit(e, nil, err)
}

// set makes a node or replaces a file.
func (w *Writer) set(r *v2pb.Request) (*v2store.Event, error) {
	at := string(r.GetPath())
	value := r.GetValue()
	old, err := w.find(at)
	var refused *v2error.Error
	if err != nil && (!errors.As(err, &refused) || refused.ErrorCode != v2error.EcodeKeyNotFound || r.GetRefresh()) {
		w.count(SetSuccess, err)
		return nil, err
	}
	if r.GetRefresh() {
		value = old.GetValue()
	}
	e, err := w.write(r, at, v2store.Set, value, true)
	w.count(SetSuccess, err)
	return w.commit(e, nil, err)
}

// write makes a node and the directories above it. It returns the event, which
// is not committed yet.
func (w *Writer) write(r *v2pb.Request, at, action string, value []byte, replace bool) (*v2pb.Event, error) {
	if fixed(at) {
		return nil, w.refuse(v2error.EcodeRootROnly, "/")
	}
	next := w.Index() + 1
	if err := w.makeParents(path.Dir(at), next); err != nil {
		return nil, err
	}
	old, err := w.lookup(at)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if !replace {
			return nil, w.refuse(v2error.EcodeNodeExist, at)
		}
		if old.GetDir() {
			return nil, w.refuse(v2error.EcodeNotFile, at)
		}
	}
	n := &v2pb.Node{Dir: r.GetDir(), Created: next, Modified: next}
	if !r.GetDir() {
		n.Value = value
	}
	if r.GetExpires() >= earliestExpiry {
		n.Expires = r.GetExpires()
	}
	if err := w.store(at, old, n); err != nil {
		return nil, err
	}
	return &v2pb.Event{Action: action, Path: []byte(at), Node: n, Previous: old, Refresh: r.GetRefresh() && action == v2store.Set, Time: r.GetTime()}, nil
}

// makeParents makes the directories of a path that are missing. None is made
// when one of them is a file: what is below a missing one is missing, too.
func (w *Writer) makeParents(dir string, index uint64) error {
	for i := 1; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		at := dir[:i]
		n, err := w.lookup(at)
		switch {
		case err != nil:
			return err
		case n == nil:
			if err := w.store(at, nil, &v2pb.Node{Dir: true, Created: index, Modified: index}); err != nil {
				return err
			}
		case !n.GetDir():
			w.head.Counts[SetFail]++ // as etcd counts it, beside the operation's own
			return w.refuse(v2error.EcodeNotDir, at)
		}
	}
	return nil
}

// change is an update of what exists: of a file or of a directory's TTL.
func (w *Writer) change(r *v2pb.Request) (*v2store.Event, error) {
	at := string(r.GetPath())
	if fixed(at) {
		w.count(UpdateSuccess, nil)
		return nil, w.refuse(v2error.EcodeRootROnly, "/")
	}
	old, err := w.find(at)
	if err != nil {
		w.count(UpdateSuccess, err)
		return nil, err
	}
	w.count(UpdateSuccess, nil)
	if old.GetDir() && len(r.GetValue()) > 0 {
		return nil, w.refuse(v2error.EcodeNotFile, at)
	}
	return w.rewrite(r, at, v2store.Update, old)
}

func (w *Writer) compareAndSwap(r *v2pb.Request) (*v2store.Event, error) {
	at := string(r.GetPath())
	if fixed(at) {
		w.count(CompareAndSwapSuccess, nil)
		return nil, w.refuse(v2error.EcodeRootROnly, "/")
	}
	old, err := w.comparable(r, at)
	w.count(CompareAndSwapSuccess, err)
	if err != nil {
		return nil, err
	}
	return w.rewrite(r, at, v2store.CompareAndSwap, old)
}

// rewrite gives a node that exists a value, unless it is a directory, and a time
// to expire. A directory keeps the index of its last change, as in etcd.
func (w *Writer) rewrite(r *v2pb.Request, at, action string, old *v2pb.Node) (*v2store.Event, error) {
	n := proto.CloneOf(old)
	n.Expires = r.GetExpires()
	if !n.GetDir() {
		n.Modified = w.Index() + 1
		if !r.GetRefresh() {
			n.Value = r.GetValue()
		}
	}
	if err := w.store(at, old, n); err != nil {
		return nil, err
	}
	shown := proto.CloneOf(n)
	shown.Modified = w.Index() + 1
	return w.commit(&v2pb.Event{Action: action, Path: []byte(at), Node: shown, Previous: old, Refresh: r.GetRefresh(), Time: r.GetTime()}, nil, nil)
}

// comparable returns the file at a path if it is what the request expects.
func (w *Writer) comparable(r *v2pb.Request, at string) (*v2pb.Node, error) {
	n, err := w.find(at)
	if err != nil {
		return nil, err
	}
	if n.GetDir() {
		return nil, w.refuse(v2error.EcodeNotFile, at)
	}
	value, index := string(r.GetPrevValue()), r.GetPrevIndex()
	values := fmt.Sprintf("[%s != %s]", value, n.GetValue())
	indexes := fmt.Sprintf("[%d != %d]", index, n.GetModified())
	sameValue := value == "" || value == string(n.GetValue())
	sameIndex := index == 0 || index == n.GetModified()
	switch {
	case sameValue && sameIndex:
		return n, nil
	case sameValue:
		return nil, w.refuse(v2error.EcodeTestFailed, indexes)
	case sameIndex:
		return nil, w.refuse(v2error.EcodeTestFailed, values)
	default:
		return nil, w.refuse(v2error.EcodeTestFailed, values+" "+indexes)
	}
}

func (w *Writer) compareAndDelete(r *v2pb.Request) (*v2store.Event, error) {
	at := string(r.GetPath())
	old, err := w.comparable(r, at)
	var refused *v2error.Error
	if errors.As(err, &refused) && (refused.ErrorCode == v2error.EcodeNotFile || refused.ErrorCode == v2error.EcodeTestFailed) {
		w.count(CompareAndDeleteSuccess, nil) // as etcd counts it
		return nil, err
	}
	w.count(CompareAndDeleteSuccess, err)
	if err != nil {
		return nil, err
	}
	removed, err := w.drop(at, old)
	return w.commit(gone(v2store.CompareAndDelete, at, old, r.GetTime(), w.Index()+1), removed, err)
}

func (w *Writer) delete(r *v2pb.Request) (*v2store.Event, error) {
	at := string(r.GetPath())
	if fixed(at) {
		w.count(DeleteSuccess, nil)
		return nil, w.refuse(v2error.EcodeRootROnly, "/")
	}
	old, err := w.deletable(r, at)
	w.count(DeleteSuccess, err)
	if err != nil {
		return nil, err
	}
	removed, err := w.drop(at, old)
	return w.commit(gone(v2store.Delete, at, old, r.GetTime(), w.Index()+1), removed, err)
}

// deletable returns the node at a path if the request may remove it.
func (w *Writer) deletable(r *v2pb.Request, at string) (*v2pb.Node, error) {
	n, err := w.find(at)
	if err != nil || !n.GetDir() || r.GetRecursive() {
		return n, err
	}
	if !r.GetDir() {
		return nil, w.refuse(v2error.EcodeNotFile, at)
	}
	err = w.scan(childPrefix(at), func(_, _ []byte) (bool, error) {
		return false, w.refuse(v2error.EcodeDirNotEmpty, at)
	})
	return n, err
}

// gone is the event of a removal.
func gone(action, at string, old *v2pb.Node, now int64, index uint64) *v2pb.Event {
	n := &v2pb.Node{Dir: old.GetDir() && action != v2store.CompareAndDelete, Created: old.GetCreated(), Modified: index}
	return &v2pb.Event{Action: action, Path: []byte(at), Node: n, Previous: old, Time: now}
}

// expire removes what expires at a time or before, in the order of time and then
// of path.
func (w *Writer) expire(now int64) error {
	type due struct {
		expires int64
		at      string
	}
	var all []due
	err := w.eachExpiring(func(expires int64, at string) (bool, error) {
		if expires <= now {
			all = append(all, due{expires, at})
		}
		return expires <= now, nil
	})
	if err != nil {
		return err
	}
	for _, d := range all {
		n, err := w.lookup(d.at)
		if err != nil {
			return err
		}
		if n == nil {
			continue // went with its directory
		}
		removed, err := w.drop(d.at, n)
		w.count(ExpireCount, nil)
		if _, err := w.commit(gone(v2store.Expire, d.at, n, now, w.Index()+1), removed, err); err != nil {
			return err
		}
	}
	return nil
}

// store writes a node in place of old, which is nil when there is none.
func (w *Writer) store(at string, old, n *v2pb.Node) error {
	if err := w.expiry(at, old.GetExpires(), n.GetExpires()); err != nil {
		return err
	}
	return w.put(nodeKey(at), n)
}

// drop removes a node with all below it, and returns the paths.
func (w *Writer) drop(at string, n *v2pb.Node) (removed []string, err error) {
	if n.GetDir() {
		type child struct {
			at   string
			node *v2pb.Node
		}
		var children []child
		err := w.each(at, func(at string, n *v2pb.Node) error {
			children = append(children, child{at, n})
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, c := range children {
			below, err := w.drop(c.at, c.node)
			if err != nil {
				return nil, err
			}
			removed = append(removed, below...)
		}
	}
	if err := w.expiry(at, n.GetExpires(), 0); err != nil {
		return nil, err
	}
	if err := w.batch.Delete(nodeKey(at), nil); err != nil {
		return nil, fmt.Errorf("remove %q: %w", at, err)
	}
	return append(removed, at), nil
}

// expiry moves a node in the order in which nodes expire; 0 is not in it.
func (w *Writer) expiry(at string, before, after int64) error {
	if before == after {
		return nil
	}
	if before != 0 {
		if err := w.batch.Delete(expiryKey(before, at), nil); err != nil {
			return fmt.Errorf("write when %q expires: %w", at, err)
		}
		w.head.Expiring--
	}
	if after != 0 {
		if err := w.batch.Set(expiryKey(after, at), nil, nil); err != nil {
			return fmt.Errorf("write when %q expires: %w", at, err)
		}
		w.head.Expiring++
	}
	return nil
}

// commit takes an event into the history, unless there is an error.
func (w *Writer) commit(e *v2pb.Event, removed []string, err error) (*v2store.Event, error) {
	if err != nil {
		return nil, err
	}
	w.head.Index++
	if err := w.put(eventKey(w.Index()), e); err != nil {
		return nil, err
	}
	if w.Index() > historySize {
		if err := w.batch.Delete(eventKey(w.Index()-historySize), nil); err != nil {
			return nil, fmt.Errorf("remove an old change: %w", err)
		}
	}
	event := externalEvent(e)
	event.EtcdIndex = w.Index()
	w.changes = append(w.changes, Change{Event: event, Removed: removed})
	return event, nil
}

// Hidden tells whether a change at a path is hidden from those who watch
// another one above it.
func Hidden(watched, changed string) bool {
	if len(watched) > len(changed) {
		return false
	}
	return strings.Contains(path.Clean("/"+changed[len(watched):]), "/_")
}

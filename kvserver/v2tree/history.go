package v2tree

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/v2tree/v2pb"
)

// historySize is how many changes are kept; etcd's number.
const historySize = 1000

func eventKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(eventPrefix), index)
}

// firstEvent is the index of the oldest change that is kept. Those up to
// firstIndex count as if they were.
func (t *Tree) firstEvent() uint64 {
	if t.Index() <= historySize {
		return 1
	}
	return t.Index() - historySize + 1
}

// Find returns the first change since an index, that one included, which a
// watcher of the path is to be told; nil when there is none yet. The error is a
// *v2error.Error when the index is older than the history, or a failure of the
// store.
func (t *Tree) Find(at string, recursive bool, since uint64) (found *v2store.Event, err error) {
	if since < t.firstEvent() {
		return nil, t.refuse(v2error.EcodeEventIndexCleared,
			fmt.Sprintf("the requested history has been cleared [%d/%d]", t.firstEvent(), since))
	}
	err = t.scanFrom(eventKey(since), []byte(eventPrefix), func(_, value []byte) (bool, error) {
		e := &v2pb.Event{}
		if err := proto.Unmarshal(value, e); err != nil {
			return false, err
		}
		if e.GetRefresh() || !concerns(e, at, recursive) {
			return true, nil
		}
		found = externalEvent(e)
		found.EtcdIndex = t.Index()
		return false, nil
	})
	return found, err
}

// concerns tells whether a change of the past is one for a watcher. That it may
// be hidden, and that a directory's removal is told to watchers whose path only
// begins like its own, is as in etcd.
func concerns(e *v2pb.Event, watched string, recursive bool) bool {
	changed := string(e.GetPath())
	switch {
	case changed == watched:
		return true
	case recursive && strings.HasPrefix(changed, strings.TrimSuffix(path.Clean(watched), "/")+"/"):
		return true
	default:
		gone := e.GetAction() == v2store.Delete || e.GetAction() == v2store.Expire
		return gone && e.GetPrevious().GetDir() && strings.HasPrefix(watched, changed)
	}
}

func externalEvent(e *v2pb.Event) *v2store.Event {
	at, now := string(e.GetPath()), time.Unix(0, e.GetTime())
	event := &v2store.Event{Action: e.GetAction(), EtcdIndex: e.GetNode().GetModified(), Refresh: e.GetRefresh()}
	event.Node = external(at, e.GetNode(), now)
	if e.GetPrevious() != nil {
		event.PrevNode = external(at, e.GetPrevious(), now)
	}
	switch e.GetAction() {
	case v2store.Delete, v2store.CompareAndDelete, v2store.Expire:
		event.Node.Value = nil
	}
	return event
}

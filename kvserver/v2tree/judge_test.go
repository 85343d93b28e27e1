package v2tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"

	"muster/kvserver/v2tree/v2pb"
)

// TestLikeEtcd makes random requests of the tree and of etcd's own store, and
// compares what both say, list, have counted and tell watchers of the past.
// Updates of directories are left out: the store of this etcd refuses them, that
// of etcd 3.4 did not.
func TestLikeEtcd(t *testing.T) {
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			compareWithEtcd(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func compareWithEtcd(t *testing.T, r *rand.Rand) {
	db := openDB(t)
	judge := v2store.New(ClusterPrefix, KeysPrefix)
	for i := range firstIndex {
		if _, err := judge.Set(fmt.Sprintf("%s/%d", ClusterPrefix, i), false, "", v2store.TTLOptionSet{}); err != nil {
			t.Fatal(err)
		}
	}
	g := &generator{Rand: r, now: time.Now()}
	for i := range 6000 {
		request := g.request(judge.Index())
		at := string(request.GetPath())
		if e, err := judge.Get(at, false, false); request.GetPrevExist() && err == nil && e.Node.Dir && at != KeysPrefix {
			continue
		}
		want := describe(askEtcd(judge, request))
		got := apply(t, db, request)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("request %d: %v: (-etcd +muster)\n%s", i, request, diff)
		}
		if r.IntN(4) > 0 {
			continue
		}
		tree, err := Open(db)
		if err != nil {
			t.Fatal(err)
		}
		at = g.path()
		recursive := r.IntN(2) == 0
		e, judgeErr := judge.Get(at, recursive, true)
		mine, err := tree.Get(at, recursive, g.now)
		if diff := cmp.Diff(describe(e, judgeErr), describe(mine, err)); diff != "" {
			t.Fatalf("after request %d: get %s: (-etcd +muster)\n%s", i, at, diff)
		}
		since := 1 + r.Uint64N(judge.Index()+2)
		if r.IntN(4) > 0 {
			since = max(1, judge.Index()-min(judge.Index(), r.Uint64N(20)))
		}
		mine, err = tree.Find(at, recursive, since)
		if diff := cmp.Diff(watchEtcd(judge, at, recursive, since), describe(mine, err)); diff != "" {
			t.Fatalf("after request %d: watch %s since %d: (-etcd +muster)\n%s", i, at, since, diff)
		}
	}
	var counted v2store.Stats
	if err := json.Unmarshal(judge.JsonStats(), &counted); err != nil {
		t.Fatal(err)
	}
	tree, err := Open(db)
	if err != nil {
		t.Fatal(err)
	}
	counted.GetSuccess, counted.GetFail, counted.Watchers = 0, 0, 0
	counted.SetSuccess -= firstIndex
	if diff := cmp.Diff(counted, tree.Stats()); diff != "" {
		t.Errorf("counted: (-etcd +muster)\n%s", diff)
	}
}

func openDB(t *testing.T) *pebble.DB {
	t.Helper()
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

type quiet struct{}

func (quiet) Infof(string, ...any)      {}
func (quiet) Errorf(string, ...any)     {}
func (quiet) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// run carries out requests in one batch.
func run(t *testing.T, db *pebble.DB, requests ...*v2pb.Request) ([]Result, []Change) {
	t.Helper()
	batch := db.NewIndexedBatch()
	w, err := NewWriter(batch)
	if err != nil {
		t.Fatal(err)
	}
	var results []Result
	for _, request := range requests {
		result, err := w.Apply(request)
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, result)
	}
	changes, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	return results, changes
}

func apply(t *testing.T, db *pebble.DB, request *v2pb.Request) string {
	t.Helper()
	results, _ := run(t, db, request)
	if results[0].Err != nil {
		return describe(nil, results[0].Err)
	}
	return describe(results[0].Event, nil)
}

// askEtcd does what etcd's server does with a request.
func askEtcd(s v2store.Store, r *v2pb.Request) (*v2store.Event, error) {
	at, value, prev := string(r.GetPath()), string(r.GetValue()), string(r.GetPrevValue())
	options := v2store.TTLOptionSet{Refresh: r.GetRefresh()}
	if r.GetExpires() != 0 {
		options.ExpireTime = time.Unix(0, r.GetExpires())
	}
	compares := r.GetPrevIndex() > 0 || prev != ""
	switch {
	case r.GetMethod() == v2pb.Request_SYNC:
		s.DeleteExpiredKeys(time.Unix(0, r.GetTime()))
		return nil, nil
	case r.GetMethod() == v2pb.Request_POST:
		return s.Create(at, r.GetDir(), value, true, options)
	case r.GetMethod() == v2pb.Request_DELETE && compares:
		return s.CompareAndDelete(at, prev, r.GetPrevIndex())
	case r.GetMethod() == v2pb.Request_DELETE:
		return s.Delete(at, r.GetDir(), r.GetRecursive())
	case r.PrevExist != nil && !r.GetPrevExist():
		return s.Create(at, r.GetDir(), value, false, options)
	case compares:
		return s.CompareAndSwap(at, prev, r.GetPrevIndex(), value, options)
	case r.PrevExist != nil:
		return s.Update(at, value, options)
	default:
		return s.Set(at, r.GetDir(), value, options)
	}
}

// watchEtcd returns what a watcher is told of the past.
func watchEtcd(s v2store.Store, at string, recursive bool, since uint64) string {
	w, err := s.Watch(at, recursive, false, since)
	if err != nil {
		return describe(nil, err)
	}
	defer w.Remove()
	select {
	case e := <-w.EventChan():
		return describe(e, nil)
	default:
		return describe(nil, nil)
	}
}

// describe writes an answer without TTLs, which the store tells by the wall
// clock.
func describe(e *v2store.Event, err error) string {
	var refused *v2error.Error
	switch {
	case errors.As(err, &refused):
		return fmt.Sprintf("%+v", *refused)
	case err != nil:
		return err.Error()
	case e == nil:
		return "nothing"
	}
	e = e.Clone()
	for _, n := range []*v2store.NodeExtern{e.Node, e.PrevNode} {
		forgetTTL(n)
	}
	text, err := json.MarshalIndent(e, "", " ")
	return fmt.Sprintf("at %d, created %v: %s %v", e.EtcdIndex, e.IsCreated(), text, err)
}

func forgetTTL(n *v2store.NodeExtern) {
	if n == nil {
		return
	}
	n.TTL = 0
	for _, child := range n.Nodes {
		forgetTTL(child)
	}
}

// generator makes requests on a few paths that are files and directories by
// turns.
type generator struct {
	*rand.Rand
	now     time.Time
	expires int64
}

func (g *generator) path() string {
	names := []string{"a", "ab", "b", "_h", "c d"}
	at := KeysPrefix
	for range 1 + g.IntN(3) {
		at = path.Join(at, names[g.IntN(len(names))])
	}
	if g.IntN(40) == 0 {
		return KeysPrefix
	}
	return at
}

func (g *generator) value() string { return []string{"", "x", "y", "long value"}[g.IntN(4)] }

func (g *generator) request(index uint64) *v2pb.Request {
	g.now = g.now.Add(time.Second)
	r := &v2pb.Request{Method: v2pb.Request_PUT, Path: []byte(g.path()), Value: []byte(g.value()), Time: g.now.UnixNano()}
	switch n := g.IntN(40); {
	case n == 0:
		r.Method = v2pb.Request_SYNC
		return r
	case n < 5:
		r.Method = v2pb.Request_POST
	case n < 16:
		r.Method = v2pb.Request_DELETE
		r.Recursive = g.IntN(3) == 0
	}
	r.Dir = g.IntN(4) == 0
	if g.IntN(5) == 0 {
		// No two at the same moment: etcd removes those in no order.
		g.expires++
		r.Expires = g.now.Add(time.Duration(g.IntN(60))*time.Second).UnixNano()/1e6*1e6 + g.expires
	}
	if g.IntN(30) == 0 {
		r.Expires = time.Date(1999, 1, 1, 0, 0, 0, int(g.expires), time.UTC).UnixNano()
	}
	if g.IntN(6) == 0 {
		r.PrevValue = []byte(g.value())
	}
	if g.IntN(6) == 0 {
		r.PrevIndex = index - min(index-1, g.Uint64N(10))
	}
	if g.IntN(3) == 0 {
		exists := g.IntN(2) == 0
		r.PrevExist = &exists
	}
	r.Refresh = g.IntN(8) == 0
	return r
}

// TestRemoved compares which paths go with a change with what was there.
func TestRemoved(t *testing.T) {
	db := openDB(t)
	put := func(at string) *v2pb.Request { return &v2pb.Request{Method: v2pb.Request_PUT, Path: []byte(at)} }
	run(t, db, put("/1/d/b/x"), put("/1/d/a"), put("/1/d/b/_h"), put("/1/dd"))
	_, changes := run(t, db, &v2pb.Request{Method: v2pb.Request_DELETE, Path: []byte("/1/d"), Recursive: true})
	want := "/1/d/a /1/d/b/_h /1/d/b/x /1/d/b /1/d"
	if len(changes) != 1 || strings.Join(changes[0].Removed, " ") != want {
		t.Errorf("removed %v, want %s", changes, want)
	}
}

// TestExpireInOrder: what expires at once is removed in the order of the paths,
// so that members agree on the indexes.
func TestExpireInOrder(t *testing.T) {
	db := openDB(t)
	at := time.Unix(2_000_000_000, 0)
	var requests []*v2pb.Request
	for _, name := range []string{"c", "a", "b"} {
		requests = append(requests, &v2pb.Request{Method: v2pb.Request_PUT, Path: []byte("/1/" + name), Expires: at.UnixNano(), Time: at.Add(-time.Minute).UnixNano()})
	}
	results, _ := run(t, db, requests...)
	if ttl := results[0].Event.Node.TTL; ttl != 60 {
		t.Errorf("TTL %d, want 60", ttl)
	}
	tree, err := Open(db)
	if err != nil {
		t.Fatal(err)
	}
	if next, ok, err := tree.NextExpiry(); err != nil || !ok || !next.Equal(at) {
		t.Errorf("next expiry %v, %v, %v; want %v", next, ok, err, at)
	}
	_, changes := run(t, db, &v2pb.Request{Method: v2pb.Request_SYNC, Time: at.UnixNano()})
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprint(c.Event.Action, c.Event.Node.Key, c.Event.EtcdIndex))
	}
	if want := []string{"expire/1/a7", "expire/1/b8", "expire/1/c9"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if tree, err = Open(db); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := tree.NextExpiry(); err != nil || ok {
		t.Errorf("something is still to expire: %v, %v", ok, err)
	}
}

// TestAnyBytes: paths and values need not be text.
func TestAnyBytes(t *testing.T) {
	db := openDB(t)
	at, value := "/1/\xff\x00\x01/\x00", "\xfe\x00"
	run(t, db, &v2pb.Request{Method: v2pb.Request_PUT, Path: []byte(at), Value: []byte(value)}, &v2pb.Request{Method: v2pb.Request_PUT, Path: []byte("/1/\xff\x00")})
	tree, err := Open(db)
	if err != nil {
		t.Fatal(err)
	}
	e, err := tree.Get("/1", true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Node.Nodes) != 2 || e.Node.Nodes[1].Nodes[0].Key != at || *e.Node.Nodes[1].Nodes[0].Value != value {
		t.Errorf("got %+v", e.Node.Nodes)
	}
}

// TestLongPath: a path of a million bytes is a key like another one, but not one
// of as many directories.
func TestLongPath(t *testing.T) {
	db := openDB(t)
	long, deep := "/1/"+strings.Repeat("x", 1<<20), "/1"+strings.Repeat("/x", 1<<19)
	results, _ := run(t, db,
		&v2pb.Request{Method: v2pb.Request_PUT, Path: []byte(long)},
		&v2pb.Request{Method: v2pb.Request_PUT, Path: []byte(deep)},
		&v2pb.Request{Method: v2pb.Request_PUT, Path: []byte("/1" + strings.Repeat("/x", 2000))},
	)
	if results[0].Err != nil || results[2].Err != nil {
		t.Errorf("refused: %v, %v", results[0].Err, results[2].Err)
	}
	if err := results[1].Err; err == nil || err.ErrorCode != v2error.EcodeInvalidForm {
		t.Errorf("half a million directories: %v", err)
	}
	tree, err := Open(db)
	if err != nil {
		t.Fatal(err)
	}
	// One that is read costs no more than it is long.
	var refused *v2error.Error
	if _, err := tree.Get(deep, false, time.Now()); !errors.As(err, &refused) {
		t.Errorf("read: %v", err)
	}
}

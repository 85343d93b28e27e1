package etcdsnap_test

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

var (
	ops  = flag.Int("etcdsnap.ops", 1500, "requests before a snapshot")
	seed = flag.Uint64("etcdsnap.seed", 0, "seed of the random history; 0 picks one")
)

// generator makes random requests on few keys, so that they meet.
type generator struct {
	*rand.Rand
	revision, compacted int64
}

func newGenerator(t testing.TB) *generator {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("replay with -etcdsnap.seed=%d -etcdsnap.ops=%d", s, *ops)
	return &generator{Rand: rand.New(rand.NewPCG(s, 9))}
}

func (g *generator) key() []byte {
	alphabet := []byte{0x00, 0x01, 'a', 'b', 0xff}
	key := make([]byte, 1+g.IntN(3))
	for i := range key {
		key[i] = alphabet[g.IntN(len(alphabet))]
	}
	return key
}

// leaseTTL is so long that no lease expires during a test.
const leaseTTL = 1_000_000

func (g *generator) request() *pb.InternalRaftRequest {
	switch n := g.IntN(100); {
	case n < 55:
		return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: g.key(), Value: g.key(), Lease: g.lease()}}
	case n < 70:
		r := &pb.DeleteRangeRequest{Key: g.key()}
		if g.IntN(3) == 0 {
			r.RangeEnd = g.key()
		}
		return &pb.InternalRaftRequest{DeleteRange: r}
	case n < 85:
		r := &pb.TxnRequest{}
		for i := range 1 + g.IntN(4) {
			put := &pb.PutRequest{Key: append([]byte{byte('0' + i)}, g.key()...), Value: g.key()}
			r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		remove := &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("b")}
		r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: remove}})
		return &pb.InternalRaftRequest{Txn: r}
	case n < 91:
		return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 1 + g.Int64N(9), TTL: leaseTTL + g.Int64N(9)}}
	case n < 95:
		return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 1 + g.Int64N(9)}}
	default:
		return &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: max(g.revision-g.Int64N(40), 0)}}
	}
}

func (g *generator) lease() int64 {
	if g.IntN(2) == 0 {
		return 0
	}
	return 1 + g.Int64N(9)
}

// revisions are those worth comparing: the compacted one, the current one and
// some on either side and in between.
func (g *generator) revisions() []int64 {
	list := []int64{0, g.compacted - 1, g.compacted, g.compacted + 1, g.revision - 1, g.revision, g.revision + 1}
	for range 10 {
		list = append(list, max(g.compacted, 0)+g.Int64N(g.revision-max(g.compacted, 0)+1))
	}
	return slices.DeleteFunc(list, func(rev int64) bool { return rev < 0 })
}

// finish makes users and roles, with auth enabled, and raises an alarm.
func finish(t testing.TB) []*pb.InternalRaftRequest {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	hashed := base64.StdEncoding.EncodeToString(hash)
	return []*pb.InternalRaftRequest{
		{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "root"}},
		{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "reader"}},
		{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "reader", Perm: &authpb.Permission{
			PermType: authpb.Permission_READ, Key: []byte("a"), RangeEnd: []byte("b"),
		}}},
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root", HashedPassword: hashed, Options: &authpb.UserAddOptions{}}},
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "somebody", Options: &authpb.UserAddOptions{NoPassword: true}}},
		{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "somebody", Role: "reader"}},
		{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 11, Alarm: pb.AlarmType_NOSPACE}},
		{AuthEnable: &pb.AuthEnableRequest{}},
	}
}

// lift takes back what would refuse the requests after finish.
func lift() []*pb.InternalRaftRequest {
	return []*pb.InternalRaftRequest{
		{AuthDisable: &pb.AuthDisableRequest{}},
		{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 11, Alarm: pb.AlarmType_NOSPACE}},
	}
}

// log applies requests to a machine, each in an entry of its own.
type log struct {
	m     *machine.Machine
	index uint64
}

func (l *log) apply(t testing.TB, r *pb.InternalRaftRequest) error {
	t.Helper()
	l.index++
	r.Header = &pb.RequestHeader{ID: l.index, Username: "root", AuthRevision: l.m.Auth().Revision()}
	encoded, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	outcomes, err := l.m.Apply([]machine.Entry{{Index: l.index, Term: 2, Payload: machine.EncodeBatch(1, [][]byte{encoded})}}, func(uint64) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return outcomes[0].Err
}

// TestBothWays makes the same random history in etcd and in a machine, and
// then takes it through the other's snapshot: etcd restores the machine's,
// a machine etcd's, and a machine once more what the restored etcd saves. All
// five must hold the same: every key at many revisions, hashes, leases with
// their keys, alarms, users and roles.
func TestBothWays(t *testing.T) {
	g := newGenerator(t)
	judge := startEtcd(t, t.TempDir(), nil)
	m := openMachine(t)
	if err := m.Membership().Seed([]machine.Member{
		{ID: 11, Name: "a", PeerURLs: []string{"http://127.0.0.1:1"}},
		{ID: 0xff00000000000012, PeerURLs: []string{"http://127.0.0.1:2"}, Learner: true},
	}, machine.Position{}); err != nil {
		t.Fatal(err)
	}
	entries := &log{m: m}
	requests := 0
	do := func(r *pb.InternalRaftRequest) {
		want, got := judge.apply(r), entries.apply(t, r)
		if (got == nil) != (want == nil) {
			t.Fatalf("request %d, %v: %v, etcd says %v", requests, r, got, want)
		}
		requests++
	}
	for range *ops {
		g.revision = m.Revision()
		do(g.request())
		if g.IntN(10) == 0 {
			if _, err := m.Space().ScrubStep(context.Background(), 1+g.IntN(20)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, r := range finish(t) {
		do(r)
	}
	g.revision, g.compacted = m.Revision(), m.CompactedRevision()
	if g.compacted < 1 || len(describeMachine(t, m, nil)) < 8 {
		t.Fatalf("compacted %d, %q: the history is too poor to compare", g.compacted, describeMachine(t, m, nil))
	}
	revisions := notRemembered(t, m, g.revisions())
	want := describeMachine(t, m, revisions)

	ours := export(t, m)
	status, err := snapshot.NewV3(zap.NewNop()).Status(ours)
	if err != nil {
		t.Fatalf("etcdutl snapshot status: %v", err)
	}
	if status.Revision != g.revision && status.Revision != g.compacted || status.Version != "3.7.0" {
		t.Errorf("etcdutl snapshot status says %+v, the revision is %d", status, g.revision)
	}
	restored := restoreInEtcd(t, ours)
	sameLines(t, "etcd from musterd's snapshot", restored.describe(t, revisions), want)

	theirs := judge.save(t)
	sameLines(t, "musterd from etcd's snapshot", describeMachine(t, restore(t, theirs), revisions), want)
	own := restore(t, ours)
	sameLines(t, "musterd from its own snapshot", describeMachine(t, own, revisions), want)
	compacted := []int64{g.compacted}
	sameLines(t, "at the compacted revision, etcd and musterd from a snapshot", restored.describe(t, compacted), describeMachine(t, own, compacted))
	again := restored.save(t)
	back := restore(t, again)
	sameLines(t, "musterd from the restored etcd's snapshot", describeMachine(t, back, revisions), want)

	if err := bcrypt.CompareHashAndPassword(back.Auth().User("root").Password, []byte(secret)); err != nil {
		t.Errorf("root's password has changed: %v", err)
	}

	// The histories go on alike: in a machine that was restored, compactions
	// find what the ones before have left.
	if err := back.Membership().Seed([]machine.Member{{ID: 11, PeerURLs: []string{"http://127.0.0.1:1"}}}, machine.Position{}); err != nil {
		t.Fatal(err)
	}
	goesOn := &log{m: back}
	for _, r := range lift() {
		if err := errors.Join(entries.apply(t, r), goesOn.apply(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	for range *ops / 5 {
		g.revision = m.Revision()
		r := g.request()
		want, got := entries.apply(t, r), goesOn.apply(t, r)
		if !errors.Is(got, want) {
			t.Fatalf("%v: %v in the restored machine, %v in the original", r, got, want)
		}
		if _, err := back.Space().ScrubStep(context.Background(), 1+g.IntN(50)); err != nil {
			t.Fatal(err)
		}
	}
	g.revision, g.compacted = m.Revision(), m.CompactedRevision()
	revisions = notRemembered(t, m, g.revisions())
	sameLines(t, "musterd going on after a restore", describeMachine(t, back, revisions), describeMachine(t, m, revisions))
}

// TestHashIsEtcds compares the hash over everything with etcd's, of a file
// that etcd opened.
func TestHashIsEtcds(t *testing.T) {
	m := openMachine(t)
	entries := &log{m: m}
	g := newGenerator(t)
	for range 200 {
		g.revision = m.Revision()
		_ = entries.apply(t, g.request()) // refused requests change nothing
	}
	for _, r := range finish(t) {
		if err := entries.apply(t, r); err != nil {
			t.Fatal(err)
		}
	}
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	got, err := etcdsnap.Hash(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	if want := backendHash(t, export(t, m)); got != want {
		t.Errorf("hash %x, etcd's of the same is %x", got, want)
	}
	before := fmt.Sprintf("%x", got)
	if err := entries.apply(t, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 11, Alarm: pb.AlarmType_NOSPACE}}); err != nil {
		t.Fatal(err)
	}
	if image, err = m.Image(); err != nil {
		t.Fatal(err)
	}
	after, err := etcdsnap.Hash(t.Context(), image)
	if err != nil || fmt.Sprintf("%x", after) == before {
		t.Errorf("hash %x, %v after an alarm was lifted, before it %s", after, err, before)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
}

// notRemembered leaves out the revisions whose hash m remembers from a
// compaction, which is not part of a snapshot.
func notRemembered(t *testing.T, m *machine.Machine, revisions []int64) []int64 {
	t.Helper()
	remembered, err := m.History().CompactionHashes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(revisions, func(rev int64) bool {
		return slices.ContainsFunc(remembered, func(h mvcc.KVHash) bool { return h.Revision == rev })
	})
}

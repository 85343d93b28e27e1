package etcdsnap_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	clientsnapshot "go.etcd.io/etcd/client/v3/snapshot"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/internal/loopback"
	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// An etcd that runs in this process.
type etcd struct {
	*embed.Etcd
	client string
}

func freeURL(t testing.TB) url.URL {
	t.Helper()
	return url.URL{Scheme: "http", Host: loopback.Address(t)}
}

// startEtcd starts etcd alone on dir; prepare, when not nil, sees the
// configuration before.
func startEtcd(t testing.TB, dir string, prepare func(*embed.Config)) *etcd {
	t.Helper()
	config := embed.NewConfig()
	config.Dir = dir
	config.LogLevel, config.LogOutputs = "error", []string{filepath.Join(t.TempDir(), "etcd.log")}
	config.UnsafeNoFsync = true
	config.BcryptCost = 4
	client, peer := freeURL(t), freeURL(t)
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	if prepare != nil {
		prepare(config)
	}
	e, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready")
	}
	return &etcd{Etcd: e, client: client.String()}
}

// restoreInEtcd starts etcd from a snapshot, as etcdutl restores it.
func restoreInEtcd(t testing.TB, path string) *etcd {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "restored")
	return startEtcd(t, dir, func(config *embed.Config) {
		err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
			SnapshotPath: path, Name: config.Name, OutputDataDir: dir,
			PeerURLs:       []string{config.AdvertisePeerUrls[0].String()},
			InitialCluster: config.InitialCluster, InitialClusterToken: config.InitialClusterToken,
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// secret is root's password.
const secret = "secret"

// save takes a snapshot from etcd, as root, as etcdctl does.
func (e *etcd) save(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	_, err := clientsnapshot.SaveWithVersion(context.Background(), zap.NewNop(), clientv3.Config{
		Endpoints: []string{e.client}, Username: "root", Password: secret, DialTimeout: 10 * time.Second,
	}, path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// apply does in etcd what the request does in a machine.
func (e *etcd) apply(r *pb.InternalRaftRequest) error {
	ctx, s := context.Background(), e.Server
	var err error
	switch {
	case r.Put != nil:
		_, err = s.Put(ctx, r.Put)
	case r.DeleteRange != nil:
		_, err = s.DeleteRange(ctx, r.DeleteRange)
	case r.Txn != nil:
		_, err = s.Txn(ctx, r.Txn)
	case r.Compaction != nil:
		_, err = s.Compact(ctx, r.Compaction)
	case r.LeaseGrant != nil:
		_, err = s.LeaseGrant(ctx, r.LeaseGrant)
	case r.LeaseRevoke != nil:
		_, err = s.LeaseRevoke(ctx, r.LeaseRevoke)
	case r.Alarm != nil:
		_, err = s.Alarm(ctx, r.Alarm)
	case r.AuthUserAdd != nil:
		add := proto.CloneOf(r.AuthUserAdd)
		if add.HashedPassword != "" {
			add.Password = secret // etcd hashes it itself
		}
		_, err = s.UserAdd(ctx, add)
	case r.AuthRoleAdd != nil:
		_, err = s.RoleAdd(ctx, r.AuthRoleAdd)
	case r.AuthRoleGrantPermission != nil:
		_, err = s.RoleGrantPermission(ctx, r.AuthRoleGrantPermission)
	case r.AuthUserGrantRole != nil:
		_, err = s.UserGrantRole(ctx, r.AuthUserGrantRole)
	case r.AuthEnable != nil:
		_, err = s.AuthEnable(ctx, r.AuthEnable)
	default:
		err = fmt.Errorf("the test has no case for %v", r)
	}
	return err
}

// openMachine opens a machine with members in a new directory.
func openMachine(t testing.TB) *machine.Machine {
	t.Helper()
	m, err := machine.Open(filepath.Join(t.TempDir(), "kv"), machine.Options{CacheBytes: 8 << 20, MemTableBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// export writes a snapshot of the machine to a file, as a client saves it.
func export(t testing.TB, m *machine.Machine) string {
	t.Helper()
	dir := t.TempDir()
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	database, err := etcdsnap.NewExporter(dir).Export(context.Background(), image)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the exporter's files can be seen: %v, %v", left, err)
	}
	path := filepath.Join(dir, "snapshot.db")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	n, err := database.WriteTo(io.MultiWriter(file, sum))
	if n != database.Size() {
		t.Errorf("%d bytes were written, the size is %d", n, database.Size())
	}
	_, sumErr := file.Write(sum.Sum(nil))
	if err := errors.Join(err, sumErr, file.Close(), database.Close(), image.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// restore makes a machine of a snapshot.
func restore(t testing.TB, path string) *machine.Machine {
	t.Helper()
	m := openMachine(t)
	file, err := etcdsnap.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "built")
	if err := file.Restore(context.Background(), dir, machine.Options{CacheBytes: 8 << 20, MemTableBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Install(dir), file.Close()); err != nil {
		t.Fatal(err)
	}
	return m
}

// describe is what an etcd holds, a line for everything, keys at some revisions.
func (e *etcd) describe(t testing.TB, revisions []int64) []string {
	t.Helper()
	ctx := e.Server.AuthStore().WithRoot(context.Background())
	var lines []string
	for _, rev := range revisions {
		resp, err := e.Server.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
		lines = append(lines, rangeLines(rev, resp, err)...)
		hash, current, err := e.Server.KV().HashStorage().HashByRev(rev)
		lines = append(lines, hashLine(rev, mvcc.KVHash{Hash: hash.Hash, Revision: hash.Revision, Compacted: hash.CompactRevision, Current: current}, err))
	}
	leases, err := e.Server.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(leases.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	for _, l := range leases.Leases {
		ttl, err := e.Server.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.ID, Keys: true})
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(ttl.Keys, slices.Compare)
		lines = append(lines, fmt.Sprintf("lease %d of %d: %q", l.ID, ttl.GrantedTTL, ttl.Keys))
	}
	alarms, err := e.Server.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alarms.Alarms {
		lines = append(lines, fmt.Sprintf("alarm %v of %d", a.Alarm, a.MemberID))
	}
	store := e.Server.AuthStore()
	lines = append(lines, fmt.Sprintf("auth %v at %d", store.IsAuthEnabled(), store.Revision()))
	users, err := store.UserList(&pb.AuthUserListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range users.Users {
		user, err := store.UserGet(&pb.AuthUserGetRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("user %s: %q", name, user.Roles))
	}
	roles, err := store.RoleList(&pb.AuthRoleListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range roles.Roles {
		role, err := store.RoleGet(&pb.AuthRoleGetRequest{Role: name})
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("role %s: %v", name, role.Perm))
	}
	return lines
}

func hashLine(rev int64, hash mvcc.KVHash, err error) string {
	if err != nil {
		return fmt.Sprintf("hash at %d: %v", rev, err)
	}
	return fmt.Sprintf("hash at %d: %+v", rev, hash)
}

func rangeLines(rev int64, resp *pb.RangeResponse, err error) []string {
	if err != nil {
		return []string{fmt.Sprintf("range at %d: %v", rev, err)}
	}
	lines := []string{fmt.Sprintf("range at %d: %d keys, now at %d", rev, resp.Count, resp.Header.Revision)}
	for _, kv := range resp.Kvs {
		lines = append(lines, fmt.Sprintf("  %q %q create %d mod %d version %d lease %d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease))
	}
	return lines
}

// describeMachine is what a machine holds, in the same form.
func describeMachine(t testing.TB, m *machine.Machine, revisions []int64) []string {
	t.Helper()
	ctx := context.Background()
	var lines []string
	for _, rev := range revisions {
		resp, err := m.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
		lines = append(lines, rangeLines(rev, resp, err)...)
		hash, err := m.History().HashKV(ctx, rev)
		lines = append(lines, hashLine(rev, hash, err))
	}
	leases, err := m.Leases().All()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		keys, err := m.Leases().Keys(l.ID)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("lease %d of %d: %q", l.ID, l.TTL, keys))
	}
	for _, a := range m.Alarms() {
		lines = append(lines, fmt.Sprintf("alarm %v of %d", a.Alarm, a.MemberID))
	}
	known := m.Auth()
	lines = append(lines, fmt.Sprintf("auth %v at %d", known.Enabled(), known.Revision()))
	for _, name := range known.UserNames() {
		user, err := known.GetUser(name)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("user %s: %q", name, user.Roles))
	}
	for _, name := range known.RoleNames() {
		role, err := known.GetRole(name)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("role %s: %v", name, role.Perm))
	}
	return lines
}

func sameLines(t testing.TB, what string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("%s: line %d\n     %s\nwant %s", what, i, g, w)
		}
	}
}

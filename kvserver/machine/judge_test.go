package machine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/etcdserver/txn"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	etcdmvcc "go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/internal/randomtest"
)

// judge is etcd's own store and the functions with which its server applies
// requests to it.
type judge struct {
	kv      etcdmvcc.KV
	lessor  lease.Lessor
	backend backend.Backend
}

// judgedVersion is what the lessor takes for the cluster's version; it decides
// whether remaining TTLs are stored.
type judgedVersion struct{}

func (judgedVersion) Version() *semver.Version { return semver.New("3.7.0") }

func newJudge(t testing.TB) *judge {
	t.Helper()
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path = filepath.Join(t.TempDir(), "db")
	cfg.UnsafeNoFsync = true
	b := backend.New(cfg)
	lessor := lease.NewLessor(zap.NewNop(), b, judgedVersion{}, lease.LessorConfig{})
	kv := etcdmvcc.NewStore(zap.NewNop(), b, lessor, etcdmvcc.StoreConfig{CompactionSleepInterval: time.Millisecond})
	t.Cleanup(func() {
		lessor.Stop()
		if err := errors.Join(kv.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return &judge{kv: kv, lessor: lessor, backend: b}
}

func (j *judge) apply(r *pb.InternalRaftRequest) (proto.Message, error) {
	ctx, log := context.Background(), zap.NewNop()
	switch {
	case r.Put != nil:
		resp, _, err := txn.Put(ctx, log, j.lessor, j.kv, r.Put)
		return resp, err
	case r.DeleteRange != nil:
		resp, _, err := txn.DeleteRange(ctx, log, j.kv, r.DeleteRange)
		return resp, err
	case r.Txn != nil:
		resp, _, err := txn.Txn(ctx, log, r.Txn, false, j.kv, j.lessor, false)
		return resp, err
	case r.LeaseGrant != nil:
		l, err := j.lessor.Grant(lease.LeaseID(r.LeaseGrant.ID), r.LeaseGrant.TTL)
		if err != nil {
			return nil, err
		}
		return &pb.LeaseGrantResponse{Header: j.header(), ID: int64(l.ID), TTL: l.TTL()}, nil
	case r.LeaseRevoke != nil:
		err := j.lessor.Revoke(lease.LeaseID(r.LeaseRevoke.ID))
		return &pb.LeaseRevokeResponse{Header: j.header()}, err
	case r.LeaseCheckpoint != nil:
		for _, c := range r.LeaseCheckpoint.Checkpoints {
			if err := j.lessor.Checkpoint(lease.LeaseID(c.ID), c.Remaining_TTL); err != nil {
				return nil, err
			}
		}
		return &pb.LeaseCheckpointResponse{Header: j.header()}, nil
	default:
		done, err := j.kv.Compact(traceutil.TODO(), r.Compaction.Revision)
		if err != nil {
			return nil, err
		}
		<-done // etcd reads its bookkeeping of the last compaction at the next
		return &pb.CompactionResponse{Header: j.header()}, nil
	}
}

func (j *judge) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: j.kv.Rev()} }

// leases describes the leases as they are stored, and the keys of each.
func (j *judge) leases() []string {
	tx := j.backend.BatchTx()
	tx.LockOutsideApply()
	defer tx.Unlock()
	var lines []string
	for _, l := range schema.MustUnsafeGetAllLeases(tx) {
		keys := j.lessor.Lookup(lease.LeaseID(l.ID)).Keys()
		slices.Sort(keys)
		lines = append(lines, fmt.Sprintf("%d %d/%d %q", l.ID, l.RemainingTTL, l.TTL, keys))
	}
	slices.Sort(lines)
	return lines
}

func leasesOf(t testing.TB, m *Machine) []string {
	t.Helper()
	all, err := m.Leases().All()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range all {
		keys, err := m.Leases().Keys(l.ID)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%d %d/%d %q", l.ID, l.Remaining, l.TTL, keys))
	}
	return lines
}

func sameError(got, want error) bool {
	for _, pair := range [][2]error{
		{ErrCompacted, etcdmvcc.ErrCompacted},
		{ErrFutureRev, etcdmvcc.ErrFutureRev},
		{ErrKeyNotFound, etcderrors.ErrKeyNotFound},
		{ErrLeaseNotFound, lease.ErrLeaseNotFound},
		{ErrLeaseExists, lease.ErrLeaseExists},
		{ErrLeaseTTLTooLarge, lease.ErrLeaseTTLTooLarge},
	} {
		if errors.Is(want, pair[1]) {
			return errors.Is(got, pair[0])
		}
	}
	return want == nil && got == nil
}

// TestLikeEtcd applies the same random requests to etcd's store, one by one,
// and to a machine, in entries and groups of random size, and compares every
// response and every error; and so for random reads in between.
func TestLikeEtcd(t *testing.T) {
	g := newGenerator(t)
	j := newJudge(t)
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)

	counts := map[string]int{}
	var index, id uint64
	musts := []string{"put", "delete", "txn", "compaction", ErrCompacted.Error(), ErrFutureRev.Error(), ErrKeyNotFound.Error(), ErrLeaseNotFound.Error(), ErrLeaseExists.Error(), ErrLeaseTTLTooLarge.Error(), "lease"}
	for done := 0; done < *randomOps || done < randomtest.Patience && randomtest.Lacks(counts, musts) != ""; {
		g.revision, g.compacted = m.Revision(), m.CompactedRevision()
		var entries []Entry
		var requests []*pb.InternalRaftRequest
		for range 1 + g.IntN(3) {
			var group []*pb.InternalRaftRequest
			for range g.IntN(4) {
				group = append(group, g.request())
			}
			index++
			entries = append(entries, Entry{Index: index, Term: 1, Payload: batchOf(t, id+1, group...)})
			id += uint64(len(group))
			requests = append(requests, group...)
		}
		outcomes, err := m.Apply(entries, all)
		if err != nil {
			t.Fatal(err)
		}
		if len(outcomes) != len(requests) {
			t.Fatalf("%d outcomes of %d requests", len(outcomes), len(requests))
		}
		for i, r := range requests {
			want, wantErr := j.apply(r)
			got := outcomes[i]
			if got.ID != r.Header.ID || !sameError(got.Err, wantErr) || wantErr == nil && !proto.Equal(got.Response, want) {
				t.Fatalf("request %v:\n     %v\nerror %v\netcd %v\nerror %v", r, got.Response, got.Err, want, wantErr)
			}
			count(counts, r, got)
		}
		done += len(requests) + 1
		sameReads(t, g, j, m)
		if got, want := leasesOf(t, m), j.leases(); !slices.Equal(got, want) {
			t.Fatalf("after %v leases\n     %q\netcd %q", requests, got, want)
		}
	}
	t.Logf("%v", counts)
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}
}

func count(counts map[string]int, r *pb.InternalRaftRequest, o Outcome) {
	switch {
	case o.Err != nil:
		counts[o.Err.Error()]++
	case r.Put != nil:
		counts["put"]++
	case r.DeleteRange != nil:
		counts["delete"]++
	case r.Txn != nil:
		counts["txn"]++
	case r.Compaction == nil:
		counts["lease"]++
	default:
		counts["compaction"]++
	}
}

func sameReads(t *testing.T, g *generator, j *judge, m *Machine) {
	t.Helper()
	ctx := context.Background()
	g.revision, g.compacted = m.Revision(), m.CompactedRevision()

	r := g.rangeRequest()
	want, _, wantErr := txn.Range(ctx, zap.NewNop(), j.kv, r, true)
	got, err := m.Range(ctx, r)
	if !sameError(err, wantErr) || err == nil && !proto.Equal(got, want) {
		t.Fatalf("range %v:\n     %v\nerror %v\netcd %v\nerror %v", r, got, err, want, wantErr)
	}

	read := g.txn(0, &touched{}, true)
	wantTxn, _, wantErr := txn.Txn(ctx, zap.NewNop(), read, false, j.kv, j.lessor, false)
	gotTxn, err := m.ReadTxn(ctx, read)
	if !sameError(err, wantErr) || err == nil && !proto.Equal(gotTxn, wantTxn) {
		t.Fatalf("read-only transaction %v:\n     %v\nerror %v\netcd %v\nerror %v", read, gotTxn, err, wantTxn, wantErr)
	}
}

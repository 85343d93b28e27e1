package machine

import (
	"context"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"muster/kvserver/internal/randomtest"
)

// etcdServer starts etcd in this process and returns its API.
func etcdServer(t *testing.T) pb.KVClient {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.LogLevel = "fatal"
	cfg.UnsafeNoFsync = true
	cfg.MaxTxnOps = checkedOps
	client, peer := freeURL(t), freeURL(t)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.Name + "=" + peer.String()
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready after 30 seconds")
	}
	conn, err := grpc.NewClient(client.Host, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return pb.NewKVClient(conn)
}

func freeURL(t *testing.T) url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

const checkedOps = 4

// checkErrors are the errors of the Check functions as clients see etcd's.
var checkErrors = map[error]error{
	ErrEmptyKey:      rpctypes.ErrGRPCEmptyKey,
	ErrValueProvided: rpctypes.ErrGRPCValueProvided,
	ErrLeaseProvided: rpctypes.ErrGRPCLeaseProvided,
	ErrTooManyOps:    rpctypes.ErrGRPCTooManyOps,
	ErrDuplicateKey:  rpctypes.ErrGRPCDuplicateKey,
	ErrInvalidSort:   rpctypes.ErrGRPCInvalidSortOption,
	ErrKeyNotFound:   rpctypes.ErrGRPCKeyNotFound,
}

// TestCheckLikeEtcd sends random requests, many of them bad, to a running etcd
// and demands the same verdict.
func TestCheckLikeEtcd(t *testing.T) {
	g := newGenerator(t)
	etcd := etcdServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	counts := map[string]int{}
	var musts []string
	for err := range checkErrors {
		musts = append(musts, err.Error())
	}
	for i := 0; i < min(*randomOps, 5000) || i < randomtest.Patience && randomtest.Lacks(counts, musts) != ""; i++ {
		var got, want error
		var request any
		switch g.IntN(8) {
		case 0:
			r := g.badRange()
			request, got = r, CheckRange(r)
			_, want = etcd.Range(ctx, r)
		case 1:
			r := g.badPut()
			request, got = r, CheckPut(r)
			_, want = etcd.Put(ctx, r)
		case 2:
			r := g.badDeleteRange()
			request, got = r, CheckDeleteRange(r)
			_, want = etcd.DeleteRange(ctx, r)
		default:
			r := g.badTxn(2)
			request, got = r, CheckTxn(r, checkedOps)
			_, want = etcd.Txn(ctx, r)
		}
		if got == nil {
			counts["good"]++
			if want != nil && !passedChecks(want) {
				t.Fatalf("%v passes, etcd has %v", request, want)
			}
			continue
		}
		counts[got.Error()]++
		if !errors.Is(want, checkErrors[got]) {
			t.Fatalf("%v: %v, etcd has %v", request, got, want)
		}
	}
	t.Logf("%v", counts)
	if must := randomtest.Lacks(counts, musts); must != "" {
		t.Errorf("%q never happened, the comparison is worth little", must)
	}
}

// passedChecks tells whether etcd refused a request only when it applied it.
func passedChecks(err error) bool {
	return errors.Is(err, rpctypes.ErrGRPCKeyNotFound) || errors.Is(err, rpctypes.ErrGRPCLeaseNotFound) ||
		errors.Is(err, rpctypes.ErrGRPCFutureRev) || errors.Is(err, rpctypes.ErrGRPCCompacted)
}

func (g *generator) badKey() []byte {
	if g.oneIn(25) {
		return nil
	}
	return g.key()
}

func (g *generator) badRange() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: g.badKey()}
	if g.oneIn(4) {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(g.IntN(4)), pb.RangeRequest_SortTarget(g.IntN(6))
	}
	return r
}

// badPut never keeps a part of the previous version when it is good, because
// etcd crashes when such a key was deleted earlier in its transaction.
func (g *generator) badPut() *pb.PutRequest {
	p := &pb.PutRequest{Key: g.badKey(), Value: []byte("v")}
	if g.oneIn(20) {
		p.IgnoreValue = true
	}
	if g.oneIn(20) {
		p.Lease, p.IgnoreLease = 5, true
	}
	return p
}

func (g *generator) badDeleteRange() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: g.badKey(), RangeEnd: g.end()}
}

func (g *generator) badTxn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, &pb.Compare{Key: g.badKey()})
	}
	for range g.IntN(5) / (3 - depth) {
		r.Success = append(r.Success, g.badOp(depth))
	}
	for range g.IntN(5) / (3 - depth) {
		r.Failure = append(r.Failure, g.badOp(depth))
	}
	if g.oneIn(15) {
		for range 4 {
			r.Failure = append(r.Failure, g.badOp(0))
		}
	}
	return r
}

func (g *generator) badOp(depth int) *pb.RequestOp {
	switch n := g.IntN(16); {
	case n < 2:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.badRange()}}
	case n < 8:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.badPut()}}
	case n < 11:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.badDeleteRange()}}
	case n < 15 && depth > 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.badTxn(depth - 1)}}
	case g.oneIn(6):
		return &pb.RequestOp{}
	default:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: g.key()}}}
	}
}

func TestTxnKind(t *testing.T) {
	rangeOp := func(serializable bool) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Serializable: serializable}}}
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{}}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(true)}}}}
	ops := func(ops ...*pb.RequestOp) []*pb.RequestOp { return ops }
	for _, c := range []struct {
		name                   string
		r                      *pb.TxnRequest
		readOnly, serializable bool
	}{
		{"empty", &pb.TxnRequest{}, true, true},
		{"serializable", &pb.TxnRequest{Success: ops(rangeOp(true)), Failure: ops(rangeOp(true))}, true, true},
		{"one is not", &pb.TxnRequest{Success: ops(rangeOp(true)), Failure: ops(rangeOp(false))}, true, false},
		{"put on failure", &pb.TxnRequest{Success: ops(rangeOp(true)), Failure: ops(put)}, false, false},
		{"nested", &pb.TxnRequest{Success: ops(nested)}, false, false},
		{"empty operation", &pb.TxnRequest{Success: ops(&pb.RequestOp{})}, false, false},
	} {
		if got := TxnIsReadOnly(c.r); got != c.readOnly {
			t.Errorf("%s: read-only %t", c.name, got)
		}
		if got := TxnIsSerializable(c.r); got != c.serializable {
			t.Errorf("%s: serializable %t", c.name, got)
		}
	}
}

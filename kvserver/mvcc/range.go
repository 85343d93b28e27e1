package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"math"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// CheckRevision tells whether rev can be read: 0 always, otherwise it must lie
// between the compacted and the current revision.
//
// This is how etcd checks the ranges inside a transaction. A negative revision
// counts as compacted once anything was compacted, although a range outside a
// transaction takes it for the current one.
func (v View) CheckRevision(rev int64) error {
	switch {
	case rev == 0:
		return nil
	case rev > v.head.Current:
		return ErrFutureRev
	case rev < v.head.Compacted:
		return ErrCompacted
	}
	return nil
}

// Range answers r as etcd does; the header has the revision only.
//
// A revision of zero or below is the current one. Count is the number of keys
// in the interval at that revision, whatever the limit and the filters. Sort
// order and target must be valid.
func (v View) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, _, err := v.rangeCounted(ctx, r, nil)
	return resp, err
}

// rangeCounted is Range with the help of what is known. It returns what was
// counted, too, for the caller to remember.
func (v View) rangeCounted(ctx context.Context, r *pb.RangeRequest, counts knownCounts) (*pb.RangeResponse, counted, error) {
	rev, err := v.resolve(r.Revision)
	if err != nil {
		return nil, counted{}, err
	}

	count := counted{start: r.Key, end: r.RangeEnd, rev: rev}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: v.head.Current}}
	take := takeLimit(r)
	err = v.visit(ctx, r.Key, r.RangeEnd, rev, func(raw []byte) (bool, error) {
		count.count++
		if r.CountOnly || int64(len(resp.Kvs)) >= take {
			if counts == nil {
				return true, nil
			}
			// The rest is only counted. Ask once.
			known, ok, err := v.countFrom(ctx, counts, r.Key, r.RangeEnd, rev)
			if ok {
				count = known
			}
			counts = nil
			return !ok, err
		}
		record, err := decodeRecord(raw)
		if err != nil {
			return false, err
		}
		if isFiltered(r, record) {
			return true, nil
		}
		if r.KeysOnly && r.SortTarget != pb.RangeRequest_VALUE {
			// etcd 3.7 answers these from its key index, which knows neither
			// value nor lease.
			record.Value, record.Lease = nil, 0
		}
		resp.Kvs = append(resp.Kvs, record.KeyValue())
		return true, nil
	})
	if err != nil {
		return nil, counted{}, err
	}

	resp.Count = count.count
	sortKeyValues(r, resp.Kvs)
	if r.Limit > 0 && int64(len(resp.Kvs)) > r.Limit {
		resp.Kvs = resp.Kvs[:r.Limit]
		resp.More = true
	}
	if r.KeysOnly {
		for _, kv := range resp.Kvs {
			kv.Value = nil
		}
	}
	return resp, count, nil
}

// resolve returns the revision that a range at rev reads.
func (v View) resolve(rev int64) (int64, error) {
	if rev <= 0 {
		rev = v.head.Current
	}
	switch {
	case rev > v.head.Current:
		return 0, ErrFutureRev
	case rev < v.head.Compacted:
		return 0, ErrCompacted
	}
	return rev, nil
}

// takeLimit is how many records have to be collected: one more than the limit,
// to know whether there are more, and all of them when what is left after
// sorting or filtering is not known beforehand.
func takeLimit(r *pb.RangeRequest) int64 {
	// etcd takes order NONE for key order here, whatever the target: such a
	// list is cut first and sorted afterwards.
	unsorted := r.SortOrder == pb.RangeRequest_NONE || isKeyOrder(r)
	if r.Limit <= 0 || r.Limit == math.MaxInt64 || !unsorted || hasFilters(r) {
		return math.MaxInt64
	}
	return r.Limit + 1
}

func isKeyOrder(r *pb.RangeRequest) bool {
	return r.SortTarget == pb.RangeRequest_KEY && r.SortOrder != pb.RangeRequest_DESCEND
}

func hasFilters(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

func isFiltered(r *pb.RangeRequest, record Record) bool {
	return r.MaxModRevision != 0 && record.ModRevision > r.MaxModRevision ||
		r.MinModRevision != 0 && record.ModRevision < r.MinModRevision ||
		r.MaxCreateRevision != 0 && record.CreateRevision > r.MaxCreateRevision ||
		r.MinCreateRevision != 0 && record.CreateRevision < r.MinCreateRevision
}

// sortKeyValues sorts what was collected in key order. A target other than the
// key with order NONE sorts ascending.
//
// sort.Sort is not stable; it is used because etcd uses it, so that equal
// elements come out in the same order here.
func sortKeyValues(r *pb.RangeRequest, kvs []*mvccpb.KeyValue) {
	if isKeyOrder(r) {
		return
	}
	var compare func(a, b *mvccpb.KeyValue) int
	switch r.SortTarget {
	case pb.RangeRequest_KEY:
		compare = func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }
	case pb.RangeRequest_VERSION:
		compare = func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) }
	case pb.RangeRequest_CREATE:
		compare = func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }
	case pb.RangeRequest_MOD:
		compare = func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	case pb.RangeRequest_VALUE:
		compare = func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) }
	default:
		return
	}
	var order sort.Interface = byCompare{kvs: kvs, compare: compare}
	if r.SortOrder == pb.RangeRequest_DESCEND {
		order = sort.Reverse(order)
	}
	sort.Sort(order)
}

type byCompare struct {
	kvs     []*mvccpb.KeyValue
	compare func(a, b *mvccpb.KeyValue) int
}

func (s byCompare) Len() int           { return len(s.kvs) }
func (s byCompare) Less(i, j int) bool { return s.compare(s.kvs[i], s.kvs[j]) < 0 }
func (s byCompare) Swap(i, j int)      { s.kvs[i], s.kvs[j] = s.kvs[j], s.kvs[i] }

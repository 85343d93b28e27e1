package machine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"muster/kvserver/mvcc"
)

// branch is the side of a transaction that its compares chose, with the same
// for the transactions nested in it.
type branch struct {
	succeeded bool
	ops       []*pb.RequestOp
	nested    map[int]*branch // by index in ops
}

// chooseBranch evaluates the compares of a transaction and of everything
// nested in the side taken, all on the state before the transaction.
func chooseBranch(ctx context.Context, view mvcc.View, r *pb.TxnRequest) (*branch, error) {
	b := &branch{succeeded: true, ops: r.GetSuccess()}
	for _, c := range r.GetCompare() {
		ok, err := holds(ctx, view, c)
		if err != nil {
			return nil, err
		}
		if !ok {
			b.succeeded, b.ops = false, r.GetFailure()
			break
		}
	}
	for i, op := range b.ops {
		o, ok := op.GetRequest().(*pb.RequestOp_RequestTxn)
		if !ok {
			continue
		}
		nested, err := chooseBranch(ctx, view, o.RequestTxn)
		if err != nil {
			return nil, err
		}
		if b.nested == nil {
			b.nested = make(map[int]*branch)
		}
		b.nested[i] = nested
	}
	return b, nil
}

// holds tells whether every key in the compare's interval passes it. Without
// any key, a comparison of values fails and all others compare with zero.
func holds(ctx context.Context, view mvcc.View, c *pb.Compare) (bool, error) {
	found, ok := false, true
	err := view.Visit(ctx, c.Key, c.RangeEnd, func(r mvcc.Record) (bool, error) {
		found = true
		ok = passes(c, r)
		return ok, nil
	})
	if err != nil {
		return false, err
	}
	if !found {
		return c.Target != pb.Compare_VALUE && passes(c, mvcc.Record{}), nil
	}
	return ok, nil
}

func passes(c *pb.Compare, r mvcc.Record) bool {
	var order int
	switch c.Target {
	case pb.Compare_VALUE:
		order = bytes.Compare(r.Value, c.GetValue())
	case pb.Compare_CREATE:
		order = cmp.Compare(r.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(r.ModRevision, c.GetModRevision())
	case pb.Compare_VERSION:
		order = cmp.Compare(r.Version, c.GetVersion())
	case pb.Compare_LEASE:
		order = cmp.Compare(r.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return true
}

// checkBranch makes sure that nothing in b can fail, on the state before the
// transaction: once the first operation has written there is no way back.
func checkBranch(ctx context.Context, view mvcc.View, leases leaseTable, b *branch) error {
	for i, op := range b.ops {
		var err error
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			err = view.CheckRevision(o.RequestRange.GetRevision())
		case *pb.RequestOp_RequestPut:
			_, err = previousOf(ctx, view, leases, o.RequestPut, false)
		case *pb.RequestOp_RequestTxn:
			err = checkBranch(ctx, view, leases, b.nested[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// previousOf returns what a put has to know of the key it overwrites: nil when
// nothing has to be known or there is no such key. The error is
// ErrLeaseNotFound, or ErrKeyNotFound when the put keeps a part of a key that
// does not exist.
func previousOf(ctx context.Context, view mvcc.View, leases leaseTable, p *pb.PutRequest, want bool) (*mvccpb.KeyValue, error) {
	if p.Lease != 0 {
		if _, err := leases.get(p.Lease); err != nil {
			return nil, err
		}
	}
	keeps := p.IgnoreValue || p.IgnoreLease
	if !keeps && !(p.PrevKv && want) {
		return nil, nil
	}
	var previous *mvccpb.KeyValue
	err := view.Visit(ctx, p.Key, nil, func(r mvcc.Record) (bool, error) {
		previous = r.KeyValue()
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if previous == nil && keeps {
		return nil, ErrKeyNotFound
	}
	return previous, nil
}

// txnWriter carries out the operations of transactions.
type txnWriter struct {
	w      *mvcc.Writer
	leases leaseTable
	// want tells whether somebody waits for the response; without, nothing is
	// read that is not needed to write.
	want bool
	*counted
}

func (t txnWriter) put(ctx context.Context, p *pb.PutRequest) (*pb.PutResponse, error) {
	previous, err := previousOf(ctx, t.w.View(), t.leases, p, t.want)
	if err != nil {
		return nil, err
	}
	return t.putOver(p, previous)
}

func (t txnWriter) putOver(p *pb.PutRequest, previous *mvccpb.KeyValue) (*pb.PutResponse, error) {
	value, lease := p.Value, p.Lease
	if p.IgnoreValue {
		value = previous.GetValue()
	}
	if p.IgnoreLease {
		lease = previous.GetLease()
	}
	if err := t.w.Put(p.Key, value, lease); err != nil {
		return nil, err
	}
	t.puts++
	if !t.want {
		return nil, nil
	}
	resp := &pb.PutResponse{Header: t.header()}
	if p.PrevKv {
		resp.PrevKv = previous
	}
	return resp, nil
}

func (t txnWriter) deleteRange(ctx context.Context, d *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	resp := &pb.DeleteRangeResponse{}
	var previous func(mvcc.Record)
	if d.PrevKv && t.want {
		previous = func(r mvcc.Record) { resp.PrevKvs = append(resp.PrevKvs, r.KeyValue()) }
	}
	n, err := t.w.Delete(ctx, d.Key, d.RangeEnd, previous)
	if err != nil {
		return nil, err
	}
	t.deletes += n
	resp.Deleted = n
	resp.Header = t.header()
	return resp, nil
}

// txn carries out a transaction: compares, checks, then writes.
func (t txnWriter) txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	view := t.w.View()
	b, err := chooseBranch(ctx, view, r)
	if err != nil {
		return nil, err
	}
	if err := checkBranch(ctx, view, t.leases, b); err != nil {
		return nil, err
	}
	resp, err := t.carryOut(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHalfWritten, err)
	}
	resp.Header.Revision = t.w.View().Head().Current
	return resp, nil
}

// carryOut runs the operations of a branch in order. As in etcd, the headers
// of nested transactions stay empty.
func (t txnWriter) carryOut(ctx context.Context, b *branch) (*pb.TxnResponse, error) {
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: b.succeeded}
	for i, op := range b.ops {
		out := &pb.ResponseOp{}
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			if !t.want {
				continue
			}
			r, err := t.w.View().Range(ctx, o.RequestRange)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: r}
		case *pb.RequestOp_RequestPut:
			r, err := t.checkedPut(ctx, o.RequestPut)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: r}
		case *pb.RequestOp_RequestDeleteRange:
			r, err := t.deleteRange(ctx, o.RequestDeleteRange)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: r}
		case *pb.RequestOp_RequestTxn:
			r, err := t.carryOut(ctx, b.nested[i])
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: r}
		}
		if t.want {
			resp.Responses = append(resp.Responses, out)
		}
	}
	return resp, nil
}

// checkedPut is put where a missing key is no error any more: an earlier
// operation of the same transaction may have deleted it, which CheckTxn does
// not always see.
func (t txnWriter) checkedPut(ctx context.Context, p *pb.PutRequest) (*pb.PutResponse, error) {
	previous, err := previousOf(ctx, t.w.View(), t.leases, p, t.want)
	if err != nil && !errors.Is(err, ErrKeyNotFound) {
		return nil, err
	}
	return t.putOver(p, previous)
}

func (t txnWriter) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: t.w.View().Head().Current}
}

// readTxn answers a read-only transaction.
func readTxn(ctx context.Context, view mvcc.View, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if !TxnIsReadOnly(r) {
		return nil, ErrNotReadOnly
	}
	b, err := chooseBranch(ctx, view, r)
	if err != nil {
		return nil, err
	}
	if err := checkBranch(ctx, view, leaseTable{}, b); err != nil { // there is no put
		return nil, err
	}
	resp := &pb.TxnResponse{
		Header:    &pb.ResponseHeader{Revision: view.Head().Current},
		Succeeded: b.succeeded,
	}
	for _, op := range b.ops {
		out, err := view.Range(ctx, op.GetRequestRange())
		if err != nil {
			return nil, err
		}
		resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: out}})
	}
	return resp, nil
}

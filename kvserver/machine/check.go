package machine

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// The Check functions refuse what cannot be carried out, before it is
// proposed. Rules and their order are those of etcd's
// server/etcdserver/api/v3rpc/key.go.

// CheckRange returns ErrEmptyKey or ErrInvalidSort.
func CheckRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return ErrEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.GetSortOrder())]; !ok {
		return ErrInvalidSort
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.GetSortTarget())]; !ok {
		return ErrInvalidSort
	}
	return nil
}

// CheckPut returns ErrEmptyKey, ErrValueProvided or ErrLeaseProvided.
func CheckPut(r *pb.PutRequest) error {
	if len(r.GetKey()) == 0 {
		return ErrEmptyKey
	}
	if r.GetIgnoreValue() && len(r.GetValue()) != 0 {
		return ErrValueProvided
	}
	if r.GetIgnoreLease() && r.GetLease() != 0 {
		return ErrLeaseProvided
	}
	return nil
}

// CheckDeleteRange returns ErrEmptyKey.
func CheckDeleteRange(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return ErrEmptyKey
	}
	return nil
}

// CheckTxn checks a transaction with everything nested in it. At most maxOps
// operations may be in a branch; a nested transaction gets what the one around
// it left over. It returns what the other checks return, ErrTooManyOps,
// ErrDuplicateKey, and ErrKeyNotFound for an empty operation.
func CheckTxn(r *pb.TxnRequest, maxOps int) error {
	if err := checkTxnOps(r, maxOps); err != nil {
		return err
	}
	// Only now, when the number of operations is known to be bounded: the
	// cost of this grows with its square.
	if _, _, err := checkOverlap(r.GetSuccess()); err != nil {
		return err
	}
	_, _, err := checkOverlap(r.GetFailure())
	return err
}

func checkTxnOps(r *pb.TxnRequest, maxOps int) error {
	ops := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if ops > maxOps {
		return ErrTooManyOps
	}
	for _, c := range r.GetCompare() {
		if len(c.GetKey()) == 0 {
			return ErrEmptyKey
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, maxOps-ops); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch o := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return CheckRange(o.RequestRange)
	case *pb.RequestOp_RequestPut:
		return CheckPut(o.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return CheckDeleteRange(o.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(o.RequestTxn, maxOps)
	default:
		return ErrKeyNotFound
	}
}

// checkOverlap returns ErrDuplicateKey when ops put a key twice or put a key
// that they delete, and otherwise the keys put and the intervals deleted.
//
// It finds what etcd finds, no more: a put in one nested transaction and a
// delete in a later one pass, and the branches of one nested transaction may
// put the same key.
func checkOverlap(ops []*pb.RequestOp) (map[string]struct{}, adt.IntervalTree, error) {
	deletes := adt.NewIntervalTree()
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			deletes.Insert(deletedInterval(d), struct{}{})
		}
	}

	puts := make(map[string]struct{})
	for _, op := range ops {
		nested := op.GetRequestTxn()
		if nested == nil {
			continue
		}
		thenPuts, thenDeletes, err := checkOverlap(nested.GetSuccess())
		if err != nil {
			return nil, nil, err
		}
		elsePuts, elseDeletes, err := checkOverlap(nested.GetFailure())
		if err != nil {
			return nil, nil, err
		}
		for key := range thenPuts {
			if err := addPut(puts, nil, deletes, key); err != nil {
				return nil, nil, err
			}
		}
		for key := range elsePuts {
			if err := addPut(puts, thenPuts, deletes, key); err != nil {
				return nil, nil, err
			}
		}
		everything := adt.NewStringAffineInterval("\x00", "")
		deletes.Union(thenDeletes, everything)
		deletes.Union(elseDeletes, everything)
	}

	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if err := addPut(puts, nil, deletes, string(p.Key)); err != nil {
				return nil, nil, err
			}
		}
	}
	return puts, deletes, nil
}

// addPut adds key to puts, where only a key of except may be already.
func addPut(puts, except map[string]struct{}, deletes adt.IntervalTree, key string) error {
	if _, twice := puts[key]; twice {
		if _, allowed := except[key]; !allowed {
			return ErrDuplicateKey
		}
	}
	if deletes.Intersects(adt.NewStringAffinePoint(key)) {
		return ErrDuplicateKey
	}
	puts[key] = struct{}{}
	return nil
}

func deletedInterval(d *pb.DeleteRangeRequest) adt.Interval {
	if len(d.RangeEnd) == 0 {
		return adt.NewStringAffinePoint(string(d.Key))
	}
	return adt.NewStringAffineInterval(string(d.Key), string(d.RangeEnd))
}

// TxnIsReadOnly tells whether a transaction has ranges only. One with a nested
// transaction counts as writing.
func TxnIsReadOnly(r *pb.TxnRequest) bool {
	return eachRange(r, func(*pb.RangeRequest) bool { return true })
}

// TxnIsSerializable tells whether a transaction has serializable ranges only,
// so that it may be answered without asking the other members.
func TxnIsSerializable(r *pb.TxnRequest) bool {
	return eachRange(r, func(r *pb.RangeRequest) bool { return r.Serializable })
}

func eachRange(r *pb.TxnRequest, is func(*pb.RangeRequest) bool) bool {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if r := op.GetRequestRange(); r == nil || !is(r) {
				return false
			}
		}
	}
	return true
}

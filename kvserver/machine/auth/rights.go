package auth

import (
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/adt"
)

// Identity is who a request comes from, as its header says.
type Identity struct {
	// User is the name; empty for nobody.
	User string
	// Revision is that of the State in which this was found out; 0 for nobody.
	Revision uint64
}

// Rights tell what somebody may do. Errors are ErrUserEmpty,
// ErrAuthOldRevision and ErrPermissionDenied; while auth is not enabled there
// are none.
type Rights struct {
	s   *State
	who Identity
}

// Of returns the rights of somebody.
func (s *State) Of(who Identity) Rights { return Rights{s: s, who: who} }

// Administer asks for the role root. Unlike the others it does not care for
// the revision, and the error for an unknown user is ErrUserNotFound.
func (r Rights) Administer() error {
	if !r.s.enabled {
		return nil
	}
	if r.who.User == "" {
		return ErrUserEmpty
	}
	u := r.s.User(r.who.User)
	if u == nil {
		return ErrUserNotFound
	}
	if !isRoot(u) {
		return ErrPermissionDenied
	}
	return nil
}

// SeeUser lets everybody see the own roles, and root those of all. Errors are
// those of Administer.
func (r Rights) SeeUser(name string) error {
	if err := r.Administer(); err != nil && name != r.who.User {
		return err
	}
	return nil
}

// SeeRole lets everybody see the own roles, and root all. Errors are those of
// Administer.
func (r Rights) SeeRole(name string) error {
	err := r.Administer()
	if err != nil && !slices.Contains(r.s.User(r.who.User).GetRoles(), name) {
		return err
	}
	return nil
}

// Read asks for reading [key, end), with the meaning of an end that a
// RangeRequest has.
func (r Rights) Read(key, end []byte) error {
	return r.check(key, end, func(p *permissions) adt.IntervalTree { return p.read })
}

func (r Rights) write(key, end []byte) error {
	return r.check(key, end, func(p *permissions) adt.IntervalTree { return p.write })
}

// Delete asks for writing the range, and for reading it when what is deleted
// is to be returned.
func (r Rights) Delete(d *pb.DeleteRangeRequest) error {
	if err := r.write(d.GetKey(), d.GetRangeEnd()); err != nil {
		return err
	}
	if d.GetPrevKv() {
		return r.Read(d.GetKey(), d.GetRangeEnd())
	}
	return nil
}

// LeaseKeys returns the keys attached to a lease, none when there is no such
// lease.
type LeaseKeys func(id int64) ([][]byte, error)

// Put asks for writing the key, for reading it when what was there is to be
// returned, and for what UseLease asks for.
func (r Rights) Put(p *pb.PutRequest, keys LeaseKeys) error {
	if err := r.write(p.GetKey(), nil); err != nil {
		return err
	}
	if err := r.UseLease(p.GetLease(), keys); err != nil {
		return err
	}
	if p.GetPrevKv() {
		return r.Read(p.GetKey(), nil)
	}
	return nil
}

// UseLease asks for writing all keys of a lease: who attaches a key to it, or
// revokes it, decides what becomes of the others. The error can also be one of
// keys.
func (r Rights) UseLease(id int64, keys LeaseKeys) error {
	if id == 0 || r.Administer() == nil {
		return nil
	}
	attached, err := keys(id)
	if err != nil {
		return err
	}
	for _, key := range attached {
		if err := r.write(key, nil); err != nil {
			return err
		}
	}
	return nil
}

// Txn asks for what every compare and every operation needs, in both branches
// and in everything nested. keys may be nil for a transaction without puts.
func (r Rights) Txn(t *pb.TxnRequest, keys LeaseKeys) error {
	if !r.s.enabled {
		return nil
	}
	for _, c := range t.GetCompare() {
		if err := r.Read(c.GetKey(), c.GetRangeEnd()); err != nil {
			return err
		}
	}
	for _, branch := range [][]*pb.RequestOp{t.GetSuccess(), t.GetFailure()} {
		for _, op := range branch {
			if err := r.operation(op, keys); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r Rights) operation(op *pb.RequestOp, keys LeaseKeys) error {
	switch o := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return r.Read(o.RequestRange.GetKey(), o.RequestRange.GetRangeEnd())
	case *pb.RequestOp_RequestPut:
		return r.Put(o.RequestPut, keys)
	case *pb.RequestOp_RequestDeleteRange:
		return r.Delete(o.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return r.Txn(o.RequestTxn, keys)
	}
	return nil
}

func (r Rights) check(key, end []byte, kind func(*permissions) adt.IntervalTree) error {
	if !r.s.enabled {
		return nil
	}
	if r.who.Revision == 0 {
		return ErrUserEmpty
	}
	if r.who.Revision < r.s.revision {
		return ErrAuthOldRevision
	}
	u := r.s.User(r.who.User)
	if u == nil {
		return ErrPermissionDenied
	}
	if isRoot(u) || covers(kind(r.s.permissionsOf(u)), key, end) {
		return nil
	}
	return ErrPermissionDenied
}

func isRoot(u *authpb.User) bool {
	_, found := slices.BinarySearch(u.Roles, root)
	return found
}

// permissions are the ranges that the roles of a user permit.
type permissions struct{ read, write adt.IntervalTree }

func (s *State) permissionsOf(u *authpb.User) *permissions {
	if p, ok := s.permissions.Load(string(u.Name)); ok {
		return p.(*permissions)
	}
	p := &permissions{read: adt.NewIntervalTree(), write: adt.NewIntervalTree()}
	for _, name := range u.Roles {
		for _, perm := range s.Role(name).GetKeyPermission() {
			ivl := interval(perm.Key, perm.RangeEnd)
			switch perm.PermType {
			case authpb.Permission_READ:
				p.read.Insert(ivl, struct{}{})
			case authpb.Permission_WRITE:
				p.write.Insert(ivl, struct{}{})
			case authpb.Permission_READWRITE:
				p.read.Insert(ivl, struct{}{})
				p.write.Insert(ivl, struct{}{})
			}
		}
	}
	s.permissions.Store(string(u.Name), p)
	return p
}

// covers tells whether the permitted ranges together cover [key, end).
func covers(permitted adt.IntervalTree, key, end []byte) bool {
	if len(end) == 0 {
		return permitted.Intersects(interval(key, nil))
	}
	return permitted.Contains(interval(key, end))
}

func interval(key, end []byte) adt.Interval {
	switch {
	case len(end) == 0:
		return adt.NewBytesAffinePoint(key)
	case isOpen(end):
		return adt.NewBytesAffineInterval(key, nil)
	default:
		return adt.NewBytesAffineInterval(key, end)
	}
}

// isOpen tells whether a range has no upper end.
func isOpen(end []byte) bool { return len(end) == 1 && end[0] == 0 }

package machine

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
	"muster/kvserver/mvcc"
	"muster/kvserver/v2tree"
)

// Entry is one entry of the raft log.
type Entry struct {
	Index, Term uint64
	// Payload is a batch (EncodeBatch). An entry without one only moves the
	// applied index.
	Payload []byte
	// Configuration, when not nil, is a raft membership entry. The machine
	// stores the bytes with the index and does not look into them.
	Configuration []byte
	// Members, when there are any, are the members from this entry on, without
	// what they say of themselves. Those missing were removed for good.
	Members []Member
}

// Outcome is what became of one request.
type Outcome struct {
	// ID is that of the request's header.
	ID uint64
	// Index is that of the entry which held the request.
	Index uint64
	// Response is the response of etcd's API for this request. Its header has
	// the revision only. Nil when Err is set.
	Response proto.Message
	// V2 is what became of a request of version 2; Response and Err are nil then.
	V2 v2tree.Result
	// Err is one of the request errors of this package.
	Err error
}

// Apply applies entries, which must be in the order of the log, in one atomic
// step, and returns the outcomes of the requests whose IDs are wanted, in
// order. A nil wanted wants none. Entries at or below the applied index were
// applied before and are skipped.
//
// After an error nothing was applied, and the member must stop: it cannot
// apply what the others did.
func (m *Machine) Apply(entries []Entry, wanted func(id uint64) bool) ([]Outcome, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	g, err := m.stores.acquire()
	if err != nil {
		return nil, err
	}
	defer g.release()

	current := m.state.Load()
	for len(entries) > 0 && entries[0].Index <= current.Index {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return nil, nil
	}
	s := newStep(g.store.NewWriter(), *current, wanted)
	if m.observer != nil {
		s.w.Record()
	}
	for _, e := range entries {
		if err := s.entry(e); err != nil {
			return nil, errors.Join(fmt.Errorf("apply entry %d: %w", e.Index, err), s.w.Discard())
		}
	}
	v2Changes, err := s.finishV2()
	if err == nil {
		err = putPosition(s.w.Batch(), s.state.Position)
	}
	if err != nil {
		return nil, errors.Join(err, s.w.Discard())
	}
	events := s.w.Events()
	if err := g.store.Commit(s.w); err != nil {
		return nil, fmt.Errorf("apply entries %d to %d: %w", entries[0].Index, s.state.Index, err)
	}
	m.state.Store(&s.state)
	m.observer.tell(events)
	if m.tokenObserver != nil && len(s.tokens) > 0 {
		m.tokenObserver(s.tokens)
	}
	if m.leaseObserver != nil && len(s.leases.changes) > 0 {
		m.leaseObserver(s.leases.changes)
	}
	if m.v2Observer != nil && len(v2Changes) > 0 {
		m.v2Observer(v2Changes)
	}
	m.operations.Puts.Add(s.puts)
	m.operations.Deletes.Add(s.deletes)
	m.operations.Txns.Add(s.txns)
	return s.outcomes, nil
}

// step is one Apply under way.
type step struct {
	w        *mvcc.Writer
	state    state // a copy, published when the step is committed
	wanted   func(id uint64) bool
	outcomes []Outcome
	leases   leaseWriter
	tokens   []TokenChange
	v2       *v2tree.Writer // nil until a request of version 2 comes
	counted
}

// counted are the operations of a step.
type counted struct{ puts, deletes, txns int64 }

func newStep(w *mvcc.Writer, current state, wanted func(id uint64) bool) *step {
	s := &step{w: w, state: current, wanted: wanted, leases: leaseWriter{batch: w.Batch(), charge: w.Charge}}
	w.OnLease(s.leases.move)
	return s
}

func (s *step) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: s.w.View().Head().Current}
}

func (s *step) entry(e Entry) error {
	if e.Index <= s.state.Index {
		return fmt.Errorf("the log went back from index %d", s.state.Index)
	}
	s.state.Index, s.state.Term = e.Index, e.Term
	if e.Configuration != nil {
		s.state.ConfigurationIndex, s.state.Configuration = e.Index, append([]byte{}, e.Configuration...)
		if err := putConfiguration(s.w.Batch(), s.state.Position); err != nil {
			return err
		}
		return s.state.setMembers(s.w.Batch(), e.Members)
	}
	if len(e.Payload) == 0 {
		return nil
	}
	_, requests, err := DecodeBatch(e.Payload)
	if err != nil {
		return err
	}
	for _, encoded := range requests {
		if err := s.request(e.Index, encoded); err != nil {
			return err
		}
	}
	return nil
}

// decodeRequest returns nil for what is no request.
func decodeRequest(encoded []byte) *pb.InternalRaftRequest {
	r := &pb.InternalRaftRequest{}
	if proto.Unmarshal(encoded, r) != nil {
		return nil
	}
	return r
}

func (s *step) request(index uint64, encoded []byte) error {
	r := decodeRequest(encoded)
	if r == nil {
		// The same bytes are malformed for every member. Without an ID there
		// is nobody to tell.
		return nil
	}
	id := r.GetHeader().GetID()
	want := s.wanted != nil && s.wanted(id)
	var resp proto.Message
	var v2 v2tree.Result
	var err error
	if v2Request := v2tree.Unwrap(r); v2Request != nil {
		v2, err = s.v2Request(v2Request)
	} else {
		resp, err = s.dispatch(r, want)
	}
	s.w.EndTxn()
	if err != nil && !isRequestError(err) {
		return fmt.Errorf("request %x: %w", id, err)
	}
	if !want {
		return nil
	}
	if err != nil {
		resp = nil
	}
	s.outcomes = append(s.outcomes, Outcome{ID: id, Index: index, Response: resp, V2: v2, Err: err})
	return nil
}

// dispatch carries out one request. It must not have written anything when it
// returns a request error.
func (s *step) dispatch(r *pb.InternalRaftRequest, want bool) (proto.Message, error) {
	who := auth.Identity{User: r.GetHeader().GetUsername(), Revision: r.GetHeader().GetAuthRevision()}
	switch {
	case r.Put != nil, r.DeleteRange != nil, r.Txn != nil, r.Compaction != nil:
		return s.keyRequest(r, who, want)
	case r.LeaseGrant != nil, r.LeaseRevoke != nil, r.LeaseCheckpoint != nil:
		return s.leaseRequest(r, who)
	case r.Alarm != nil:
		return s.alarm(r.Alarm, s.header())
	case r.ClusterMemberAttrSet != nil:
		return s.publish(r.ClusterMemberAttrSet)
	case r.DowngradeInfoSet != nil:
		return s.setDowngrade(r.DowngradeInfoSet)
	default:
		return s.authRequest(r, who)
	}
}

func (s *step) keyRequest(r *pb.InternalRaftRequest, who auth.Identity, want bool) (proto.Message, error) {
	ctx := context.Background()
	t := txnWriter{w: s.w, leases: s.leases.table(), want: want, counted: &s.counted}
	if err := s.admit(r.Put != nil || hasPut(r.Txn)); err != nil {
		return nil, err
	}
	switch {
	case r.Put != nil:
		if err := s.state.auth.Of(who).Put(r.Put, s.leases.table().keys); err != nil {
			return nil, err
		}
		return t.put(ctx, r.Put)
	case r.DeleteRange != nil:
		if err := s.state.auth.Of(who).Delete(r.DeleteRange); err != nil {
			return nil, err
		}
		return t.deleteRange(ctx, r.DeleteRange)
	case r.Txn != nil:
		if err := s.state.auth.Of(who).Txn(r.Txn, s.leases.table().keys); err != nil {
			return nil, err
		}
		s.txns++
		return t.txn(ctx, r.Txn)
	default:
		if err := s.w.Compact(r.Compaction.Revision); err != nil {
			return nil, err
		}
		return &pb.CompactionResponse{Header: s.header()}, nil
	}
}

// admit refuses what a raised alarm forbids: CORRUPT everything, NOSPACE what
// adds to the data.
func (s *step) admit(adds bool) error {
	switch {
	case s.state.raised(pb.AlarmType_CORRUPT):
		return ErrCorrupt
	case adds && s.state.raised(pb.AlarmType_NOSPACE):
		return ErrNoSpace
	}
	return nil
}

// hasPut tells whether any branch of a transaction has a put.
func hasPut(r *pb.TxnRequest) bool {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if op.GetRequestPut() != nil || hasPut(op.GetRequestTxn()) {
				return true
			}
		}
	}
	return false
}

func (s *step) alarm(r *pb.AlarmRequest, header *pb.ResponseHeader) (proto.Message, error) {
	resp := &pb.AlarmResponse{Header: header}
	alarm, answer := newAlarm(r), newAlarm(r)
	switch r.Action {
	case pb.AlarmRequest_GET:
		resp.Alarms = s.state.alarmsOf(r.Alarm)
	case pb.AlarmRequest_ACTIVATE:
		if r.Alarm == pb.AlarmType_NONE {
			break
		}
		if err := s.state.raise(s.w.Batch(), alarm); err != nil {
			return nil, err
		}
		resp.Alarms = append(resp.Alarms, answer)
	case pb.AlarmRequest_DEACTIVATE:
		cleared, err := s.state.clear(s.w.Batch(), alarm)
		if err != nil {
			return nil, err
		}
		if cleared {
			resp.Alarms = append(resp.Alarms, answer)
		}
	default:
		return nil, ErrUnknownRequest
	}
	return resp, nil
}

func newAlarm(r *pb.AlarmRequest) *pb.AlarmMember {
	return &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
}

// publish sets what a member says of itself when it starts.
func (s *step) publish(r *membershippb.ClusterMemberAttrSetRequest) (proto.Message, error) {
	i, found := s.state.member(r.Member_ID)
	if !found {
		return nil, ErrMemberNotFound
	}
	member := s.state.members[i]
	member.Name = r.GetMemberAttributes().GetName()
	member.ClientURLs = r.GetMemberAttributes().GetClientUrls()
	if err := s.state.setMember(s.w.Batch(), member); err != nil {
		return nil, err
	}
	return &pb.EmptyResponse{}, nil
}

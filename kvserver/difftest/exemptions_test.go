package difftest

import (
	"bytes"
	"cmp"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// This file is the whole list of what may differ.

// differing are the fields whose values may differ, but not whether they are
// set, by full name.
var differing = map[protoreflect.FullName]string{
	"etcdserverpb.ResponseHeader.cluster_id":       "they are two clusters",
	"etcdserverpb.ResponseHeader.member_id":        "with a member each",
	"etcdserverpb.ResponseHeader.raft_term":        "elections are counted differently",
	"etcdserverpb.Member.ID":                       "derived from the peer URLs",
	"etcdserverpb.Member.peerURLs":                 "they listen on different ports",
	"etcdserverpb.Member.clientURLs":               "they listen on different ports",
	"etcdserverpb.StatusResponse.leader":           "a member's ID",
	"etcdserverpb.StatusResponse.raftTerm":         "elections are counted differently",
	"etcdserverpb.StatusResponse.raftIndex":        "what takes an entry of the log is the implementation's",
	"etcdserverpb.StatusResponse.raftAppliedIndex": "what takes an entry of the log is the implementation's",
	"etcdserverpb.StatusResponse.dbSize":           "different stores",
	"etcdserverpb.StatusResponse.dbSizeInUse":      "different stores",
	"etcdserverpb.AuthenticateResponse.token":      "secret, and random",
	"etcdserverpb.HashResponse.hash":               "of the whole store: raft's progress and the members are in it",
}

// mayBeUnset are those of them that are zero on one side only, at times.
var mayBeUnset = map[protoreflect.FullName]string{
	"etcdserverpb.StatusResponse.dbSizeInUse": "an empty store of ours uses nothing",
}

// adjusted are the answers that are changed before they are compared.
var adjusted = []struct {
	why    string
	adjust func(p *pair, request, response proto.Message)
}{
	{"the IDs of leases are chosen at random, unless the client chooses", func(_ *pair, request, response proto.Message) {
		asked, ok := request.(*pb.LeaseGrantRequest)
		if granted, also := response.(*pb.LeaseGrantResponse); ok && also && asked.GetID() == 0 && granted.GetID() > 0 {
			granted.ID = 1
		}
	}},
	{"the time left depends on when the request is served, and a new leader adds an election timeout", func(_ *pair, _, response proto.Message) {
		r, ok := response.(*pb.LeaseTimeToLiveResponse)
		if ok && r.GetTTL() > 0 && r.GetTTL() <= r.GetGrantedTTL()+2 {
			r.TTL = r.GetGrantedTTL()
		}
	}},
	{"etcd has the keys of a lease in the order of a map: none", func(_ *pair, _, response proto.Message) {
		if r, ok := response.(*pb.LeaseTimeToLiveResponse); ok {
			slices.SortFunc(r.GetKeys(), bytes.Compare)
		}
	}},
	{"a leader that has just begun gives all leases of one TTL the same time, and so no order", func(p *pair, _, response proto.Message) {
		if r, ok := response.(*pb.LeaseLeasesResponse); ok && p.restarts > 0 {
			slices.SortFunc(r.GetLeases(), func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.GetID(), b.GetID()) })
		}
	}},
}

// mask applies the lists, and returns which of the differing fields were set.
func mask(p *pair, request, response proto.Message) (set map[protoreflect.FullName]int) {
	for _, a := range adjusted {
		a.adjust(p, request, response)
	}
	set = map[protoreflect.FullName]int{}
	clearDiffering(response.ProtoReflect(), set)
	return set
}

func clearDiffering(m protoreflect.Message, set map[protoreflect.FullName]int) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case differing[field.FullName()] != "":
			if mayBeUnset[field.FullName()] == "" {
				set[field.FullName()]++
			}
			m.Clear(field)
		case field.Message() == nil || field.IsMap():
		case field.IsList():
			for i := range value.List().Len() {
				clearDiffering(value.List().Get(i).Message(), set)
			}
		default:
			clearDiffering(value.Message(), set)
		}
		return true
	})
}

// How the past of a watcher is divided into responses may differ, but at the
// ends of revisions only: etcd takes a thousand of them whatever their size and
// divides what is too large into fragments, ours takes no more than fit into a
// bounded memory.

// joinable returns the one of two lists of responses whose first has less, if
// both are about events at the same revision.
func joinable(want, got *[]answer) *[]answer {
	a, isA := (*want)[0].response.(*pb.WatchResponse)
	b, isB := (*got)[0].response.(*pb.WatchResponse)
	if !isA || !isB || a.GetHeader().GetRevision() != b.GetHeader().GetRevision() {
		return nil
	}
	switch n, m := len(a.GetEvents()), len(b.GetEvents()); {
	case n == 0 || m == 0:
		return nil
	case n < m || n == m && a.GetFragment() && !b.GetFragment():
		return want
	case n > m || b.GetFragment() && !a.GetFragment():
		return got
	default:
		return nil
	}
}

// join makes one response of the first two of a list. It returns false when
// that cannot be done.
func join(list *[]answer) bool {
	if len(*list) < 2 {
		return false
	}
	first := proto.CloneOf((*list)[0].response.(*pb.WatchResponse))
	second := (*list)[1].response.(*pb.WatchResponse)
	if first.GetHeader().GetRevision() != second.GetHeader().GetRevision() || len(second.GetEvents()) == 0 {
		return false
	}
	last := first.GetEvents()[len(first.GetEvents())-1].GetKv().GetModRevision()
	if next := second.GetEvents()[0].GetKv().GetModRevision(); next < last || next == last && !first.GetFragment() {
		return false
	}
	first.Events, first.Fragment = append(first.GetEvents(), second.GetEvents()...), second.GetFragment()
	*list = append([]answer{{response: first}}, (*list)[2:]...)
	return true
}

// exempted are the answers that may differ as a whole.
var exempted = []struct {
	why   string
	error bool // whether one may be an error
	where func(p *pair, request proto.Message) bool
}{
	{"while history is removed, in the background, the hash at the revision of a compaction is not settled, nor which ones are still remembered", true, func(p *pair, request proto.Message) bool {
		r, ok := request.(*pb.HashKVRequest)
		return ok && p.compacting && p.compactions[r.GetRevision()]
	}},
	{"which compactions' hashes a member remembers when it has restarted depends on how much of its log it has applied again", true, func(p *pair, request proto.Message) bool {
		r, ok := request.(*pb.HashKVRequest)
		return ok && p.compactions[r.GetRevision()] && r.GetRevision() <= p.restarted
	}},
	{"etcd sorts each message of a stream by itself and goes on behind its last key: some keys are left out, others come twice", false, func(_ *pair, request proto.Message) bool {
		r, ok := request.(*streamRequest)
		return ok && r.GetSortTarget() != pb.RangeRequest_KEY && r.GetSortOrder() == pb.RangeRequest_NONE
	}},
}

// exempt tells whether the answers to a request may differ as a whole.
func exempt(p *pair, request proto.Message, want, got answer) bool {
	for _, e := range exempted {
		if e.where(p, request) && (e.error || want.response != nil && got.response != nil) {
			return true
		}
	}
	return false
}

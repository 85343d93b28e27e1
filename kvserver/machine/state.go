package machine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/machine/auth"
)

// Keys of the machine's own state, beside those of the multi-version store
// (see mvcc.Store.DB). On disk: do not change.
const (
	appliedKey       = "s/applied"       // index, term: 8 bytes each
	configurationKey = "s/configuration" // index: 8 bytes; then the bytes of the entry
	memberPrefix     = "s/member/"       // id: 8 bytes -> membershippb.Member
	removedPrefix    = "s/removed/"      // id: 8 bytes of a former member -> nothing
	alarmPrefix      = "s/alarm/"        // type: 4 bytes, member id: 8 bytes -> etcdserverpb.AlarmMember
)

// Position is how far a state machine has come in the log.
type Position struct {
	// Index and Term of the last entry applied; zero when there is none.
	Index, Term uint64
	// ConfigurationIndex is the index of the last membership entry, zero when
	// there is none, and Configuration what it held.
	ConfigurationIndex uint64
	Configuration      []byte
}

// Member is one entry of the member list.
type Member struct {
	ID         uint64
	Name       string // empty until the member has started and published it
	PeerURLs   []string
	ClientURLs []string // empty until the member has started and published them
	Learner    bool
}

// state is what the machine knows besides the keys. A published state does not
// change any more; to change one, copy it and replace its slices.
type state struct {
	Position
	members   []Member          // by id
	removed   []uint64          // former members, ascending
	alarms    []*pb.AlarmMember // by type, then member id
	auth      *auth.State
	downgrade string // version to go back to; empty when there is none
}

func loadState(r pebble.Reader) (*state, error) {
	s := &state{}
	applied, err := get(r, appliedKey)
	if err != nil {
		return nil, err
	}
	if applied != nil {
		if len(applied) != 16 {
			return nil, fmt.Errorf("read %s: %d bytes, want 16", appliedKey, len(applied))
		}
		s.Index, s.Term = binary.BigEndian.Uint64(applied), binary.BigEndian.Uint64(applied[8:])
	}
	configuration, err := get(r, configurationKey)
	if err != nil {
		return nil, err
	}
	if configuration != nil {
		if len(configuration) < 8 {
			return nil, fmt.Errorf("read %s: %d bytes, want 8 and more", configurationKey, len(configuration))
		}
		s.ConfigurationIndex = binary.BigEndian.Uint64(configuration)
		s.Configuration = configuration[8:]
	}
	err = eachWithPrefix(r, memberPrefix, func(value []byte) error {
		var m membershippb.Member
		if err := proto.Unmarshal(value, &m); err != nil {
			return err
		}
		s.members = append(s.members, memberFromProto(&m))
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachBelow(r, []byte(removedPrefix), func(id, _ []byte) error {
		if len(id) != 8 {
			return fmt.Errorf("%d bytes, want 8", len(id))
		}
		s.removed = append(s.removed, binary.BigEndian.Uint64(id))
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachWithPrefix(r, alarmPrefix, func(value []byte) error {
		alarm := &pb.AlarmMember{}
		if err := proto.Unmarshal(value, alarm); err != nil {
			return err
		}
		s.alarms = append(s.alarms, alarm)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.downgrade, err = loadDowngrade(r); err != nil {
		return nil, err
	}
	if s.auth, err = loadAuth(r); err != nil {
		return nil, err
	}
	return s, nil
}

// get returns a copy of a value, nil when there is none.
func get(r pebble.Reader, key string) ([]byte, error) {
	v, closer, err := r.Get([]byte(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	v = append([]byte{}, v...)
	if err := closer.Close(); err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return v, nil
}

func eachWithPrefix(r pebble.Reader, prefix string, fn func(value []byte) error) error {
	return eachBelow(r, []byte(prefix), func(_, value []byte) error { return fn(value) })
}

// eachBelow calls fn with what follows prefix in the keys that begin with it,
// in order, and with the values. Both are valid only during the call.
func eachBelow(r pebble.Reader, prefix []byte, fn func(rest, value []byte) error) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return fmt.Errorf("read %q: %w", prefix, err)
	}
	for valid := it.First(); valid; valid = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = fn(it.Key()[len(prefix):], v)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read %q: %w", prefix, err), it.Close())
		}
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("read %q: %w", prefix, err)
	}
	return nil
}

// prefixEnd is the first key after all that begin with prefix, which must have
// a byte below 0xff.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	end[len(end)-1]++
	return end
}

func putPosition(batch *pebble.Batch, p Position) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), p.Index)
	b = binary.BigEndian.AppendUint64(b, p.Term)
	if err := batch.Set([]byte(appliedKey), b, nil); err != nil {
		return fmt.Errorf("write the applied index: %w", err)
	}
	return nil
}

func putConfiguration(batch *pebble.Batch, p Position) error {
	b := binary.BigEndian.AppendUint64(nil, p.ConfigurationIndex)
	if err := batch.Set([]byte(configurationKey), append(b, p.Configuration...), nil); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// member returns the index of a member in the list.
func (s *state) member(id uint64) (int, bool) {
	return slices.BinarySearchFunc(s.members, id, func(m Member, id uint64) int { return cmp.Compare(m.ID, id) })
}

// setMember adds or replaces a member.
func (s *state) setMember(batch *pebble.Batch, m Member) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.proto())
	if err == nil {
		err = batch.Set(binary.BigEndian.AppendUint64([]byte(memberPrefix), m.ID), value, nil)
	}
	if err != nil {
		return fmt.Errorf("write member %x: %w", m.ID, err)
	}
	s.members = slices.Clone(s.members)
	if i, found := s.member(m.ID); found {
		s.members[i] = m
	} else {
		s.members = slices.Insert(s.members, i, m)
	}
	return nil
}

// setMembers makes the list that of a membership entry. Members keep what they
// have said of themselves; one that is missing was removed and never returns.
func (s *state) setMembers(batch *pebble.Batch, members []Member) error {
	if len(members) == 0 {
		return nil
	}
	for _, gone := range s.members {
		if slices.ContainsFunc(members, func(m Member) bool { return m.ID == gone.ID }) {
			continue
		}
		if err := s.removeMember(batch, gone.ID); err != nil {
			return err
		}
	}
	for _, member := range members {
		if i, found := s.member(member.ID); found {
			member.Name, member.ClientURLs = s.members[i].Name, s.members[i].ClientURLs
		}
		if err := s.setMember(batch, member); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) removeMember(batch *pebble.Batch, id uint64) error {
	err := batch.Delete(binary.BigEndian.AppendUint64([]byte(memberPrefix), id), nil)
	if err == nil {
		err = batch.Set(binary.BigEndian.AppendUint64([]byte(removedPrefix), id), nil, nil)
	}
	if err != nil {
		return fmt.Errorf("remove member %x: %w", id, err)
	}
	s.members = slices.DeleteFunc(slices.Clone(s.members), func(m Member) bool { return m.ID == id })
	if i, found := slices.BinarySearch(s.removed, id); !found {
		s.removed = slices.Insert(slices.Clone(s.removed), i, id)
	}
	return nil
}

func (m Member) proto() *membershippb.Member {
	return &membershippb.Member{
		ID:               m.ID,
		RaftAttributes:   &membershippb.RaftAttributes{PeerUrls: m.PeerURLs, IsLearner: m.Learner},
		MemberAttributes: &membershippb.Attributes{Name: m.Name, ClientUrls: m.ClientURLs},
	}
}

func memberFromProto(m *membershippb.Member) Member {
	return Member{
		ID:         m.GetID(),
		Name:       m.GetMemberAttributes().GetName(),
		PeerURLs:   m.GetRaftAttributes().GetPeerUrls(),
		ClientURLs: m.GetMemberAttributes().GetClientUrls(),
		Learner:    m.GetRaftAttributes().GetIsLearner(),
	}
}

func (m Member) clone() Member {
	m.PeerURLs, m.ClientURLs = slices.Clone(m.PeerURLs), slices.Clone(m.ClientURLs)
	return m
}

func alarmKey(a *pb.AlarmMember) []byte {
	b := binary.BigEndian.AppendUint32([]byte(alarmPrefix), uint32(a.Alarm))
	return binary.BigEndian.AppendUint64(b, a.MemberID)
}

func compareAlarms(a, b *pb.AlarmMember) int { return bytes.Compare(alarmKey(a), alarmKey(b)) }

// raised tells whether any member raised an alarm of this type.
func (s *state) raised(t pb.AlarmType) bool {
	return slices.ContainsFunc(s.alarms, func(a *pb.AlarmMember) bool { return a.Alarm == t })
}

// alarmsOf returns copies of the alarms of one type; NONE stands for all.
func (s *state) alarmsOf(t pb.AlarmType) []*pb.AlarmMember {
	var out []*pb.AlarmMember
	for _, a := range s.alarms {
		if t == pb.AlarmType_NONE || a.Alarm == t {
			out = append(out, &pb.AlarmMember{MemberID: a.MemberID, Alarm: a.Alarm})
		}
	}
	return out
}

func (s *state) raise(batch *pebble.Batch, a *pb.AlarmMember) error {
	i, found := slices.BinarySearchFunc(s.alarms, a, compareAlarms)
	if found {
		return nil
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err == nil {
		err = batch.Set(alarmKey(a), value, nil)
	}
	if err != nil {
		return fmt.Errorf("write an alarm: %w", err)
	}
	s.alarms = slices.Insert(slices.Clone(s.alarms), i, a)
	return nil
}

// clear removes an alarm and tells whether it was raised.
func (s *state) clear(batch *pebble.Batch, a *pb.AlarmMember) (bool, error) {
	i, found := slices.BinarySearchFunc(s.alarms, a, compareAlarms)
	if !found {
		return false, nil
	}
	if err := batch.Delete(alarmKey(a), nil); err != nil {
		return false, fmt.Errorf("remove an alarm: %w", err)
	}
	s.alarms = slices.Delete(slices.Clone(s.alarms), i, i+1)
	return true, nil
}

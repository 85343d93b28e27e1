package machine

import (
	"errors"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The list follows the membership entries; what members have said of
// themselves stays, and who is missing is gone for good.
func TestMembersFollowTheLog(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	named := []Member{seededMembers[0].clone(), seededMembers[1].clone()}
	named[0].Name, named[0].ClientURLs = "a", []string{"http://a:2379"}
	founding := Position{Index: 1, Term: 1, ConfigurationIndex: 1, Configuration: []byte("first")}
	for range 2 { // founding can be repeated
		if err := m.Membership().Seed(named, founding); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Membership().Seed(named, Position{Index: 2, Term: 1}); !errors.Is(err, ErrNotNew) {
		t.Errorf("founding at another index: %v", err)
	}
	added := Member{ID: 3, PeerURLs: []string{"http://c:1"}, Learner: true}
	moved := Member{ID: named[0].ID, PeerURLs: []string{"http://moved:1"}}
	apply := func(index uint64, members ...Member) {
		t.Helper()
		if _, err := m.Apply([]Entry{{Index: index, Term: 2, Configuration: []byte("later"), Members: members}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	apply(1, added) // applied before: the founding entry is not repeated
	apply(2, moved, named[1], added)
	wantMoved := named[0].clone()
	wantMoved.PeerURLs = moved.PeerURLs
	check := func(removed []uint64, want ...Member) {
		t.Helper()
		got := map[uint64]Member{}
		for _, member := range m.Members() {
			got[member.ID] = member
		}
		if len(got) != len(want) {
			t.Errorf("members %+v, want %+v", got, want)
		}
		for _, member := range want {
			if !reflect.DeepEqual(got[member.ID], member) {
				t.Errorf("member %+v, want %+v", got[member.ID], member)
			}
		}
		if !reflect.DeepEqual(m.Membership().Removed(), removed) {
			t.Errorf("removed %x, want %x", m.Membership().Removed(), removed)
		}
	}
	check(nil, wantMoved, named[1], added)
	added.Learner = false
	apply(3, moved, added)
	apply(4, moved)
	check([]uint64{added.ID, named[1].ID}, wantMoved)

	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	m = openMem(t, fs)
	defer closeMachine(t, m)
	check([]uint64{added.ID, named[1].ID}, wantMoved)
	if index := m.Membership().Index(); index != 4 {
		t.Errorf("the last membership entry is %d", index)
	}
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	if got := image.Removed(); !reflect.DeepEqual(got, m.Membership().Removed()) {
		t.Errorf("the image has %x removed", got)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
}

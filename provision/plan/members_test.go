package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"muster/provision/desired"
)

// the returns members of the inventory by their letters.
func the(letters string) []desired.Member {
	var all []desired.Member
	for _, l := range strings.Split(letters, "") {
		all = append(all, desired.Member{Name: l, PeerURL: "https://" + l + ":2380", ClientURL: "https://" + l + ":2379"})
	}
	return all
}

// list reads a member list: a letter each, followed by ! when it is dead, ? when
// it has not started, ~ when it is a learner.
func list(text string) Members {
	var m Members
	for i, word := range strings.Fields(text) {
		name := word[:1]
		l := Listed{ID: uint64(100 + i), Name: name, PeerURLs: []string{"https://" + name + ":2380"}, ClientURLs: []string{"https://" + name + ":2379"}, Alive: true}
		if strings.Contains(word, "!") {
			l.Alive = false
		}
		if strings.Contains(word, "?") {
			l.Name, l.ClientURLs, l.Alive = "", nil, false
		}
		l.Learner = strings.Contains(word, "~")
		m = append(m, l)
	}
	return m
}

func TestMoves(t *testing.T) {
	for _, test := range []struct {
		list, want string
		moves      string
		refused    string
	}{
		{list: "a b c", want: "abc"},
		{list: "a", want: "abc", moves: "add b, start b, promote b, add c, start c, promote c"},
		{list: "a b c d e", want: "abc", moves: "remove d, remove e"},
		{list: "a b c", want: "abd", moves: "add d, start d, promote d, remove c"},
		{list: "a b c!", want: "abd", moves: "remove c, add d, start d, promote d"},
		{list: "a b? c", want: "abc", moves: "start b"},
		{list: "a b?~", want: "ab", moves: "start b, promote b"},
		{list: "a b~", want: "ab", moves: "promote b"},
		{list: "a b~ c", want: "abcd", moves: "promote b, add d, start d, promote d"},
		{list: "a b c d!", want: "abce", moves: "remove d, add e, start e, promote e"},
		{list: "a b", want: "a", moves: "remove b"},
		{list: "a b!", want: "a", moves: "remove b"},
		{list: "a b! c! d", want: "ab", refused: "removing d would leave 1 voting members that answer, and 2 are needed"},
		{list: "a b! c", want: "ab", refused: "removing c would leave 1 voting members that answer, and 2 are needed"},
		{list: "a b", want: "cd", moves: "add c, start c, promote c, add d, start d, promote d, remove a, remove b"},
	} {
		t.Run(test.list+" to "+test.want, func(t *testing.T) {
			moves, err := list(test.list).Moves(the(test.want))
			var quorum *QuorumError
			if (test.refused != "") != errors.As(err, &quorum) || err != nil && !strings.Contains(err.Error(), test.refused) {
				t.Fatalf("error %v, want %q", err, test.refused)
			}
			var got []string
			for _, m := range moves {
				got = append(got, fmt.Sprintf("%s %s", m.Action, m.Name))
			}
			if test.refused == "" && strings.Join(got, ", ") != test.moves {
				t.Errorf("moves %q, want %q", got, test.moves)
			}
		})
	}
	if moves, err := Members(nil).Moves(the("abc")); err != nil || len(moves) > 0 {
		t.Errorf("of a list that nobody could tell: %v, %v", moves, err)
	}
}

func TestMovedPeerURL(t *testing.T) {
	want := the("ab")
	want[1].PeerURL = "https://b:9999"
	moves, err := list("a b").Moves(want)
	if err != nil || len(moves) != 1 || moves[0].Action != Update || moves[0].ID != 101 || moves[0].PeerURL != "https://b:9999" {
		t.Errorf("moves %+v, error %v", moves, err)
	}
}

func TestMayStop(t *testing.T) {
	for _, test := range []struct {
		list string
		id   uint64
		ok   bool
	}{
		{"a", 100, true},
		{"a b", 100, true},
		{"a b!", 100, false},
		{"a b!", 101, true},
		{"a b c", 100, true},
		{"a b c!", 100, false},
		{"a b c!", 102, true},
		{"a b c d! e", 100, true},
		{"a b c d! e!", 100, false},
		{"a b~", 100, true},    // nobody else votes
		{"a b c~", 102, true},  // it does not vote
		{"a b! c~", 102, true}, // nor is it missed
	} {
		if err := list(test.list).MayStop(test.id, "it"); (err == nil) != test.ok {
			t.Errorf("stopping %d of %s: %v", test.id, test.list, err)
		}
	}
}

func TestJoining(t *testing.T) {
	b := list("c a b?").Joining(the("abcd"))
	want := desired.Bootstrap{InitialCluster: "a=https://a:2380,b=https://b:2380,c=https://c:2380", State: "existing"}
	if b != want {
		t.Errorf("%+v, want %+v", b, want)
	}
	if names := Names(b); !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("names %q", names)
	}
}

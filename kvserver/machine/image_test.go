package machine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/authpb"
	"google.golang.org/protobuf/proto"
)

// rebuild makes a new machine of an image, in the way in which one comes from
// a file.
func rebuild(t testing.TB, i *Image) *Machine {
	t.Helper()
	const dir = "built"
	fs := vfs.NewMem()
	m := openMem(t, fs)
	b, err := NewBuilder(dir, Options{FS: fs, CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Changes(context.Background(), b.Change); err != nil {
		t.Fatal(err)
	}
	if err := i.EachLease(b.Lease); err != nil {
		t.Fatal(err)
	}
	if err := i.EachV2(b.V2); err != nil {
		t.Fatal(err)
	}
	for _, a := range i.Alarms() {
		if err := b.Alarm(a); err != nil {
			t.Fatal(err)
		}
	}
	var users []*authpb.User
	for _, u := range i.Auth().Users() {
		users = append(users, proto.CloneOf(u))
	}
	var roles []*authpb.Role
	for _, r := range i.Auth().Roles() {
		roles = append(roles, proto.CloneOf(r))
	}
	if err := b.Auth(i.Auth().Enabled(), i.Auth().Revision(), users, roles); err != nil {
		t.Fatal(err)
	}
	if err := b.Finish(i.Head().Compacted); err != nil {
		t.Fatal(err)
	}
	if err := m.Install(dir); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestImage rebuilds a machine from its image, at many places of a random
// history, while entries go on being applied, and compares the two byte by
// byte but for what a rebuilt one does not have: members and a place in the
// log.
func TestImage(t *testing.T) {
	g := newGenerator(t)
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Fatal(err)
	}
	for round := range 20 {
		step := func() {
			for range 1 + g.IntN(60) {
				g.revision, g.compacted = m.Revision(), m.CompactedRevision()
				applyNext(t, m, g.anyRequest(), g.authRequest())
			}
		}
		step()
		want := withoutPlace(dump(t, m))
		index, term := m.Applied()
		image, err := m.Image()
		if err != nil {
			t.Fatal(err)
		}
		head := image.Head()
		step()
		if p := image.Position(); p.Index != index || p.Term != term || len(image.Members()) != len(seededMembers) {
			t.Errorf("round %d: an image at %+v with members %v, the machine was at %d, %d", round, p, image.Members(), index, term)
		}
		if now, _ := m.Applied(); now == index {
			t.Fatal("nothing was applied beside the image")
		}
		rebuilt := rebuild(t, image)
		if err := image.Close(); err != nil {
			t.Fatal(err)
		}
		if index, _ := rebuilt.Applied(); index != 0 || len(rebuilt.Members()) != 0 {
			t.Errorf("round %d: the rebuilt machine has applied %d and has members %v", round, index, rebuilt.Members())
		}
		if rebuilt.Revision() != head.Current {
			t.Errorf("round %d: the rebuilt machine is at revision %d, the image at %d", round, rebuilt.Revision(), head.Current)
		}
		sameDump(t, "rebuilt", withoutPlace(dump(t, rebuilt)), want)
		if err := rebuilt.Membership().Seed(seededMembers, Position{}); err != nil {
			t.Errorf("round %d: a rebuilt machine takes no members: %v", round, err)
		}
		closeMachine(t, rebuilt)
	}
}

// withoutPlace leaves out of a dump what Builder leaves out.
func withoutPlace(lines []string) []string {
	return slices.DeleteFunc(lines, func(line string) bool {
		for _, prefix := range []string{appliedKey, configurationKey, memberPrefix} {
			if strings.HasPrefix(line, `"`+prefix) {
				return true
			}
		}
		return false
	})
}

// A lease that does not exist keeps no keys: they would go when somebody else
// is granted one of its ID.
func TestBuilderLeases(t *testing.T) {
	m := openMem(t, vfs.NewMem())
	defer closeMachine(t, m)
	mustApply(t, m, grant(7), putWith("a", 7), putWith("b", 7), putWith("c", 7), put("c"))
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	b, err := NewBuilder("built", Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(image.Changes(context.Background(), b.Change), b.Finish(-1), image.Close()); err != nil {
		t.Fatal(err)
	}
	without := openMem(t, fs)
	defer closeMachine(t, without)
	if err := without.Install("built"); err != nil {
		t.Fatal(err)
	}
	mustApply(t, without, grant(7))
	if keys := keysOf(t, without, 7); len(keys) != 0 {
		t.Errorf("a new lease has the keys %q of one that was there before", keys)
	}
	if keys := keysOf(t, m, 7); strings.Join(keys, "") != "ab" {
		t.Errorf("the original has %q", keys)
	}
}

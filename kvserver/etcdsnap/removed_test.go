package etcdsnap

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"muster/kvserver/machine"
)

// keysOf collects the keys of one bucket.
type keysOf struct {
	wanted backend.Bucket
	inside bool
	keys   []string
}

func (k *keysOf) bucket(b backend.Bucket) error {
	k.inside = b.ID() == k.wanted.ID()
	return nil
}

func (k *keysOf) put(key, _ []byte) error {
	if k.inside {
		k.keys = append(k.keys, string(key))
	}
	return nil
}

// Who was removed stays removed for an etcd that starts from the file.
func TestRemovedMembersAreExported(t *testing.T) {
	m, err := machine.Open(filepath.Join(t.TempDir(), "kv"), machine.Options{CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	stays := machine.Member{ID: 5, Name: "a", PeerURLs: []string{"http://127.0.0.1:1"}}
	founders := []machine.Member{stays, {ID: 0xab}, {ID: 0xff00000000000012}}
	if err := m.Membership().Seed(founders, machine.Position{Index: 1, Term: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply([]machine.Entry{{Index: 2, Term: 1, Configuration: []byte("x"), Members: founders[:1]}}, nil); err != nil {
		t.Fatal(err)
	}
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(image.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	}()
	for _, test := range []struct {
		bucket backend.Bucket
		want   []string
	}{
		{schema.MembersRemoved, []string{"ab", "ff00000000000012"}},
		{schema.Members, []string{"5"}},
	} {
		got := &keysOf{wanted: test.bucket}
		if err := contents(t.Context(), image, got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.keys, test.want) {
			t.Errorf("bucket %s has %q, want %q", test.bucket.Name(), got.keys, test.want)
		}
	}
}

package machine

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
)

// A downgrade is remembered until it is cancelled, by images as well.
func TestDowngradeIsStored(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	for _, step := range []struct {
		enabled     bool
		target      string
		wantVersion string
	}{
		{false, "", Version},
		{true, "3.6.0", "3.6.0"},
		{false, "3.6.0", Version},
	} {
		applyNext(t, m, &pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{Enabled: step.enabled, Ver: step.target}})
		if err := m.Flush(); err != nil {
			t.Fatal(err)
		}
		closeMachine(t, m)
		m = openMem(t, fs)
		image, err := m.Image()
		if err != nil {
			t.Fatal(err)
		}
		got, inImage, under := m.Membership().Version(), image.Version(), m.Membership().Downgrade() != ""
		if got != step.wantVersion || inImage != step.wantVersion || under != step.enabled {
			t.Errorf("%+v: version %s, %s in an image, a downgrade under way: %v", step, got, inImage, under)
		}
		if err := image.Close(); err != nil {
			t.Fatal(err)
		}
	}
	closeMachine(t, m)
}

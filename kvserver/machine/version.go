package machine

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/proto"
)

// Version is that of the etcd whose cluster this program makes.
const Version = "3.7.0"

const downgradeKey = "s/downgrade" // the version to go back to. On disk: do not change.

// Downgrade is the version that the cluster is to go back to; empty when it is
// not.
func (p Membership) Downgrade() string { return p.m.state.Load().downgrade }

// Version is that of the cluster: Version, or that of a downgrade which has
// been enabled. What is stored is the same for both.
func (p Membership) Version() string { return p.m.state.Load().version() }

// Version is Membership.Version of the image.
func (i *Image) Version() string { return i.state.version() }

func (s *state) version() string {
	if s.downgrade != "" {
		return s.downgrade
	}
	return Version
}

// setDowngrade enables a downgrade, which the proposer has found possible, or
// cancels it.
func (s *step) setDowngrade(r *membershippb.DowngradeInfoSetRequest) (proto.Message, error) {
	target := ""
	if r.GetEnabled() {
		target = r.GetVer()
	}
	if err := s.w.Batch().Set([]byte(downgradeKey), []byte(target), nil); err != nil {
		return nil, fmt.Errorf("write the downgrade: %w", err)
	}
	s.state.downgrade = target
	return &pb.EmptyResponse{}, nil
}

func loadDowngrade(r pebble.Reader) (string, error) {
	target, err := get(r, downgradeKey)
	return string(target), err
}

package etcdapi

import (
	"context"
	"errors"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"muster/kvserver/etcdsnap"
)

type maintenanceService struct {
	pb.UnsafeMaintenanceServer
	*api
	exporter *etcdsnap.Exporter
}

var _ pb.MaintenanceServer = (*maintenanceService)(nil)

// Status implements etcdserverpb.MaintenanceServer.
func (s *maintenanceService) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	view := s.replica.Status()
	header := s.headerNow()
	response := &pb.StatusResponse{
		Header:           header,
		Version:          version.Version,
		StorageVersion:   etcdsnap.Version,
		IsLearner:        s.isLearner(),
		DowngradeInfo:    &pb.DowngradeInfo{},
		DbSize:           s.store.Space().Size(),
		DbSizeInUse:      s.store.Space().InUse(),
		DbSizeQuota:      s.limits.QuotaBytes,
		Leader:           view.Leader,
		RaftTerm:         view.Term,
		RaftIndex:        view.Committed,
		RaftAppliedIndex: view.Applied,
	}
	if view.Leader == 0 {
		response.Errors = append(response.Errors, rpctypes.ErrNoLeader.Error())
	}
	for _, alarm := range s.store.Alarms() {
		response.Errors = append(response.Errors, alarm.String())
	}
	return response, nil
}

// MoveLeader implements etcdserverpb.MaintenanceServer.
func (s *maintenanceService) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.RequestTimeout)
	defer cancel()
	if err := s.replica.MoveLeader(ctx, r.GetTargetID()); err != nil {
		return nil, wireError(err)
	}
	return &pb.MoveLeaderResponse{}, nil
}

// Alarm implements etcdserverpb.MaintenanceServer.
func (s *maintenanceService) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return write[*pb.AlarmResponse](ctx, s.api, &pb.InternalRaftRequest{Alarm: r})
}

// HashKV implements etcdserverpb.MaintenanceServer.
func (s *maintenanceService) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	hash, err := s.store.History().HashKV(ctx, r.GetRevision())
	if err != nil {
		return nil, wireError(err)
	}
	return &pb.HashKVResponse{
		Header:          s.stamp(&pb.ResponseHeader{Revision: hash.Current}),
		Hash:            hash.Hash,
		CompactRevision: hash.Compacted,
		HashRevision:    hash.Revision,
	}, nil
}

// Hash implements etcdserverpb.MaintenanceServer.
func (s *maintenanceService) Hash(ctx context.Context, _ *pb.HashRequest) (_ *pb.HashResponse, err error) {
	image, err := s.store.Image()
	if err != nil {
		return nil, wireError(err)
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	hash, err := etcdsnap.Hash(ctx, image)
	if err != nil {
		return nil, wireError(err)
	}
	return &pb.HashResponse{Header: s.stamp(&pb.ResponseHeader{Revision: image.Head().Current}), Hash: hash}, nil
}

// Defragment implements etcdserverpb.MaintenanceServer. The store gives space
// back on its own; all there is to do is to finish removing what compactions
// have made unreadable. Requests are served meanwhile.
func (s *maintenanceService) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := s.scrub(ctx); err != nil {
		return nil, wireError(err)
	}
	return &pb.DefragmentResponse{}, nil
}

// downgradeTarget is the only version that etcd would accept.
const downgradeTarget = "3.6.0"

// Downgrade implements etcdserverpb.MaintenanceServer. Checking and cancelling
// are answered as etcd does when no downgrade is under way, and none ever is:
// there is no older musterd to go back to.
func (s *maintenanceService) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	response := &pb.DowngradeResponse{Version: version.Cluster(etcdsnap.Version)}
	switch r.GetAction() {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		if err := s.checkDowngrade(ctx, r.GetVersion()); err != nil {
			return nil, wireError(err)
		}
		if r.GetAction() == pb.DowngradeRequest_ENABLE {
			return nil, status.Error(codes.FailedPrecondition, "musterd has no older version to downgrade to; to go back to etcd, save a snapshot here and restore it there with etcdutl")
		}
	case pb.DowngradeRequest_CANCEL: // etcd does not mind that there is none
	default:
		return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
	}
	response.Header = s.headerNow()
	return response, nil
}

// checkDowngrade is etcd's check of a target: major and minor count, the patch
// may be left out.
func (s *maintenanceService) checkDowngrade(ctx context.Context, target string) error {
	wanted, err := semver.NewVersion(target)
	if err != nil {
		if wanted, err = semver.NewVersion(target + ".0"); err != nil {
			return rpctypes.ErrGRPCWrongDowngradeVersionFormat
		}
	}
	if err := s.awaitRead(ctx, false); err != nil {
		return err
	}
	wanted.Patch, wanted.PreRelease, wanted.Metadata = 0, "", ""
	if wanted.String() != downgradeTarget {
		return rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	return nil
}

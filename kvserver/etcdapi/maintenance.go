package etcdapi

import (
	"context"
	"errors"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"muster/kvserver/etcdsnap"
	"muster/kvserver/machine"
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
		StorageVersion:   s.store.Membership().Version(),
		IsLearner:        s.store.Membership().IsLearner(s.replica.Member()),
		DowngradeInfo:    downgradeInfo(s.store.Membership().Downgrade()),
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
	if err := scrub(ctx, s.store.Space()); err != nil {
		return nil, wireError(err)
	}
	return &pb.DefragmentResponse{}, nil
}

func downgradeInfo(target string) *pb.DowngradeInfo {
	return &pb.DowngradeInfo{Enabled: target != "", TargetVersion: target}
}

// Downgrade implements etcdserverpb.MaintenanceServer. As in etcd a downgrade
// that is enabled has the cluster call itself by the version before. There is
// no musterd of that version to go on with, but snapshots are made for an etcd
// of that version from then on.
func (s *maintenanceService) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	response, err := s.downgrade(ctx, r)
	if err != nil {
		return nil, wireError(err)
	}
	response.Header = s.headerNow()
	return response, nil
}

func (s *maintenanceService) downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	set := &membershippb.DowngradeInfoSetRequest{}
	switch r.GetAction() {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		target, err := parseDowngrade(r.GetVersion())
		if err != nil {
			return nil, err
		}
		if err := s.awaitRead(ctx, false); err != nil {
			return nil, err
		}
		if err := checkDowngrade(target, s.store.Membership()); err != nil {
			return nil, err
		}
		set.Enabled, set.Ver = true, target.String()
	case pb.DowngradeRequest_CANCEL:
		if err := s.awaitRead(ctx, false); err != nil {
			return nil, err
		}
	default:
		return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
	}
	// As in etcd, which changes it a little later, it is the version before.
	response := &pb.DowngradeResponse{Version: version.Cluster(s.store.Membership().Version())}
	// etcd does not mind if there is nothing to cancel.
	nothing := !set.Enabled && s.store.Membership().Downgrade() == ""
	if r.GetAction() == pb.DowngradeRequest_VALIDATE || nothing {
		return response, nil
	}
	_, err := s.propose(ctx, &pb.InternalRaftRequest{DowngradeInfoSet: set})
	return response, err
}

// parseDowngrade reads a target: major and minor count, the patch may be left
// out.
func parseDowngrade(text string) (*semver.Version, error) {
	target, err := semver.NewVersion(text)
	if err != nil {
		if target, err = semver.NewVersion(text + ".0"); err != nil {
			return nil, rpctypes.ErrGRPCWrongDowngradeVersionFormat
		}
	}
	return &semver.Version{Major: target.Major, Minor: target.Minor}, nil
}

// checkDowngrade allows one minor version at a time.
func checkDowngrade(target *semver.Version, cluster machine.Membership) error {
	allowed := semver.New(cluster.Version())
	allowed.Minor--
	switch {
	case !target.Equal(*allowed):
		return rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	case cluster.Downgrade() != "":
		return rpctypes.ErrGRPCDowngradeInProcess
	}
	return nil
}

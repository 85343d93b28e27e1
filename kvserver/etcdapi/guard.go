package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// need is what a method asks of its caller before it begins, while auth is
// enabled.
type need int

const (
	// needRoot is the need of a method that is not listed: whoever adds one has
	// to decide.
	needRoot need = iota
	// needUser asks for any user.
	needUser
	// needNothing leaves it to the method, which asks for the permission on the
	// keys it is about, or to the state machine.
	needNothing
)

// needOfMethod lists the methods that root need not call itself. etcd once
// forgot some of the others (CVE-2026-33413).
func needOfMethod(method string) need {
	switch method {
	case pb.Lease_LeaseGrant_FullMethodName,
		pb.Lease_LeaseRevoke_FullMethodName,
		pb.Lease_LeaseTimeToLive_FullMethodName,
		pb.Cluster_MemberList_FullMethodName,
		pb.Maintenance_Status_FullMethodName:
		return needUser
	case pb.KV_Range_FullMethodName,
		pb.KV_RangeStream_FullMethodName,
		pb.KV_Put_FullMethodName,
		pb.KV_DeleteRange_FullMethodName,
		pb.KV_Txn_FullMethodName,
		pb.Watch_Watch_FullMethodName,
		pb.Lease_LeaseLeases_FullMethodName,
		pb.Lease_LeaseKeepAlive_FullMethodName,
		grpc_health_v1.Health_Check_FullMethodName,
		grpc_health_v1.Health_List_FullMethodName,
		grpc_health_v1.Health_Watch_FullMethodName:
		return needNothing
	// Locks and elections are keys, and leases that are asked for one by one.
	case v3lockpb.Lock_Lock_FullMethodName,
		v3lockpb.Lock_Unlock_FullMethodName,
		v3electionpb.Election_Campaign_FullMethodName,
		v3electionpb.Election_Proclaim_FullMethodName,
		v3electionpb.Election_Leader_FullMethodName,
		v3electionpb.Election_Observe_FullMethodName,
		v3electionpb.Election_Resign_FullMethodName:
		return needNothing
	// The state machine knows which of these are for root.
	case pb.Auth_AuthEnable_FullMethodName,
		pb.Auth_AuthDisable_FullMethodName,
		pb.Auth_AuthStatus_FullMethodName,
		pb.Auth_Authenticate_FullMethodName,
		pb.Auth_UserAdd_FullMethodName,
		pb.Auth_UserGet_FullMethodName,
		pb.Auth_UserList_FullMethodName,
		pb.Auth_UserDelete_FullMethodName,
		pb.Auth_UserChangePassword_FullMethodName,
		pb.Auth_UserGrantRole_FullMethodName,
		pb.Auth_UserRevokeRole_FullMethodName,
		pb.Auth_RoleAdd_FullMethodName,
		pb.Auth_RoleGet_FullMethodName,
		pb.Auth_RoleList_FullMethodName,
		pb.Auth_RoleDelete_FullMethodName,
		pb.Auth_RoleGrantPermission_FullMethodName,
		pb.Auth_RoleRevokePermission_FullMethodName:
		return needNothing
	default:
		return needRoot
	}
}

// needOf tells what a call needs. To see the alarms is not to change them.
func needOf(method string, request any) need {
	if alarm, ok := request.(*pb.AlarmRequest); ok && alarm.GetAction() == pb.AlarmRequest_GET {
		return needUser
	}
	return needOfMethod(method)
}

// admit refuses a call that its caller may not make whatever it is about.
func (a *api) admit(ctx context.Context, n need) error {
	if n == needNothing || !a.store.Auth().Enabled() {
		return nil
	}
	who, err := a.identity(ctx)
	if err != nil {
		return err
	}
	if n == needUser {
		return authenticated(who)
	}
	return a.store.Auth().Of(who).Administer()
}

// guardUnary is admit for single requests.
func (a *api) guardUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := a.admit(ctx, needOf(info.FullMethod, request)); err != nil {
		return nil, wireError(err)
	}
	return handle(ctx, request)
}

// guardStream is admit for streams.
func (a *api) guardStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if err := a.admit(stream.Context(), needOf(info.FullMethod, nil)); err != nil {
		return wireError(err)
	}
	return handle(server, stream)
}

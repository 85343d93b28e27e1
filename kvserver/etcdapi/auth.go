package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// authService changes users, roles and permissions. Who may do so is checked
// when the request is applied; what comes here first is that no password gets
// into the log: only its hash does.
type authService struct {
	pb.UnimplementedAuthServer
	*api
}

var _ pb.AuthServer = (*authService)(nil)

// AuthEnable implements etcdserverpb.AuthServer.
func (s *authService) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return write[*pb.AuthEnableResponse](ctx, s.api, &pb.InternalRaftRequest{AuthEnable: r})
}

// AuthDisable implements etcdserverpb.AuthServer.
func (s *authService) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return write[*pb.AuthDisableResponse](ctx, s.api, &pb.InternalRaftRequest{AuthDisable: r})
}

// AuthStatus implements etcdserverpb.AuthServer.
func (s *authService) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return write[*pb.AuthStatusResponse](ctx, s.api, &pb.InternalRaftRequest{AuthStatus: r})
}

// Authenticate implements etcdserverpb.AuthServer. The password is compared
// here, with what this member knows, so the token is given only if nothing
// changed until the authentication was applied.
func (s *authService) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if err := s.awaitRead(ctx, false); err != nil {
		return nil, wireError(err)
	}
	for ctx.Err() == nil {
		who, err := checkPassword(s.store.Auth(), r.GetName(), r.GetPassword())
		if err != nil {
			s.logger.Warn("refused a login", "user", r.GetName(), "from", caller(ctx), "error", err)
			return nil, wireError(err)
		}
		request := &pb.InternalAuthenticateRequest{Name: who.User, SimpleToken: s.access.Tokens.Seed()}
		response, err := write[*pb.AuthenticateResponse](ctx, s.api, &pb.InternalRaftRequest{Authenticate: request})
		if err != nil {
			return nil, err
		}
		if s.stillAt(who.Revision) != nil {
			continue
		}
		if response.Token, err = s.access.Tokens.Issue(who, response.GetToken()); err != nil {
			return nil, wireError(err)
		}
		return response, nil
	}
	return nil, wireError(ctx.Err())
}

// UserAdd implements etcdserverpb.AuthServer.
func (s *authService) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	request := &pb.AuthUserAddRequest{Name: r.GetName(), Options: r.GetOptions()}
	if !r.GetOptions().GetNoPassword() {
		var err error
		if request.HashedPassword, err = s.access.hash(r.GetPassword()); err != nil {
			return nil, wireError(err)
		}
	}
	return write[*pb.AuthUserAddResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserAdd: request})
}

// UserGet implements etcdserverpb.AuthServer.
func (s *authService) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return write[*pb.AuthUserGetResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserGet: r})
}

// UserList implements etcdserverpb.AuthServer.
func (s *authService) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return write[*pb.AuthUserListResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserList: r})
}

// UserDelete implements etcdserverpb.AuthServer.
func (s *authService) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return write[*pb.AuthUserDeleteResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserDelete: r})
}

// UserChangePassword implements etcdserverpb.AuthServer. As in etcd a client
// may send a hash in place of a password.
func (s *authService) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	request := &pb.AuthUserChangePasswordRequest{Name: r.GetName(), HashedPassword: r.GetHashedPassword()}
	if r.GetPassword() != "" {
		var err error
		if request.HashedPassword, err = s.access.hash(r.GetPassword()); err != nil {
			return nil, wireError(err)
		}
	}
	return write[*pb.AuthUserChangePasswordResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserChangePassword: request})
}

// UserGrantRole implements etcdserverpb.AuthServer.
func (s *authService) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return write[*pb.AuthUserGrantRoleResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserGrantRole: r})
}

// UserRevokeRole implements etcdserverpb.AuthServer.
func (s *authService) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return write[*pb.AuthUserRevokeRoleResponse](ctx, s.api, &pb.InternalRaftRequest{AuthUserRevokeRole: r})
}

// RoleAdd implements etcdserverpb.AuthServer.
func (s *authService) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return write[*pb.AuthRoleAddResponse](ctx, s.api, &pb.InternalRaftRequest{AuthRoleAdd: r})
}

// RoleGet implements etcdserverpb.AuthServer.
func (s *authService) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return write[*pb.AuthRoleGetResponse](ctx, s.api, &pb.InternalRaftRequest{AuthRoleGet: r})
}

// RoleList implements etcdserverpb.AuthServer.
func (s *authService) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return write[*pb.AuthRoleListResponse](ctx, s.api, &pb.InternalRaftRequest{AuthRoleList: r})
}

// RoleDelete implements etcdserverpb.AuthServer.
func (s *authService) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return write[*pb.AuthRoleDeleteResponse](ctx, s.api, &pb.InternalRaftRequest{AuthRoleDelete: r})
}

// RoleGrantPermission implements etcdserverpb.AuthServer.
func (s *authService) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return write[*pb.AuthRoleGrantPermissionResponse](ctx, s.api, &pb.InternalRaftRequest{AuthRoleGrantPermission: r})
}

// RoleRevokePermission implements etcdserverpb.AuthServer.
func (s *authService) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return write[*pb.AuthRoleRevokePermissionResponse](ctx, s.api, &pb.InternalRaftRequest{AuthRoleRevokePermission: r})
}

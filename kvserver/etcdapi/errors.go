package etcdapi

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
	"muster/kvserver/membership"
	"muster/kvserver/mvcc"
	"muster/kvserver/replica"
	"muster/kvserver/token"
)

// wireError is the error a client receives for one of ours; the texts and
// codes are rpctypes', which clients compare literally.
func wireError(err error) error {
	for _, known := range []struct{ ours, wire error }{
		{mvcc.ErrCompacted, rpctypes.ErrGRPCCompacted},
		{mvcc.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
		{machine.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
		{machine.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
		{machine.ErrValueProvided, rpctypes.ErrGRPCValueProvided},
		{machine.ErrLeaseProvided, rpctypes.ErrGRPCLeaseProvided},
		{machine.ErrTooManyOps, rpctypes.ErrGRPCTooManyOps},
		{machine.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
		{machine.ErrInvalidSort, rpctypes.ErrGRPCInvalidSortOption},
		{machine.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
		{machine.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
		{machine.ErrLeaseTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},
		{machine.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
		{membership.ErrBadURLs, rpctypes.ErrGRPCMemberBadURLs},
		{replica.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
		{replica.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
		{replica.ErrNotLearner, rpctypes.ErrGRPCMemberNotLearner},
		{replica.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},
		{replica.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},
		// etcd answers with the client's form of this error, which has no code.
		{replica.ErrNotEnoughStarted, status.Error(codes.Unknown, rpctypes.ErrMemberNotEnoughStarted.Error())},
		{replica.ErrUnhealthy, rpctypes.ErrGRPCUnhealthy},
		{replica.ErrNotLeading, rpctypes.ErrGRPCNotLeader},
		{replica.ErrBadTransferee, rpctypes.ErrGRPCBadLeaderTransferee},
		// etcd has no code for this one either.
		{replica.ErrTransferTimeout, status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")},
		{machine.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
		{machine.ErrCorrupt, rpctypes.ErrGRPCCorrupt},
		{machine.ErrClosed, rpctypes.ErrGRPCStopped},
		{auth.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
		{auth.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist},
		{auth.ErrUserAlreadyExist, rpctypes.ErrGRPCUserAlreadyExist},
		{auth.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
		{auth.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
		{auth.ErrRoleAlreadyExist, rpctypes.ErrGRPCRoleAlreadyExist},
		{auth.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
		{auth.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
		{auth.ErrAuthFailed, rpctypes.ErrGRPCAuthFailed},
		{auth.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven},
		{auth.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
		{auth.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
		{auth.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
		{auth.ErrAuthNotEnabled, rpctypes.ErrGRPCAuthNotEnabled},
		{auth.ErrInvalidAuthMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
		{auth.ErrAuthOldRevision, rpctypes.ErrGRPCAuthOldRevision},
		{token.ErrInvalid, rpctypes.ErrGRPCInvalidAuthToken},
		{replica.ErrTooManyRequests, rpctypes.ErrGRPCRequestTooManyRequests},
		{replica.ErrTimeout, rpctypes.ErrGRPCTimeout},
		{replica.ErrLeaderLost, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
		{replica.ErrStopped, rpctypes.ErrGRPCStopped},
	} {
		if errors.Is(err, known.ours) {
			return known.wire
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}

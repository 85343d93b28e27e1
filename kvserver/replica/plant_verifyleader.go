//go:build plant_verifyleader

package replica

import "context"

func confirmedIndex(_ context.Context, r *reader) (uint64, error) {
	index := r.raft().CommitIndex()
	if err := r.raft().VerifyLeader().Error(); err != nil {
		return 0, errNotLeader
	}
	return index, nil
}

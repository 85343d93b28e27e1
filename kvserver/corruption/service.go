package corruption

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"muster/kvserver/corruption/corruptionpb"
	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// Service answers the other members. The keys come after the peer port is
// open; who asks earlier waits.
type Service struct {
	corruptionpb.UnimplementedHashesServer
	keys  Keys
	ready chan struct{}
}

// NewService registers the service.
func NewService(registrar grpc.ServiceRegistrar) *Service {
	s := &Service{ready: make(chan struct{})}
	corruptionpb.RegisterHashesServer(registrar, s)
	return s
}

// Answer gives the service what to hash; it is called once.
func (s *Service) Answer(keys Keys) {
	s.keys = keys
	close(s.ready)
}

// Hash implements corruptionpb.HashesServer.
func (s *Service) Hash(ctx context.Context, r *corruptionpb.HashRequest) (*corruptionpb.HashResponse, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	hashed := s.keys.HashAt
	if r.GetCompaction() {
		hashed = s.remembered
	}
	h, err := hashed(ctx, r.GetRevision())
	switch {
	case errors.Is(err, machine.ErrFutureRev):
		return &corruptionpb.HashResponse{Behind: true}, nil
	case errors.Is(err, machine.ErrCompacted):
		return &corruptionpb.HashResponse{Compacted: true}, nil
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &corruptionpb.HashResponse{
		Hash: h.Hash, Revision: h.Revision, CompactRevision: h.Compacted, CurrentRevision: h.Current,
	}, nil
}

// remembered is the hash of a compaction.
func (s *Service) remembered(ctx context.Context, rev int64) (mvcc.KVHash, error) {
	hashes, err := s.keys.CompactionHashes(ctx)
	if err != nil {
		return mvcc.KVHash{}, err
	}
	for _, h := range hashes {
		if h.Revision == rev {
			return h, nil
		}
	}
	return mvcc.KVHash{}, machine.ErrFutureRev
}

// ask asks another member for its hash. Errors are those of HashAt and of the
// connection.
func ask(ctx context.Context, conn grpc.ClientConnInterface, q question) (mvcc.KVHash, error) {
	response, err := corruptionpb.NewHashesClient(conn).Hash(ctx, &corruptionpb.HashRequest{Revision: q.revision, Compaction: q.compaction})
	switch {
	case err != nil:
		return mvcc.KVHash{}, err
	case response.GetBehind():
		return mvcc.KVHash{}, machine.ErrFutureRev
	case response.GetCompacted():
		return mvcc.KVHash{}, machine.ErrCompacted
	}
	return mvcc.KVHash{
		Hash: response.GetHash(), Revision: response.GetRevision(),
		Compacted: response.GetCompactRevision(), Current: response.GetCurrentRevision(),
	}, nil
}

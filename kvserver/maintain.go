package kvserver

import (
	"context"

	"github.com/jonboulle/clockwork"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/compaction"
)

// compactAutomatically keeps as much history as is configured.
func (s *Server) compactAutomatically(ctx context.Context) error {
	retention, err := s.config.retention()
	if err != nil {
		return err
	}
	config := compaction.Config{
		Retention: retention,
		Revision:  s.replica.Machine().Revision,
		Leading:   func() bool { _, leading := s.replica.Leading(); return leading },
		Compact: func(ctx context.Context, rev int64) error {
			ctx, cancel := context.WithTimeout(ctx, s.config.requestTimeout())
			defer cancel()
			outcome, err := s.replica.Propose(ctx, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}})
			if err == nil {
				err = outcome.Err
			}
			return err
		},
		Clock: clockwork.NewRealClock(), Logger: s.config.Logger,
	}
	s.serve("automatic compaction", func() error { compaction.Run(ctx, config); return nil })
	return nil
}

func (c *Config) retention() (compaction.Retention, error) {
	return compaction.ParseRetention(c.AutoCompactionMode, c.AutoCompactionRetention)
}

package kvserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jonboulle/clockwork"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/compaction"
	"muster/kvserver/corruption"
	"muster/kvserver/v2tree"
	"muster/kvserver/v2tree/v2pb"
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
		Leading:   s.leads,
		Compact: func(ctx context.Context, rev int64) error {
			return s.propose(ctx, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}})
		},
		Clock: clockwork.NewRealClock(), Logger: s.config.Logger,
	}
	s.serve("automatic compaction", func() error { compaction.Run(ctx, config); return nil })
	return nil
}

func (c *Config) retention() (compaction.Retention, error) {
	return compaction.ParseRetention(c.AutoCompactionMode, c.AutoCompactionRetention)
}

// compareMembers answers the other members who compare their data with this
// one's, compares it with theirs first when that is configured, and from time
// to time while this member leads. member tells whether this member has been
// one before.
func (s *Server) compareMembers(ctx context.Context, hashes *corruption.Service, member bool) error {
	m := s.replica.Machine()
	hashes.Answer(m.History())
	checker := corruption.New(corruption.Config{
		Self: s.replica.Member(), Keys: m.History(),
		Members: func() (ids []uint64) {
			for _, member := range m.Members() {
				ids = append(ids, member.ID)
			}
			return ids
		},
		Revisions: func() (current, compacted int64) { return m.Revision(), m.CompactedRevision() },
		Conn:      s.replica.MemberConn,
		Linearize: s.replica.Linearize,
		Leading:   s.leads,
		Alarm: func(ctx context.Context, member uint64) error {
			return s.propose(ctx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
				Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: member,
			}})
		},
		Reach: 2 * s.config.ElectionTimeout, Timeout: s.config.requestTimeout(), Clock: clockwork.NewRealClock(), Logger: s.config.Logger,
	})
	if member && s.config.InitialCorruptCheck {
		if err := checker.CheckSelf(ctx); err != nil {
			return fmt.Errorf("initial corruption check: %w", err)
		}
	}
	if interval := s.config.CorruptCheckTime; interval > 0 {
		s.serve("the corruption check", func() error { checker.Watch(ctx, interval); return nil })
	}
	if s.config.CompactHashCheck {
		interval := s.config.CompactHashCheckTime
		s.serve("the check of compactions", func() error { checker.WatchCompactions(ctx, interval); return nil })
	}
	return nil
}

// v2ExpiryInterval is how often a leader looks for keys of version 2 that have
// expired; etcd's.
const v2ExpiryInterval = 500 * time.Millisecond

// expireV2 has keys of version 2 removed when their time has come, while this
// member leads. It does so whether or not this member serves that version.
func (s *Server) expireV2(ctx context.Context) {
	ticker := time.NewTicker(v2ExpiryInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		term, leading := s.replica.Leading()
		if !leading {
			continue
		}
		next, some, err := s.replica.Machine().V2().NextExpiry()
		now := time.Now()
		if err == nil && (!some || next.After(now)) {
			continue
		}
		if err == nil {
			err = s.removeExpiredV2(ctx, term, now)
		}
		if err != nil && ctx.Err() == nil {
			s.config.Logger.Warn("cannot remove what has expired of version 2; trying again", "error", err)
		}
	}
}

func (s *Server) removeExpiredV2(ctx context.Context, term uint64, now time.Time) error {
	request, err := v2tree.Wrap(&v2pb.Request{Method: v2pb.Request_SYNC, Time: now.UnixNano()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.requestTimeout())
	defer cancel()
	outcome, err := s.replica.ProposeLeading(ctx, term, request)
	return errors.Join(err, outcome.Err)
}

func (s *Server) leads() bool {
	_, leading := s.replica.Leading()
	return leading
}

// propose replicates a request of this member's own.
func (s *Server) propose(ctx context.Context, request *pb.InternalRaftRequest) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.requestTimeout())
	defer cancel()
	outcome, err := s.replica.Propose(ctx, request)
	if err == nil {
		err = outcome.Err
	}
	return err
}

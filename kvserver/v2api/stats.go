package v2api

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3"
)

// requests counts reads, which are not replicated.
type requests struct{ succeeded, failed atomic.Uint64 }

func (r *requests) read(err error) {
	if err != nil {
		r.failed.Add(1)
	} else {
		r.succeeded.Add(1)
	}
}

// leaderInterval is how often it is looked who leads.
const leaderInterval = 100 * time.Millisecond

// statistics serves /v2/stats.
type statistics struct {
	*core
	began   time.Time
	done    chan struct{}
	running sync.WaitGroup

	mu        sync.Mutex
	followers *v2stats.LeaderStats // what other members took to answer
	leader    uint64
	since     time.Time // when it was first seen leading
}

func newStatistics(c *core) *statistics {
	s := &statistics{core: c, began: time.Now(), done: make(chan struct{})}
	s.followers = v2stats.NewLeaderStats(nil, types.ID(c.Replica.Member()).String())
	c.Metrics.Peers.ObserveProbes(func(to uint64, took time.Duration, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		follower := s.followers.Follower(types.ID(to).String())
		if err != nil {
			follower.Fail()
			return
		}
		follower.Succ(took)
	})
	s.running.Go(s.follow)
	return s
}

// follow notes who leads.
func (s *statistics) follow() {
	ticker := time.NewTicker(leaderInterval)
	defer ticker.Stop()
	for {
		leader := s.Replica.Status().Leader
		s.mu.Lock()
		if s.leader != leader {
			s.leader, s.since = leader, time.Now()
		}
		s.mu.Unlock()
		select {
		case <-ticker.C:
		case <-s.done:
			return
		}
	}
}

func (s *statistics) close() {
	s.Metrics.Peers.ObserveProbes(nil)
	close(s.done)
	s.running.Wait()
}

func (s *statistics) write(w http.ResponseWriter, r *http.Request, stats any) {
	body, err := json.Marshal(stats)
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // fails only when the client has gone
}

// writes serves what was done with keys.
func (s *statistics) writes(w http.ResponseWriter, r *http.Request) {
	stats, err := s.Store.V2().Stats()
	if err != nil {
		s.writeError(w, r, err)
		return
	}
	stats.GetSuccess, stats.GetFail = s.requests.succeeded.Load(), s.requests.failed.Load()
	stats.Watchers = uint64(s.hub.watching()) //nolint:gosec // a count
	s.write(w, r, &stats)
}

// selfStats has the fields that etcd's ServerStats has; rates are not told.
type selfStats struct {
	Name       string         `json:"name"`
	ID         string         `json:"id"`
	State      raft.StateType `json:"state"`
	StartTime  time.Time      `json:"startTime"`
	LeaderInfo struct {
		Name      string    `json:"leader"`
		Uptime    string    `json:"uptime"`
		StartTime time.Time `json:"startTime"`
	} `json:"leaderInfo"`
	Received uint64 `json:"recvAppendRequestCnt"`
	Sent     uint64 `json:"sendAppendRequestCnt"`
}

// self serves what this member has done.
func (s *statistics) self(w http.ResponseWriter, r *http.Request) {
	stats := selfStats{
		Name: s.Name, ID: types.ID(s.Replica.Member()).String(), State: raft.StateFollower, StartTime: s.began,
		Received: s.Metrics.Appends.Received.Load(), Sent: s.Metrics.Appends.Sent.Load(),
	}
	s.mu.Lock()
	leader, since := s.leader, s.since
	s.mu.Unlock()
	if leader == s.Replica.Member() {
		stats.State = raft.StateLeader
	}
	if leader != 0 {
		stats.LeaderInfo.Name = types.ID(leader).String()
	}
	stats.LeaderInfo.StartTime, stats.LeaderInfo.Uptime = since, time.Since(since).String()
	s.write(w, r, stats)
}

// leading serves how the other members answer. As the members' messages go
// through pipelines whose answers come late by design, it is probes that are
// timed.
func (s *statistics) leading(w http.ResponseWriter, r *http.Request) {
	if s.Replica.Status().Leader != s.Replica.Member() {
		s.writeError(w, r, refuse(http.StatusForbidden, "not current leader"))
		return
	}
	s.mu.Lock()
	body := s.followers.JSON()
	s.mu.Unlock()
	s.write(w, r, json.RawMessage(body))
}

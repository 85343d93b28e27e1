package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/auth"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"muster/kvserver/metrics"
	"muster/kvserver/replica"
)

// condition is the state of a member as both handlers see it.
type condition struct {
	alarms  []pb.AlarmType
	leader  uint64
	learner bool
	// failing reads return an error.
	failSerializable, failLinearizable error
}

// etcdMember is a condition as etcd's handlers ask for it.
type etcdMember struct {
	condition
	auth auth.AuthStore
}

func (m etcdMember) Alarms() []*pb.AlarmMember {
	var raised []*pb.AlarmMember
	for _, alarm := range m.alarms {
		raised = append(raised, &pb.AlarmMember{MemberID: 1, Alarm: alarm})
	}
	return raised
}
func (m etcdMember) Leader() types.ID            { return types.ID(m.leader) }
func (m etcdMember) Config() config.ServerConfig { return config.ServerConfig{} }
func (m etcdMember) AuthStore() auth.AuthStore   { return m.auth }
func (m etcdMember) IsLearner() bool             { return m.learner }
func (m etcdMember) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if r.Serializable {
		return &pb.RangeResponse{}, m.failSerializable
	}
	return &pb.RangeResponse{}, m.failLinearizable
}

// ourMember is a condition as ours ask for it.
type ourMember struct {
	condition
	ready chan struct{}
}

func (m ourMember) Linearize(context.Context) error { return m.failLinearizable }
func (m ourMember) Ready() <-chan struct{}          { return m.ready }
func (m ourMember) Member() uint64                  { return 1 }
func (m ourMember) Status() replica.Status          { return replica.Status{Leader: m.leader} }
func (m ourMember) Alarms() []*pb.AlarmMember       { return etcdMember{condition: m.condition}.Alarms() }
func (m ourMember) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{}, m.failSerializable
}

func ourHandler(m ourMember) http.Handler {
	return NewMetricsHandler(Config{
		Replica: m, Store: m, Learner: func() bool { return m.learner }, Version: func() string { return "3.7.0" }, Timeout: time.Second,
		Gatherer: prometheus.NewRegistry(), Health: metrics.NewHealth(nil), Logger: slog.New(slog.DiscardHandler),
	})
}

func ask(handler http.Handler, path string) string {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	response := recorder.Result()
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	lines := strings.SplitAfter(string(body), "\n") // etcd's come in random order
	slices.Sort(lines)
	return fmt.Sprintf("%d %s %s\n%s", response.StatusCode, response.Header.Get("Content-Type"), response.Header.Get("X-Content-Type-Options"), strings.Join(lines, ""))
}

// A sick member is reported in etcd's words, as etcd's own handlers have them.
func TestSickMembersAreReportedAsByEtcd(t *testing.T) {
	store := backend.NewDefaultBackend(zap.NewNop(), filepath.Join(t.TempDir(), "db"))
	defer store.Close()
	tokens, err := auth.NewTokenProvider(zap.NewNop(), "simple", func(uint64) <-chan struct{} { return nil }, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	users := auth.NewAuthStore(zap.NewNop(), schema.NewAuthBackend(zap.NewNop(), store), tokens, 0)
	defer users.Close()

	failed := errors.New("request timed out")
	for name, now := range map[string]condition{
		"well":                  {leader: 1},
		"NOSPACE":               {leader: 1, alarms: []pb.AlarmType{pb.AlarmType_NOSPACE}},
		"CORRUPT":               {leader: 1, alarms: []pb.AlarmType{pb.AlarmType_CORRUPT}},
		"both alarms":           {leader: 1, alarms: []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT}},
		"an alarm of tomorrow":  {leader: 1, alarms: []pb.AlarmType{17}},
		"no leader":             {failLinearizable: failed},
		"learner":               {leader: 1, learner: true},
		"reads of quorum fail":  {leader: 1, failLinearizable: failed},
		"no read works":         {leader: 1, failLinearizable: failed, failSerializable: failed},
		"everything goes wrong": {alarms: []pb.AlarmType{pb.AlarmType_CORRUPT}, learner: true, failLinearizable: failed, failSerializable: failed},
	} {
		t.Run(name, func(t *testing.T) {
			etcd := http.NewServeMux()
			etcdhttp.HandleHealth(zap.NewNop(), etcd, etcdMember{now, users})
			ready := make(chan struct{})
			close(ready)
			ours := ourHandler(ourMember{now, ready})
			for _, path := range []string{
				"/health", "/health?serializable=true", "/health?exclude=NOSPACE", "/health?exclude=NOSPACE&exclude=CORRUPT",
				"/livez", "/livez?verbose", "/livez?exclude=serializable_read", "/readyz", "/readyz?verbose",
				"/readyz?exclude=data_corruption", "/readyz/data_corruption", "/readyz/linearizable_read", "/readyz/serializable_read?verbose", "/readyz/non_learner",
			} {
				if diff := cmp.Diff(ask(etcd, path), ask(ours, path)); diff != "" {
					t.Errorf("%s differs (-etcd +ours):\n%s", path, diff)
				}
			}
		})
	}
}

// Until a member has caught up once, its store may be older than what it has
// shown before: it does not claim to be readable.
func TestMemberThatHasNotCaughtUpIsNotReadable(t *testing.T) {
	handler := ourHandler(ourMember{condition{leader: 1}, make(chan struct{})})
	for _, path := range []string{"/livez", "/readyz", "/health?serializable=true"} {
		if got := ask(handler, path); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "this member has not caught up with the cluster since it started") {
			t.Errorf("%s answers %s", path, got)
		}
	}
}

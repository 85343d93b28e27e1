package v2api_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver"
	"muster/kvserver/machine"
	"muster/kvserver/metrics"
	"muster/kvserver/replica"
	"muster/kvserver/v2api"
)

// TestOff: without --enable-v2 there is no version 2, and with it the keys are
// what they were, TTLs included, also when the member was started without it in
// between.
func TestOff(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	run := func(enabled bool, ask func(endpoint string)) {
		t.Helper()
		server, endpoint := startMusterd(t, func(c *kvserver.Config) { c.EnableV2, c.DataDir = enabled, dir })
		ask(endpoint)
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	get := func(endpoint, key string) (int, string) {
		status, _, body := request{method: "GET", path: "/v2/keys/" + key}.ask(t, endpoint)
		return status, body
	}
	run(true, func(endpoint string) {
		for _, r := range []request{
			{method: "PUT", path: "/v2/keys/a", form: "value=x"},
			{method: "PUT", path: "/v2/keys/short", form: "value=x&ttl=1"},
		} {
			if status, _, body := r.ask(t, endpoint); status != http.StatusCreated {
				t.Fatalf("%v: %d %s", r, status, body)
			}
		}
	})
	run(false, func(endpoint string) {
		if status, body := get(endpoint, "a"); status != http.StatusNotFound || body != "404 page not found\n" {
			t.Errorf("off: %d %s", status, body)
		}
	})
	run(true, func(endpoint string) {
		if status, body := get(endpoint, "a"); status != http.StatusOK || !strings.Contains(body, `"modifiedIndex":4,`) {
			t.Errorf("after a restart: %d %s", status, body)
		}
		for deadline := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
			if status, _ := get(endpoint, "short"); status == http.StatusNotFound {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a key does not expire")
			}
		}
	})
}

// TestMixed: members that do not serve version 2 keep its data, and remove what
// expires when they lead.
func TestMixed(t *testing.T) {
	t.Parallel()
	enabled := 0
	endpoints := startThree(t, func(i int, c *kvserver.Config) {
		c.EnableV2 = i == enabled
	})
	put := request{method: "PUT", path: "/v2/keys/short", form: "value=x&ttl=1"}
	if status, _, body := put.ask(t, endpoints[enabled]); status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	watched := watch(t, endpoints[enabled]+"/v2/keys/short?wait=true&waitIndex=5")
	watched.until(t, `"action":"expire"`)
}

// lost is a member that has no quorum.
type lost struct{ v2api.Replica }

func (lost) Propose(context.Context, *pb.InternalRaftRequest) (replica.Outcome, error) {
	return replica.Outcome{}, replica.ErrTimeout
}

func (lost) Reconfigure(context.Context, replica.Change) (replica.Changed, error) {
	return replica.Changed{}, replica.ErrTimeout
}

func (lost) Linearize(context.Context) error { return replica.ErrTimeout }

func (lost) Status() replica.Status { return replica.Status{} }

// TestNoQuorum: code 300 and what else is answered when nothing can be changed.
// The texts are etcd's.
func TestNoQuorum(t *testing.T) {
	t.Parallel()
	server, _ := startMusterd(t, nil)
	api := v2api.New(v2api.Config{
		Replica: lost{server.Replica()}, Store: server.Replica().Machine(), Name: "m0", Timeout: time.Second, BcryptCost: 4,
		Metrics: metrics.NewReplica(nil), Counts: metrics.NewV2(nil), Logger: slog.New(slog.DiscardHandler),
	})
	defer api.Close()
	web := httptest.NewServer(api)
	defer web.Close()
	const internal = `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}`
	for _, test := range []struct {
		request request
		status  int
		body    string
	}{
		{request{method: "PUT", path: "/v2/keys/a", form: "value=x"}, 500, internal},
		{request{method: "GET", path: "/v2/keys/a?quorum=true"}, 500, internal},
		{request{method: "GET", path: "/v2/keys/a"}, 404, `{"errorCode":100,"message":"Key not found","cause":"/a","index":3}`},
		{request{method: "GET", path: "/v2/members/leader"}, 503, `{"message":"During election"}`},
		{request{method: "GET", path: "/v2/stats/leader"}, 403, `{"message":"not current leader"}`},
		{request{method: "DELETE", path: "/v2/members/1"}, 500, `{"message":"Internal Server Error"}`},
		{request{method: "PUT", path: "/v2/auth/users/a", form: `{"user":"a","password":"x"}`}, 500, `{"message":"Internal Server Error"}`},
	} {
		status, _, body := test.request.ask(t, web.URL)
		if status != test.status || strings.TrimSpace(body) != test.body {
			t.Errorf("%v: %d %s", test.request, status, body)
		}
	}
}

var _ v2api.Store = (*machine.Machine)(nil)

// TestNoWayOut: a path that leads out of the keys reaches neither users nor what
// else is in the tree.
func TestNoWayOut(t *testing.T) {
	t.Parallel()
	_, endpoint := startMusterd(t, nil)
	add := request{method: "PUT", path: "/v2/auth/users/root", form: `{"user":"root","password":"secret"}`}
	if status, _, body := add.ask(t, endpoint); status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	for _, r := range []request{
		{method: "GET", path: "/v2/keys/%2e%2e/2/users/root"},
		{method: "GET", path: "/v2/keys/a/%2e%2e%2f..%2f2?recursive=true"},
		{method: "GET", path: "/v2/keys/..%2f2%2fusers%2froot"},
		{method: "GET", path: "/v2/keys%2f..%2f2%2fusers%2froot"},
		{method: "PUT", path: "/v2/keys/%2e%2e/2/enabled", form: "value=true"},
		{method: "DELETE", path: "/v2/keys/%2e%2e/2?recursive=true"},
		{method: "GET", path: "/v2/keys/%2e%2e/0"},
	} {
		if status, _, body := r.ask(t, endpoint); strings.Contains(body, "$2a$") || strings.Contains(body, `"enabled"`) || status == http.StatusOK {
			t.Errorf("%v: %d %s", r, status, body)
		}
	}
	root := request{method: "GET", path: "/v2/auth/users/root"}
	if status, _, body := root.ask(t, endpoint); status != http.StatusOK {
		t.Errorf("the user is gone: %d %s", status, body)
	}
}

// TestLaggingMember: a member that was away for longer than the log is kept
// receives the tree with its history, and who watches it from before is told what
// happened.
func TestLaggingMember(t *testing.T) {
	t.Parallel()
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	configs := make([]kvserver.Config, 3)
	servers, endpoints := launchThree(t, func(i int, c *kvserver.Config) {
		c.DataDir, c.SnapshotCount, c.SnapshotCatchUpEntries = dirs[i], 100, 64
		configs[i] = *c
	})
	put := func(key, value string) {
		t.Helper()
		r := request{method: "PUT", path: "/v2/keys/" + key, form: "value=" + value}
		if status, _, body := r.ask(t, endpoints[0]); status != http.StatusCreated && status != http.StatusOK {
			t.Fatalf("%v: %d %s", r, status, body)
		}
	}
	put("a", "before")
	if err := servers[2].Close(); err != nil {
		t.Fatal(err)
	}
	put("b", "while it was away")
	for i := range 250 {
		put("c", strconv.Itoa(i))
	}
	for deadline := time.Now().Add(patience); servers[0].Replica().LogEntries() > 200 || servers[1].Replica().LogEntries() > 200; <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log is not cut")
		}
	}
	back, _ := launch(t, func(c *kvserver.Config) { *c = configs[2] })
	awaitReady(t, back)
	watch(t, endpoints[2]+"/v2/keys/b?wait=true&waitIndex=5").until(t, "while it was away")
	last := watch(t, endpoints[2]+"/v2/keys/c?wait=true&waitIndex=255")
	last.until(t, `"value":"249"`)
	want := request{method: "GET", path: "/v2/keys/?recursive=true"}
	_, _, first := want.ask(t, endpoints[0])
	if _, _, third := want.ask(t, endpoints[2]); first != third {
		t.Errorf("the member that was away has %s, another one %s", third, first)
	}
	_, _, metrics := request{method: "GET", path: "/metrics"}.ask(t, endpoints[2])
	if !regexp.MustCompile(`(?m)^etcd_snap_db_save_total_duration_seconds_count [1-9]`).MatchString(metrics) {
		t.Error("the member that was away has read the log: the test is of no use")
	}
}

// TestCloseEndsWatches: whoever watches does not keep a member from stopping.
func TestCloseEndsWatches(t *testing.T) {
	t.Parallel()
	server, endpoint := startMusterd(t, nil)
	put := request{method: "PUT", path: "/v2/keys/a", form: "value=x"}
	put.ask(t, endpoint)
	var bodies []io.ReadCloser
	for _, query := range []string{"a?wait=true", "?wait=true&recursive=true&stream=true", "a?wait=true&stream=true&waitIndex=4"} {
		resp, err := http.Get(endpoint + "/v2/keys/" + query)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		bodies = append(bodies, resp.Body)
	}
	closed := make(chan error, 1)
	go func() { closed <- server.Close() }()
	for _, body := range bodies {
		if _, err := io.Copy(io.Discard, body); err != nil {
			t.Errorf("a watch ends badly: %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

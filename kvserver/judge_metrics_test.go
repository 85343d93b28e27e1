package kvserver

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// mixin are the families that the alerts and dashboards of etcd's mixin ask
// for, of those that are there without other members and without traffic.
var mixin = []string{
	"etcd_server_has_leader", "etcd_server_leader_changes_seen_total", "etcd_server_proposals_failed_total", "etcd_server_quota_backend_bytes",
	"etcd_server_proposals_committed_total", "etcd_server_proposals_applied_total", "etcd_server_proposals_pending",
	"etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes",
	"etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds",
	"etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total",
	"grpc_server_started_total", "grpc_server_handled_total", "grpc_server_msg_received_total", "grpc_server_msg_sent_total", "grpc_server_handling_seconds",
	"process_resident_memory_bytes",
}

// Families of etcd's that have no meaning here, and so are not in the list:
//
//	etcd_debugging_disk_backend_commit_*      phases of a commit of bbolt
//	etcd_debugging_mvcc_db_compaction_*       history is removed behind the traffic, not by a compaction under way
//	etcd_debugging_mvcc_index_compaction_*    there is no index in memory to compact
//	etcd_debugging_mvcc_keys_total            keys are not counted at each scrape
//	etcd_debugging_mvcc_total_put_size_...    like etcd_mvcc_db_total_size_in_use_in_bytes
//	etcd_debugging_server_watch_send_loop_*   phases of etcd's loops
//	etcd_debugging_snap_save_*                snapshots of the log have no contents of their own
//	etcd_debugging_store_*                    the v2 store
//	etcd_disk_wal_write_duration_seconds      part of etcd_disk_wal_fsync_duration_seconds
//	etcd_mvcc_db_open_read_transactions       the store has no read transactions
//	etcd_server_apply_duration_seconds        etcd_disk_backend_commit_duration_seconds, of a batch
//	etcd_server_range_duration_seconds        grpc_server_handling_seconds with --metrics=extensive
//	etcd_server_request_duration_seconds      the same
//	etcd_snap_db_fsync_duration_seconds       part of etcd_snap_db_save_total_duration_seconds
//	etcd_snap_fsync_duration_seconds          as etcd_debugging_snap_save_*
//	promhttp_metric_handler_requests_*        scrapes are not counted
const listOfFamilies = "testdata/etcd-metrics.txt"

// Whoever watches etcd finds what he looks for: every family of etcd's has the
// same type and labels here, unless it is named above.
func TestMetricsAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	for _, s := range []side{etcd, ours} {
		for _, each := range []call{
			kv("put", pb.KVClient.Put, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}),
			kv("range", pb.KVClient.Range, &pb.RangeRequest{Key: []byte("k")}),
			kv("delete", pb.KVClient.DeleteRange, &pb.DeleteRangeRequest{Key: []byte("k")}),
		} {
			if _, err := each.run(t.Context(), s.conn); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{"/health", "/livez", "/readyz"} {
			fetch(t, s.url+path)
		}
	}
	text := fetch(t, ours.url+"/metrics")
	theirs, found := families(t, fetch(t, etcd.url+"/metrics")), families(t, text)
	list, err := os.ReadFile(listOfFamilies)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(list))
	if len(names) < 60 {
		t.Fatalf("only %d families to compare", len(names))
	}
	for _, name := range names {
		family := theirs[name]
		if family == nil {
			t.Errorf("%s is not etcd's any more", name)
			continue
		}
		own := found[name]
		if own == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if own.GetType() != family.GetType() {
			t.Errorf("%s is a %s, etcd's is a %s", name, own.GetType(), family.GetType())
		}
		if got, want := labels(own), labels(family); got != want {
			t.Errorf("%s has the labels %s, etcd's %s", name, got, want)
		}
		if got, want := buckets(own), buckets(family); !slices.Equal(got, want) {
			t.Errorf("%s has the buckets %v, etcd's %v", name, got, want)
		}
	}
	for _, name := range []string{"etcd_mvcc_put_total", "etcd_mvcc_delete_total", "etcd_mvcc_range_total", "etcd_server_health_success"} {
		if value := found[name].GetMetric()[0].GetCounter().GetValue(); value < 1 {
			t.Errorf("%s is %v", name, value)
		}
	}
	for _, name := range []string{"etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"} {
		if count := found[name].GetMetric()[0].GetHistogram().GetSampleCount(); count < 1 {
			t.Errorf("%s has counted nothing", name)
		}
	}
	for _, name := range []string{"etcd_disk_wal_write_bytes_total", "etcd_mvcc_db_total_size_in_use_in_bytes", "muster_raft_log_entries", "os_fd_used", "etcd_server_has_leader"} {
		if value := found[name].GetMetric()[0].GetGauge().GetValue(); value < 1 {
			t.Errorf("%s is %v", name, value)
		}
	}
	for _, name := range []string{"etcd_server_leader_changes_seen_total", "etcd_network_client_grpc_sent_bytes_total", "etcd_network_client_grpc_received_bytes_total"} {
		if value := found[name].GetMetric()[0].GetCounter().GetValue(); value < 1 {
			t.Errorf("%s is %v", name, value)
		}
	}
	lint(t, text, fetch(t, etcd.url+"/metrics"))
}

// With --metrics=extensive everything is there that the mixin asks for.
func TestMixinFindsItsSeries(t *testing.T) {
	config := single(t)
	config.ExtensiveMetrics = true
	server := running(t, config)
	client := person{t: t, conn: connect(t, server.clients[0].Addr().String()).conn}
	client.get("k", nil)
	found := families(t, fetch(t, "http://"+server.clients[0].Addr().String()+"/metrics"))
	for _, name := range mixin {
		if found[name] == nil || len(found[name].GetMetric()) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	streams := map[string]bool{}
	for _, metric := range found["grpc_server_started_total"].GetMetric() {
		values := map[string]string{}
		for _, label := range metric.GetLabel() {
			values[label.GetName()] = label.GetValue()
		}
		streams[values["grpc_service"]+" "+values["grpc_type"]] = true
	}
	for _, want := range []string{"etcdserverpb.Watch bidi_stream", "etcdserverpb.Lease bidi_stream", "etcdserverpb.KV unary"} {
		if !streams[want] {
			t.Errorf("no calls of %s are counted", want)
		}
	}
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	response, err := http.Get(url) //nolint:gosec // a server of this test
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, response.Status, err)
	}
	return body
}

func families(t *testing.T, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	found, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func labels(family *dto.MetricFamily) string {
	var names []string
	for _, pair := range family.GetMetric()[0].GetLabel() {
		names = append(names, pair.GetName())
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

func buckets(family *dto.MetricFamily) (bounds []float64) {
	for _, bucket := range family.GetMetric()[0].GetHistogram().GetBucket() {
		bounds = append(bounds, bucket.GetUpperBound())
	}
	return bounds
}

// lint finds the faults that promtool finds, except those that come with
// etcd's own names.
func lint(t *testing.T, ours, theirs []byte) {
	t.Helper()
	faults := func(text []byte) map[string]bool {
		problems, err := promlint.New(bytes.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, problem := range problems {
			found[problem.Metric+": "+problem.Text] = true
		}
		return found
	}
	inherited := faults(theirs)
	for fault := range faults(ours) {
		if !inherited[fault] && !strings.HasPrefix(fault, "etcd_") {
			t.Error(fault)
		}
	}
}

// checkPeerMetrics waits for what a member of two says about the other one.
func checkPeerMetrics(t *testing.T, server *Server) {
	t.Helper()
	var missing []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		gathered, err := server.metrics.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]*dto.MetricFamily{}
		for _, family := range gathered {
			found[family.GetName()] = family
		}
		missing = nil
		for name, label := range map[string]string{
			"etcd_network_peer_sent_bytes_total": "To", "etcd_network_peer_received_bytes_total": "From",
			"etcd_network_peer_round_trip_time_seconds": "To", "etcd_network_active_peers": "Local,Remote",
			"etcd_network_peer_sent_failures_total": "To", "etcd_network_known_peers": "Local,Remote",
		} {
			if family := found[name]; family == nil || labels(family) != label {
				missing = append(missing, name)
			}
		}
		if len(missing) == 0 && found["etcd_network_active_peers"].GetMetric()[0].GetGauge().GetValue() == 1 && len(found["etcd_network_known_peers"].GetMetric()) == 2 {
			return
		}
	}
	t.Errorf("of the other member there is nothing in %v", missing)
}

package kvserver

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var manyWatchers = flag.Int("kvserver.watchers", 1000, "watchers of the test with many")

func clientOf(t *testing.T, server *Server) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server.clients[0].Addr().String()}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func mustPut(t *testing.T, client *clientv3.Client, key, value string) int64 {
	t.Helper()
	response, err := client.Put(t.Context(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return response.Header.Revision
}

// nextEvents reads events in lines such as "a=1(0)", until there are n.
func nextEvents(t *testing.T, watch clientv3.WatchChan, n int) (lines []string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for len(lines) < n {
		select {
		case response, ok := <-watch:
			if !ok || response.Err() != nil {
				t.Fatalf("after %q: %v", lines, response.Err())
			}
			for _, e := range response.Events {
				line := fmt.Sprintf("%s %s=%s", e.Type, e.Kv.Key, e.Kv.Value)
				if e.PrevKv != nil {
					line += fmt.Sprintf("(%s)", e.PrevKv.Value)
				}
				lines = append(lines, line)
			}
		case <-timeout:
			t.Fatalf("only %q came", lines)
		}
	}
	return lines
}

// etcd's own client sees a watch as it should be.
func TestWatchByClient(t *testing.T) {
	config := single(t)
	config.WatchProgressNotifyInterval = time.Millisecond // taken for 100
	client := clientOf(t, running(t, config))
	ctx := clientv3.WithRequireLeader(t.Context())
	first := mustPut(t, client, "/a", "1")
	mustPut(t, client, "/a", "2")
	all := client.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(first), clientv3.WithFragment())
	if got, want := nextEvents(t, all, 2), []string{"PUT /a=1", "PUT /a=2(1)"}; !slices.Equal(got, want) {
		t.Errorf("from the past: %q, want %q", got, want)
	}
	if _, err := client.Delete(ctx, "/a"); err != nil {
		t.Fatal(err)
	}
	if got, want := nextEvents(t, all, 1), []string{"DELETE /a=(2)"}; !slices.Equal(got, want) {
		t.Errorf("the present: %q, want %q", got, want)
	}

	if err := client.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if response := <-all; !response.IsProgressNotify() || response.Header.Revision != first+2 {
		t.Errorf("progress requested: %+v", response)
	}
	idle := client.Watch(t.Context(), "/idle", clientv3.WithProgressNotify())
	if response := <-idle; !response.IsProgressNotify() || response.Header.Revision != first+2 {
		t.Errorf("progress at intervals: %+v", response)
	}

	if _, err := client.Compact(ctx, first+2); err != nil {
		t.Fatal(err)
	}
	old := <-client.Watch(ctx, "/", clientv3.WithRev(first))
	if !errors.Is(old.Err(), rpctypes.ErrCompacted) || old.CompactRevision != first+2 {
		t.Errorf("from the compacted past: %v, compacted %d", old.Err(), old.CompactRevision)
	}
}

// A member that stops ends its watches, and the client goes on with the next:
// here the same one, started again.
func TestWatchOutlivesRestart(t *testing.T) {
	config := single(t)
	server, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	<-server.Ready()
	client := clientOf(t, server)
	config.ListenClientURLs = []string{"http://" + server.clients[0].Addr().String()}
	watch := client.Watch(t.Context(), "a")
	mustPut(t, client, "a", "1")
	if got := nextEvents(t, watch, 1); got[0] != "PUT a=1" {
		t.Errorf("got %q", got)
	}
	began := time.Now()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took >= stopTimeout {
		t.Errorf("the watch kept the member from stopping for %v", took)
	}
	if server, err = Start(config); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	<-server.Ready()
	for deadline := time.Now().Add(20 * time.Second); ; {
		// The client may still hold the old connection.
		if _, err := client.Put(t.Context(), "a", "2"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if got := nextEvents(t, watch, 1); got[0] != "PUT a=2" {
		t.Errorf("after the restart: %q", got)
	}
}

// A response above the limit comes in the same parts as etcd's, to whom asked
// for it.
func TestFragmentsAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	parts := func(s side) (lines []string) {
		kv := pb.NewKVClient(s.conn)
		for n := range 9 {
			size := 700 * 1024
			if n%3 == 0 {
				size = 100 * 1024
			}
			if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", n), Value: bytes.Repeat([]byte{'x'}, size)}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		stream, err := pb.NewWatchClient(s.conn).Watch(ctx, grpc.MaxCallRecvMsgSize(64<<20))
		if err != nil {
			t.Fatal(err)
		}
		for _, fragment := range []bool{true, false} {
			if err := stream.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true, Fragment: fragment})); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}); err != nil {
			t.Fatal(err)
		}
		for whole := 0; whole < 2; {
			response, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if !response.Fragment {
				whole++
			}
			lines = append(lines, fmt.Sprintf("%d: %d events from %s @%d fragment=%t", response.WatchId, len(response.Events), response.Events[0].Kv.Key, response.Header.Revision, response.Fragment))
		}
		slices.Sort(lines)
		return lines
	}
	want, got := parts(etcd), parts(ours)
	if !slices.Equal(got, want) {
		t.Errorf("etcd's parts\n%s\nours\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	if len(got) < 4 {
		t.Errorf("hardly any parts: %q", got)
	}
}

// While a cluster has no leader, a stream that requires one is refused, and
// one that has begun ends after a while. One that does not goes on.
func TestWatchRequiresLeader(t *testing.T) {
	servers, stop := three(t)
	survivor, others := servers[0], servers[1:]
	client := clientOf(t, survivor)
	requiring := client.Watch(clientv3.WithRequireLeader(t.Context()), "a", clientv3.WithCreatedNotify())
	plain := client.Watch(t.Context(), "a", clientv3.WithCreatedNotify())
	for _, watch := range []clientv3.WatchChan{requiring, plain} {
		if response := <-watch; !response.Created {
			t.Fatalf("%+v", response)
		}
	}
	for _, s := range others {
		stop(s)
	}
	select {
	case response := <-requiring:
		if !errors.Is(response.Err(), rpctypes.ErrNoLeader) {
			t.Errorf("the stream ended with %v", response.Err())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the stream goes on without a leader")
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(t.Context()), 20*time.Second)
	defer cancel()
	stream, err := pb.NewWatchClient(connect(t, survivor.clients[0].Addr().String()).conn).Watch(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "etcdserver: no leader") {
		t.Errorf("a new stream is answered with %v", err)
	}
	select {
	case response := <-plain:
		t.Errorf("the stream that requires nothing has %+v", response)
	default:
	}
}

// three starts a cluster; stop stops one member before the test does.
func three(t *testing.T) (servers []*Server, stop func(*Server)) {
	t.Helper()
	var configs []Config
	var cluster []string
	for i := range 3 {
		config := single(t)
		config.Name = fmt.Sprint("member", i)
		peer := freeURL(t)
		config.ListenPeerURLs, config.InitialAdvertisePeerURLs = []string{peer.String()}, []string{peer.String()}
		cluster = append(cluster, config.Name+"="+peer.String())
		configs = append(configs, config)
	}
	stop = func(s *Server) {
		if err := s.Close(); err != nil {
			t.Log(err) // without a quorum leadership cannot be handed on
		}
	}
	for _, config := range configs {
		config.InitialCluster = strings.Join(cluster, ",")
		server, err := Start(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(server) })
		servers = append(servers, server)
	}
	for _, server := range servers {
		select {
		case <-server.Ready():
		case <-time.After(30 * time.Second):
			t.Fatal("the cluster is not ready")
		}
	}
	return servers, stop
}

// crowd is a stream with many watchers of everything, which counts what each
// received.
type crowd struct {
	stream pb.Watch_WatchClient
	seen   []int64 // the last revision, by watcher
}

func openCrowd(t *testing.T, conn *grpc.ClientConn, watchers int) *crowd {
	t.Helper()
	stream, err := pb.NewWatchClient(conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &crowd{stream: stream, seen: make([]int64, watchers)}
	for range watchers {
		if err := stream.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("key"), RangeEnd: []byte("kez")})); err != nil {
			t.Fatal(err)
		}
	}
	for range watchers {
		response, err := stream.Recv()
		if err != nil || !response.Created {
			t.Fatalf("%v, %v", response, err)
		}
		c.seen[response.WatchId] = response.Header.Revision
	}
	return c
}

// follow reads until every watcher has seen everything up to last, in order.
func (c *crowd) follow(last int64) (responses int, err error) {
	for done := 0; done < len(c.seen); responses++ {
		response, err := c.stream.Recv()
		if err != nil {
			return responses, err
		}
		id := response.WatchId
		for _, e := range response.Events {
			if c.seen[id]++; e.Kv.ModRevision != c.seen[id] {
				return responses, fmt.Errorf("watcher %d was given revision %d, not %d", id, e.Kv.ModRevision, c.seen[id])
			}
		}
		if len(response.Events) > 0 && c.seen[id] == last {
			done++
		}
	}
	return responses, nil
}

// heap is what is reachable, in bytes.
func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// Many watchers see every write, in order, at 100 writes a second, while one
// client with as many as another does not read. It holds little, and has
// everything when it reads on.
func TestManyWatchers(t *testing.T) {
	server := running(t, single(t))
	client := clientOf(t, server)
	const (
		streams = 20
		writes  = 200
	)
	conn := func() *grpc.ClientConn { return connect(t, server.clients[0].Addr().String()).conn }
	var crowds []*crowd
	for range streams {
		crowds = append(crowds, openCrowd(t, conn(), *manyWatchers/streams))
	}
	stuck := openCrowd(t, conn(), *manyWatchers/streams)
	begin, err := client.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	last := begin.Header.Revision + writes

	var following sync.WaitGroup
	began := time.Now()
	for _, c := range crowds {
		following.Go(func() {
			responses, err := c.follow(last)
			if err != nil {
				t.Errorf("after %d responses: %v", responses, err)
			}
		})
	}
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	var slowest time.Duration
	for i := range writes {
		<-pace.C
		before := time.Now()
		mustPut(t, client, fmt.Sprint("key", i), strings.Repeat("v", 1000))
		slowest = max(slowest, time.Since(before))
	}
	written := time.Since(began)
	following.Wait()
	followed := time.Since(began)

	with := heap()
	responses, err := stuck.follow(last)
	if err != nil {
		t.Fatalf("the client that did not read, after %d responses: %v", responses, err)
	}
	without := heap()
	t.Logf("%d watchers had %d events each %v after the first write; %d writes took %v, the slowest %v; the client that did not read held %d KiB of %d KiB",
		*manyWatchers, writes, followed.Round(time.Millisecond), writes, written.Round(time.Millisecond), slowest.Round(time.Millisecond), (with-without)>>10, with>>10)
	if held := with - without; held > 8<<20 {
		t.Errorf("the client that did not read held %d bytes", held)
	}
}

func TestWatchProgressInterval(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{
		-time.Second: 10 * time.Minute, 0: 10 * time.Minute, 1: 100 * time.Millisecond, time.Second: time.Second,
	} {
		if got := (&Config{WatchProgressNotifyInterval: given}).watchProgressInterval(); got != want {
			t.Errorf("%v is taken for %v, want %v", given, got, want)
		}
	}
}

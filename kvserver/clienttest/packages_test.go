package clienttest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"go.etcd.io/etcd/client/v3/ordering"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func TestUpstreamPackages(t *testing.T) {
	c := startCluster(t)
	for name, test := range map[string]func(*testing.T, *cluster){
		"mutex":      testMutex,
		"rwmutex":    testRWMutex,
		"election":   testElection,
		"stm":        testSTM,
		"recipes":    testRecipes,
		"services":   testServices,
		"leasing":    testLeasing,
		"mirror":     testMirror,
		"naming":     testNaming,
		"namespace":  testNamespace,
		"ordering":   testOrdering,
		"kubernetes": testKubernetes,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
	t.Run("auth", func(t *testing.T) { testAuth(t, c) }) // last: the others do not log in
}

// What one client caches under a lease another one changes nevertheless.
func testLeasing(t *testing.T, c *cluster) {
	ctx := bounded(t)
	cached, closeCached, err := leasing.NewKV(c.client(t, 0), "leasing/")
	check(t, err)
	defer closeCached()
	other, closeOther, err := leasing.NewKV(c.client(t, 1), "leasing/")
	check(t, err)
	defer closeOther()
	put(t, cached, "leased", "1")
	wantValue(t, cached, "leased", "1") // has the lease from now on
	wantValue(t, cached, "leased", "1")
	put(t, other, "leased", "2")
	wantValue(t, cached, "leased", "2")
	response, err := other.Txn(ctx).If(clientv3.Compare(clientv3.Value("leased"), "=", "2")).
		Then(clientv3.OpPut("leased", "3"), clientv3.OpGet("leased")).Commit()
	check(t, err)
	if !response.Succeeded || len(response.Responses) != 2 {
		t.Errorf("the transaction: %v", response)
	}
	wantValue(t, cached, "leased", "3")
	_, err = cached.Delete(ctx, "leased")
	check(t, err)
	wantValue(t, other, "leased", "")
}

// A mirror begins with what is there, in pages of 1000, and goes on with what
// changes.
func testMirror(t *testing.T, c *cluster) {
	ctx, client := bounded(t), c.client(t)
	const keys, perTxn = 1100, 100
	for i := 0; i < keys; i += perTxn {
		var puts []clientv3.Op
		for j := i; j < i+perTxn; j++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("mirror/%04d", j), "v"))
		}
		_, err := client.Txn(ctx).Then(puts...).Commit()
		check(t, err)
	}
	syncer := mirror.NewSyncer(c.client(t, 1), "mirror/", 0)
	base, failed := syncer.SyncBase(ctx)
	var got []string
	for page := range base {
		for _, kv := range page.Kvs {
			got = append(got, string(kv.Key))
		}
	}
	check(t, <-failed)
	if len(got) != keys || !slices.IsSorted(got) || got[keys-1] != "mirror/1099" {
		t.Errorf("%d keys, %q to %q", len(got), got[0], got[len(got)-1])
	}
	updates := syncer.SyncUpdates(ctx)
	put(t, client, "mirror/new", "v")
	_, err := client.Delete(ctx, "mirror/new")
	check(t, err)
	var events []string
	for len(events) < 2 {
		for _, event := range next(t, updates).Events {
			events = append(events, fmt.Sprint(event.Type, " ", string(event.Kv.Key)))
		}
	}
	if want := []string{"PUT mirror/new", "DELETE mirror/new"}; !slices.Equal(events, want) {
		t.Errorf("updates %q, want %q", events, want)
	}
}

// gRPC finds the servers of a service by their names in the cluster: here the
// members themselves.
func testNaming(t *testing.T, c *cluster) {
	ctx, client := bounded(t), c.client(t, 0) // lists are read without consensus
	manager, err := endpoints.NewManager(client, "services/health")
	check(t, err)
	updates, err := manager.NewWatchChannel(ctx)
	check(t, err)
	for i, endpoint := range c.endpoints {
		check(t, manager.AddEndpoint(ctx, fmt.Sprint("services/health/m", i), endpoints.Endpoint{Addr: strings.TrimPrefix(endpoint, "http://")}))
	}
	added := map[string]string{}
	for len(added) < len(c.endpoints) {
		for _, update := range next(t, updates) {
			added[update.Key] = update.Endpoint.Addr
		}
	}
	check(t, manager.DeleteEndpoint(ctx, "services/health/m0"))
	listed, err := manager.List(ctx)
	check(t, err)
	if len(listed) != len(c.endpoints)-1 || listed["services/health/m1"].Addr != added["services/health/m1"] {
		t.Errorf("listed are %v of %v", listed, added)
	}
	builder, err := resolver.NewBuilder(client)
	check(t, err)
	conn, err := grpc.NewClient("etcd:///services/health", grpc.WithResolvers(builder), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	response, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	check(t, err)
	if response.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("the member is %v", response.GetStatus())
	}
}

func testNamespace(t *testing.T, c *cluster) {
	ctx, plain := bounded(t), c.client(t)
	kv := namespace.NewKV(plain, "ns/")
	watcher := namespace.NewWatcher(plain, "ns/")
	defer watcher.Close()
	leases := namespace.NewLease(plain, "ns/")
	watched := watcher.Watch(clientv3.WithRequireLeader(ctx), "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if !next(t, watched).Created {
		t.Error("the watch does not begin with its creation")
	}
	granted, err := leases.Grant(ctx, 600)
	check(t, err)
	_, err = kv.Put(ctx, "a", "1", clientv3.WithLease(granted.ID))
	check(t, err)
	wantValue(t, plain, "ns/a", "1")
	event := next(t, watched).Events[0]
	if string(event.Kv.Key) != "a" || string(event.Kv.Value) != "1" {
		t.Errorf("watched %v", event)
	}
	left, err := leases.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	check(t, err)
	if len(left.Keys) != 1 || string(left.Keys[0]) != "a" {
		t.Errorf("the lease has %q", left.Keys)
	}
	response, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.LeaseValue("a"), "=", granted.ID)).
		Then(clientv3.OpDelete("", clientv3.WithPrefix()), clientv3.OpGet("a")).Commit()
	check(t, err)
	if !response.Succeeded || response.Responses[0].GetResponseDeleteRange().GetDeleted() != 1 {
		t.Errorf("the transaction: %v", response)
	}
	wantValue(t, plain, "ns/a", "")
}

// Reads of one member after the other never go back in time.
func testOrdering(t *testing.T, c *cluster) {
	ctx, client := bounded(t), c.client(t)
	ordered := ordering.NewKV(client, ordering.NewOrderViolationSwitchEndpointClosure(client))
	var last int64
	for i := range 30 {
		put(t, client, "ordering", fmt.Sprint(i))
		_, err := ordered.Get(ctx, "ordering")
		check(t, err)
		response, err := ordered.Get(ctx, "ordering", clientv3.WithSerializable())
		if errors.Is(err, ordering.ErrNoGreaterRev) {
			continue // no member has applied it yet
		}
		check(t, err)
		if response.Header.Revision < last {
			t.Errorf("revision %d after %d", response.Header.Revision, last)
		}
		last = response.Header.Revision
	}
}

// The interface that kube-apiserver stores its objects through.
func testKubernetes(t *testing.T, c *cluster) {
	ctx := bounded(t)
	client, err := kubernetes.New(clientv3.Config{Endpoints: c.endpoints, DialTimeout: patience})
	check(t, err)
	defer client.Close()
	created, err := client.Kubernetes.OptimisticPut(ctx, "/registry/pods/a", []byte("1"), 0, kubernetes.PutOptions{})
	check(t, err)
	if !created.Succeeded {
		t.Error("not created")
	}
	conflict, err := client.Kubernetes.OptimisticPut(ctx, "/registry/pods/a", []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true})
	check(t, err)
	if conflict.Succeeded || string(conflict.KV.Value) != "1" || conflict.KV.ModRevision != created.Revision {
		t.Errorf("created twice: %v", conflict)
	}
	for _, name := range []string{"b", "c"} {
		_, err := client.Kubernetes.OptimisticPut(ctx, "/registry/pods/"+name, []byte("1"), 0, kubernetes.PutOptions{})
		check(t, err)
	}
	page, err := client.Kubernetes.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 2})
	check(t, err)
	rest, err := client.Kubernetes.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 2, Revision: page.Revision, Continue: string(page.Kvs[1].Key) + "\x00"})
	check(t, err)
	if len(page.Kvs) != 2 || page.Count != 3 || len(rest.Kvs) != 1 || string(rest.Kvs[0].Key) != "/registry/pods/c" {
		t.Errorf("pages %v and %v", page, rest)
	}
	deleted, err := client.Kubernetes.OptimisticDelete(ctx, "/registry/pods/a", created.Revision, kubernetes.DeleteOptions{})
	check(t, err)
	count, err := client.Kubernetes.Count(ctx, "/registry/pods/", kubernetes.CountOptions{})
	check(t, err)
	got, err := client.Kubernetes.Get(ctx, "/registry/pods/a", kubernetes.GetOptions{Revision: created.Revision})
	check(t, err)
	if !deleted.Succeeded || count != 2 || string(got.KV.Value) != "1" {
		t.Errorf("deleted %v, %d are left, and there was %v", deleted, count, got)
	}
}

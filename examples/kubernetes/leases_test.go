package kubernetes

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const (
	someEvents = 100
	eventsKey  = "/registry/events/events/"
)

// makeEvents makes events, which kube-apiserver gives a time to live: it
// attaches the store's leases to them, one to many.
func makeEvents(t *testing.T, a *apiserver) {
	a.makeNamespace(t, "events")
	var group errgroup.Group
	group.SetLimit(16)
	for i := range someEvents {
		group.Go(func() error {
			event := &corev1.Event{
				ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("event-%03d", i)},
				InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", Namespace: "events", Name: "any"}, Reason: "Test", Type: "Normal",
			}
			_, err := a.clients.CoreV1().Events("events").Create(t.Context(), event, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	got, err := a.store.client.Get(t.Context(), eventsKey, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	leases := map[int64]int{}
	for _, kv := range got.Kvs {
		leases[kv.Lease]++
	}
	if leases[0] > 0 || len(leases) == 0 || len(leases) > someEvents/4 {
		t.Errorf("%d events have the leases %v, want few of them", got.Count, leases)
	}
	for id := range leases {
		ttl, err := a.store.client.TimeToLive(t.Context(), clientv3.LeaseID(id), clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		if limit := int64(2 * eventTTL / time.Second); ttl.GrantedTTL < int64(eventTTL/time.Second) || ttl.GrantedTTL > limit {
			t.Errorf("the lease of events was granted for %d s, want about %v", ttl.GrantedTTL, eventTTL)
		}
		for _, key := range ttl.Keys {
			if !strings.HasPrefix(string(key), "/registry/events/") {
				t.Errorf("%s is on the lease of events", key)
			}
		}
	}
}

// eventsEnd waits until the events are gone, by themselves, from the store and
// from what kube-apiserver lists.
func eventsEnd(t *testing.T, a *apiserver) {
	eventually(t, 2*time.Minute, "the end of the events", func() error {
		got, err := a.store.client.Get(t.Context(), eventsKey, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		list, err := a.clients.CoreV1().Events("events").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if got.Count > 0 || len(list.Items) > 0 {
			return fmt.Errorf("%d events are in the store, %d are listed", got.Count, len(list.Items))
		}
		return nil
	})
}

// patient is a client that waits for its answers, whatever happens: one that hangs
// up has kube-apiserver log that, in many words.
type patient struct {
	coordinationclient.LeasesGetter
}

func (p patient) Leases(namespace string) coordinationclient.LeaseInterface {
	return patientLeases{p.LeasesGetter.Leases(namespace)}
}

type patientLeases struct {
	coordinationclient.LeaseInterface
}

func (p patientLeases) Get(ctx context.Context, name string, options metav1.GetOptions) (*coordinationv1.Lease, error) {
	return p.LeaseInterface.Get(context.WithoutCancel(ctx), name, options)
}

func (p patientLeases) Create(ctx context.Context, lease *coordinationv1.Lease, options metav1.CreateOptions) (*coordinationv1.Lease, error) {
	return p.LeaseInterface.Create(context.WithoutCancel(ctx), lease, options)
}

func (p patientLeases) Update(ctx context.Context, lease *coordinationv1.Lease, options metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	return p.LeaseInterface.Update(context.WithoutCancel(ctx), lease, options)
}

// leaderElection has two candidates, as controller managers are, and the one
// that leads give up.
func leaderElection(t *testing.T, a *apiserver) {
	a.makeNamespace(t, "election")
	leads := make(chan string, 2)
	candidate := func(name string) (resign func()) {
		t.Helper()
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta: metav1.ObjectMeta{Namespace: "election", Name: "manager"}, Client: patient{a.clients.CoordinationV1()},
				LockConfig: resourcelock.ResourceLockConfig{Identity: name},
			},
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 500 * time.Millisecond, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { leads <- name },
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			elector.Run(ctx)
			close(ended)
		}()
		return func() {
			cancel()
			<-ended
		}
	}
	next := func(want string) {
		t.Helper()
		select {
		case name := <-leads:
			if name != want {
				t.Fatalf("%s leads, want %s", name, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nobody leads, want %s", want)
		}
	}
	resign := candidate("first")
	next("first")
	resignToo := candidate("second")
	defer resignToo()
	resign()
	next("second")
}

package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

// conflicts has several writers count in one object: each loses against a newer
// version and tries again, and no count is lost.
func conflicts(t *testing.T, a *apiserver) {
	a.makeNamespace(t, namespace)
	maps := a.clients.CoreV1().ConfigMaps(namespace)
	if _, err := maps.Create(t.Context(), configMap("counter", map[string]string{"n": "0"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Create(t.Context(), configMap("counter", nil), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating it again: %v", err)
	}
	stale, err := maps.Get(t.Context(), "counter", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 20
	var group errgroup.Group
	for range writers {
		group.Go(func() error {
			for range each {
				if err := increment(t.Context(), maps); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	m, err := maps.Get(t.Context(), "counter", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Data["n"] != strconv.Itoa(writers*each) {
		t.Errorf("%s was counted, want %d", m.Data["n"], writers*each)
	}
	if _, err := maps.Update(t.Context(), stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old version: %v", err)
	}
}

// increment counts one up in the object counter, as often as it takes.
func increment(ctx context.Context, maps corev1client.ConfigMapInterface) error {
	for {
		m, err := maps.Get(ctx, "counter", metav1.GetOptions{})
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(m.Data["n"])
		if err != nil {
			return err
		}
		m.Data["n"] = strconv.Itoa(n + 1)
		if _, err = maps.Update(ctx, m, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// serverSideApply has two managers own fields of one object.
func serverSideApply(t *testing.T, a *apiserver) {
	maps := a.clients.CoreV1().ConfigMaps(namespace)
	apply := func(manager, data string, force bool) (*corev1.ConfigMap, error) {
		patch := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"},"data":%s}`, data)
		return maps.Patch(t.Context(), "applied", types.ApplyPatchType, []byte(patch), metav1.PatchOptions{FieldManager: manager, Force: &force})
	}
	if _, err := apply("first", `{"a":"1","b":"1"}`, false); err != nil {
		t.Fatal(err)
	}
	if _, err := apply("second", `{"b":"2"}`, false); !apierrors.IsConflict(err) {
		t.Errorf("the second manager takes a field without force: %v", err)
	}
	if _, err := apply("second", `{"b":"2"}`, true); err != nil {
		t.Fatal(err)
	}
	m, err := apply("first", `{}`, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Data) != 1 || m.Data["b"] != "2" {
		t.Errorf("when the first manager lets go there is %v, want b alone", m.Data)
	}
}

// encryptionAtRest looks for a secret in the store, where it must not be
// readable.
func encryptionAtRest(t *testing.T, a *apiserver) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "hidden"}, Data: map[string][]byte{"password": []byte("not to be seen")}}
	if _, err := a.clients.CoreV1().Secrets(namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := a.store.client.Get(t.Context(), "/registry/secrets/"+namespace+"/hidden")
	if err != nil {
		t.Fatal(err)
	}
	if got.Count != 1 || !bytes.HasPrefix(got.Kvs[0].Value, []byte("k8s:enc:aescbc:v1:test:")) || bytes.Contains(got.Kvs[0].Value, []byte("not to be seen")) {
		t.Errorf("the store has %q", got.Kvs)
	}
	back, err := a.clients.CoreV1().Secrets(namespace).Get(t.Context(), "hidden", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if string(back.Data["password"]) != "not to be seen" {
		t.Errorf("kube-apiserver reads %q", back.Data)
	}
}

// pages lists in pages that are read from one revision, while the objects
// change.
func pages(t *testing.T, a *apiserver) {
	const objects, page = 230, 50
	a.makeNamespace(t, "pages")
	maps := a.clients.CoreV1().ConfigMaps("pages")
	var group errgroup.Group
	group.SetLimit(16)
	for i := range objects {
		group.Go(func() error {
			_, err := maps.Create(t.Context(), configMap(fmt.Sprintf("object-%03d", i), nil), metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	options := metav1.ListOptions{Limit: page}
	version, seen := "", map[string]bool{}
	for {
		list, err := maps.List(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		if version == "" {
			version = list.ResourceVersion
		} else if version != list.ResourceVersion {
			t.Errorf("a page is of version %s, the first one of %s", list.ResourceVersion, version)
		}
		for _, m := range list.Items {
			seen[m.Name] = true
		}
		if list.Continue == "" {
			break
		}
		if want := int64(objects - len(seen)); list.RemainingItemCount == nil || *list.RemainingItemCount != want {
			t.Errorf("after %d objects %v remain, want %d", len(seen), list.RemainingItemCount, want)
		}
		options.Continue = list.Continue
		// What is deleted meanwhile is still on its page.
		if err := maps.Delete(t.Context(), fmt.Sprintf("object-%03d", objects-1-len(seen)/page), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != objects {
		t.Errorf("%d objects on all pages, want %d", len(seen), objects)
	}
}

// watchAndResume watches from a version, gets bookmarks, and goes on from one
// without losing or repeating an event.
func watchAndResume(t *testing.T, a *apiserver) {
	a.makeNamespace(t, "watch")
	maps := a.clients.CoreV1().ConfigMaps("watch")
	if _, err := maps.Create(t.Context(), configMap("watched", map[string]string{"n": "0"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := maps.List(t.Context(), metav1.ListOptions{LabelSelector: "!none"})
	if err != nil {
		t.Fatal(err)
	}
	change := func(from, to int) {
		t.Helper()
		for i := from; i <= to; i++ {
			patch := fmt.Sprintf(`{"data":{"n":"%d"}}`, i)
			if _, err := maps.Patch(t.Context(), "watched", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := func(w watch.Interface, kind watch.EventType) *corev1.ConfigMap {
		t.Helper()
		for {
			select {
			case event, ok := <-w.ResultChan():
				if !ok {
					t.Fatal("the watch has ended")
				}
				if event.Type == watch.Error {
					t.Fatalf("the watch fails: %v", apierrors.FromObject(event.Object))
				}
				if event.Type == kind {
					return event.Object.(*corev1.ConfigMap)
				}
				if event.Type != watch.Bookmark {
					t.Fatalf("%s of %v, want %s", event.Type, event.Object, kind)
				}
			case <-time.After(3 * time.Minute):
				t.Fatalf("no %s", kind)
			}
		}
	}
	options := metav1.ListOptions{ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true}
	w, err := maps.Watch(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	change(1, 50)
	for i := 1; i <= 50; i++ {
		if m := next(w, watch.Modified); m.Data["n"] != strconv.Itoa(i) {
			t.Fatalf("change %s, want %d", m.Data["n"], i)
		}
	}
	bookmark := next(w, watch.Bookmark)
	w.Stop()
	change(51, 100)
	options.ResourceVersion = bookmark.ResourceVersion
	if w, err = maps.Watch(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for i := 51; i <= 100; i++ {
		if m := next(w, watch.Modified); m.Data["n"] != strconv.Itoa(i) {
			t.Fatalf("after the bookmark change %s, want %d", m.Data["n"], i)
		}
	}
}

// compaction waits until kube-apiserver has compacted the store, after which an
// old revision can be neither read nor watched.
func compaction(t *testing.T, a *apiserver) {
	maps := a.clients.CoreV1().ConfigMaps(namespace)
	old, err := maps.Create(t.Context(), configMap("old", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := strconv.ParseInt(old.ResourceVersion, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "the compaction", func() error {
		if _, err := maps.Patch(t.Context(), "old", types.MergePatchType, []byte(fmt.Sprintf(`{"data":{"at":"%d"}}`, time.Now().UnixNano())), metav1.PatchOptions{}); err != nil {
			return err
		}
		_, err := a.store.client.Get(t.Context(), "/registry", clientv3.WithRev(revision))
		if err == nil {
			return errors.New("the old revision can still be read")
		}
		return nil
	})
	w, err := maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	select {
	case event := <-w.ResultChan():
		if event.Type != watch.Error || !apierrors.IsGone(apierrors.FromObject(event.Object)) && !apierrors.IsResourceExpired(apierrors.FromObject(event.Object)) {
			t.Errorf("a watch from version 1 begins with %s of %v", event.Type, event.Object)
		}
	case <-time.After(time.Minute):
		t.Error("a watch from version 1 says nothing")
	}
}

// load creates nodes and pods while the nodes send heartbeats, members restart
// and the leader changes.
func load(t *testing.T, a *apiserver) {
	a.makeNamespace(t, "load")
	a.makeNamespace(t, "kube-node-lease")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group errgroup.Group
	group.SetLimit(32)
	for i := range *nodes {
		group.Go(func() error {
			name := fmt.Sprintf("node-%04d", i)
			if _, err := a.clients.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
				return err
			}
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &name}}
			_, err := a.clients.CoordinationV1().Leases("kube-node-lease").Create(ctx, lease, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var beats, missed int
	var mu sync.Mutex
	var hearts sync.WaitGroup
	for worker := range 8 {
		hearts.Go(func() {
			for ctx.Err() == nil {
				for i := worker; i < *nodes && ctx.Err() == nil; i += 8 {
					err := a.heartbeat(t.Context(), fmt.Sprintf("node-%04d", i)) // the last one is not cut off
					mu.Lock()
					beats++
					if err != nil {
						missed++
						t.Logf("a heartbeat is missed: %v", err)
					}
					mu.Unlock()
				}
			}
		})
	}
	disturbed := make(chan error, 1)
	go func() { disturbed <- a.disturb(ctx) }()
	group = errgroup.Group{}
	group.SetLimit(32)
	for i := range *pods {
		group.Go(func() error {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%05d", i)},
				Spec:       corev1.PodSpec{NodeName: fmt.Sprintf("node-%04d", i%*nodes), Containers: []corev1.Container{{Name: "main", Image: "example.invalid/image"}}},
			}
			return a.insist(ctx, func() error {
				_, err := a.clients.CoreV1().Pods("load").Create(ctx, pod, metav1.CreateOptions{})
				if apierrors.IsAlreadyExists(err) { // an answer was lost
					return nil
				}
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := <-disturbed; err != nil {
		t.Fatal(err)
	}
	cancel()
	hearts.Wait()
	list, err := a.clients.CoreV1().Pods("load").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != *pods {
		t.Errorf("%d pods, want %d", len(list.Items), *pods)
	}
	t.Logf("%d pods on %d nodes, %d heartbeats, %d of them missed", *pods, *nodes, beats, missed)
}

// heartbeat is what a kubelet sends: its lease is renewed.
func (a *apiserver) heartbeat(ctx context.Context, node string) error {
	patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
	_, err := a.clients.CoordinationV1().Leases("kube-node-lease").Patch(ctx, node, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// insist tries again while the store has no leader or a member is away.
func (a *apiserver) insist(ctx context.Context, do func() error) error {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := do()
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		if !apierrors.IsInternalError(err) && !apierrors.IsTimeout(err) && !apierrors.IsServerTimeout(err) && !apierrors.IsServiceUnavailable(err) && !apierrors.IsTooManyRequests(err) {
			return err
		}
	}
}

// disturb takes the leader away and brings it back, and restarts every other
// member.
func (a *apiserver) disturb(ctx context.Context) error {
	all := len(a.store.endpoints)
	lost, err := a.store.leader(ctx, -1)
	if err != nil {
		return err
	}
	if err := a.store.systemctl("stop", lost); err != nil {
		return err
	}
	if err := a.settled(ctx, lost); err != nil {
		return fmt.Errorf("after the loss of controller-%d: %w", lost, err)
	}
	err = a.insist(ctx, func() error {
		_, err := a.clients.CoreV1().ConfigMaps("load").Create(ctx, configMap("without-one", nil), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // an answer was lost
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("write without controller-%d: %w", lost, err)
	}
	if err := a.store.systemctl("start", lost); err != nil {
		return err
	}
	for i := range all {
		host := (lost + i) % all
		if i > 0 {
			if err := a.store.systemctl("restart", host); err != nil {
				return err
			}
		}
		if err := a.settled(ctx, -1); err != nil {
			return fmt.Errorf("after the start of controller-%d: %w", host, err)
		}
	}
	return nil
}

// settled waits until every member but one, or all with -1, know a leader.
func (a *apiserver) settled(ctx context.Context, but int) error {
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := a.store.leader(ctx, but)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

// restartOfTheAPIServer finds everything again after a restart, and enters itself
// into the store for as long as it lives.
func restartOfTheAPIServer(t *testing.T, a *apiserver) {
	a.whileBroken(t, func() {
		a.stop()
		a.start(t)
	})
	t.Logf("/readyz after %.2fs", a.Ready.Seconds())
	m, err := a.clients.CoreV1().ConfigMaps("watch").Get(t.Context(), "watched", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Data["n"] != "100" {
		t.Errorf("what was written last is %s, want 100", m.Data["n"])
	}
	eventually(t, time.Minute, "the entries of kube-apiserver itself", func() error {
		for _, prefix := range []string{"/registry/masterleases/", "/registry/peerserverleases/"} {
			got, err := a.store.client.Get(t.Context(), prefix, clientv3.WithPrefix())
			if err != nil {
				return err
			}
			if got.Count != 1 || got.Kvs[0].Lease == 0 {
				return fmt.Errorf("%s: %v, want one key on a lease", prefix, got.Kvs)
			}
		}
		return nil
	})
}

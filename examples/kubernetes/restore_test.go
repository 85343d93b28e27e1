package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
)

// TestRestoreToEtcd founds a cluster of the etcd that this Kubernetes has, which is
// older than musterd's storage, from a snapshot of musterd's.
func TestRestoreToEtcd(t *testing.T) {
	s := startStore(t, "musterd")
	if _, err := s.client.Put(t.Context(), "/registry/kept", "by musterd"); err != nil {
		t.Fatal(err)
	}
	saved := s.path("saved.db")
	s.muster("backup", saved)
	inventory, err := os.ReadFile(s.inventory)
	if err != nil {
		t.Fatal(err)
	}
	server := fmt.Appendf(inventory, "\nserver:\n  binary: %s\n", filepath.Join(programs, "etcd"))
	if err := os.WriteFile(s.inventory, server, 0o600); err != nil {
		t.Fatal(err)
	}
	s.muster("restore", saved, "--yes-lose-writes", "practice", "--binary-dir", programs)
	got, err := s.client.Get(t.Context(), "/registry/kept")
	if err != nil || got.Count != 1 || string(got.Kvs[0].Value) != "by musterd" {
		t.Errorf("%v, %v", got, err)
	}
	status, err := s.client.Status(t.Context(), s.endpoints[0])
	if err != nil || !strings.HasPrefix(status.Version, "3.6.") {
		t.Errorf("the server is %v, %v", status, err)
	}
}

// TestRestoreUnderClients restores the store of a kube-apiserver that goes on, as
// do its clients. None of them may believe in what the restore has taken away, nor
// miss what comes after it.
func TestRestoreUnderClients(t *testing.T) {
	for _, name := range []string{"musterd", "etcd"} {
		t.Run(name, func(t *testing.T) {
			s := startStore(t, name)
			a := startAPIServer(t, s)
			a.makeNamespace(t, "restore")
			maps := a.clients.CoreV1().ConfigMaps("restore")
			factory := informers.NewSharedInformerFactoryWithOptions(a.clients, 0, informers.WithNamespace("restore"))
			cache := factory.Core().V1().ConfigMaps().Informer()
			factory.Start(t.Context().Done())
			create := func(names ...string) {
				t.Helper()
				for _, name := range names {
					eventually(t, time.Minute, "create "+name, func() error {
						_, err := maps.Create(t.Context(), configMap(name, nil), metav1.CreateOptions{})
						return err
					})
				}
			}
			knows := func(want ...string) {
				t.Helper()
				eventually(t, time.Minute, "what the informer knows", func() error {
					var known []string
					for _, key := range cache.GetStore().ListKeys() {
						if name := strings.TrimPrefix(key, "restore/"); name != "kube-root-ca.crt" {
							known = append(known, name)
						}
					}
					if slices.Sort(known); !slices.Equal(known, want) {
						return fmt.Errorf("it has %v, want %v", known, want)
					}
					return nil
				})
			}
			create("kept")
			s.muster("backup", s.path("saved.db"))
			create("lost-0", "lost-1", "lost-2", "lost-3")
			knows("kept", "lost-0", "lost-1", "lost-2", "lost-3")
			s.muster("restore", s.path("saved.db"), "--yes-lose-writes", "practice", "--binary-dir", programs)
			knows("kept")
			// As many as were lost, and more: the revisions would come once more.
			create("new-0", "new-1", "new-2", "new-3", "new-4", "new-5")
			knows("kept", "new-0", "new-1", "new-2", "new-3", "new-4", "new-5")
		})
	}
}

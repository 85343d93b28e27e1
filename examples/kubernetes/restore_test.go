package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

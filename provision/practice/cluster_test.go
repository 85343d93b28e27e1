package practice_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"muster/provision/inventory"
	"muster/provision/practice"
)

func load(t *testing.T, name string) *inventory.Cluster {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	c, warnings, err := inventory.Load(name, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Errorf("warning: %v", w)
	}
	return c
}

// The inventory says everything that is needed to reach the hosts.
func TestClusterInventory(t *testing.T) {
	dir := t.TempDir()
	c, err := practice.StartCluster(practice.ClusterOptions{Dir: dir, Hosts: 3})
	if err != nil {
		t.Fatal(err)
	}
	first := load(t, c.Inventory)
	if len(first.Hosts) != 3 || first.PKI.Dir != filepath.Join(dir, "practice-pki") {
		t.Errorf("%+v", first)
	}
	for _, h := range first.Hosts {
		loginBy(t, h)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	if c, err = practice.StartCluster(practice.ClusterOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i, h := range load(t, c.Inventory).Hosts {
		if h.Address != first.Hosts[i].Address || h.SSH.HostKey != first.Hosts[i].SSH.HostKey {
			t.Errorf("%s is another host now", h.Name)
		}
		loginBy(t, h)
	}
	if _, err := practice.StartCluster(practice.ClusterOptions{Dir: dir}); err == nil {
		t.Error("the same hosts were started twice")
	}
	if _, err := practice.StartCluster(practice.ClusterOptions{Dir: dir, Hosts: 5}); err == nil {
		t.Error("three hosts were taken for five")
	}
}

func loginBy(t *testing.T, h inventory.Host) {
	t.Helper()
	key, err := os.ReadFile(h.SSH.IdentityFile)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ssh.Dial("tcp", net.JoinHostPort(h.Address, strconv.Itoa(h.SSH.Port)), &ssh.ClientConfig{
		User: h.SSH.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: 10 * time.Second,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if got := ssh.FingerprintSHA256(key); got != h.SSH.HostKey {
				t.Errorf("%s: host key %s, the inventory says %s", h.Name, got, h.SSH.HostKey)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

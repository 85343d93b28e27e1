package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"muster/provision/found"
	"muster/provision/practice"
	"muster/provision/practice/oldetcd"
)

// etcd is the path of etcd's own server, which is made the first time.
func (w *workstation) etcd(t *testing.T) string {
	t.Helper()
	path := filepath.Join(w.home, "etcd")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path
	}
	build := exec.Command("go", "build", "-trimpath", "-o", path, "go.etcd.io/etcd/server/v3")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build etcd: %v\n%s", err, out)
	}
	return path
}

// adopts types what README.md says: look at the hosts, then take over what was
// found there.
func (w *workstation) adopts(t *testing.T) {
	c, err := practice.StartCluster(practice.ClusterOptions{Dir: t.TempDir(), Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	h := c.Hosts[0]
	old := oldetcd.Cluster{Installer: found.Kubespray, Hosts: c.Hosts, Program: w.etcd(t), PKI: filepath.Join(t.TempDir(), "pki"), Flags: map[string]string{"heartbeat-interval": "150", "proxy": "off"}}
	bundle, err := old.Install(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(c.Inventory)
	hostKey, err := os.ReadFile(filepath.Join(dir, h.Name(), "host_key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(hostKey)
	if err != nil {
		t.Fatal(err)
	}
	at := h.Address() + ":" + strconv.Itoa(h.Ports().SSH)
	if err := os.MkdirAll(filepath.Join(w.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(w.home, ".ssh", "known_hosts")
	if err := os.WriteFile(known, []byte(knownhosts.Line([]string{knownhosts.Normalize(at)}, key.PublicKey())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(known)
	l := startLoad(t, c, bundle.CA, bundle.APIServerEtcdClient)

	file := filepath.Join(t.TempDir(), "mine.yaml")
	cmd := w.command("adopt", "-f", file, "--cluster", "mine", "--identity-file", filepath.Join(dir, "id_ed25519"), "root@"+at)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"cluster mine is an etcd of 1 member, with a database of ", "by kubespray (etcd.service), data in /var/lib/etcd",
		"it becomes a cluster of musterd, as musterd.service, with its data in /var/lib/muster:", "the flag proxy does not go on: ", "; no host was changed\nnext: muster adopt -f " + file,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "heartbeat-interval: \"150\"") {
		t.Errorf("%v\n%s", err, text)
	}
	if out, err := w.command("adopt", "-f", file, "--binary-dir", w.programs).CombinedOutput(); err == nil || !strings.Contains(string(out), "nobody can answer") {
		t.Errorf("without a question: %v\n%s", err, out)
	}
	story := w.run(t, "adopt", "-f", file, "--yes", "--binary-dir", w.programs)
	if !strings.Contains(story, "cluster mine is taken over and verified: ") || !strings.Contains(story, ", writes were refused for ") {
		t.Errorf("it says\n%s", story)
	}
	if again := w.mustApply(t, file); again.Changes != 0 {
		t.Errorf("%d changes were left", again.Changes)
	}
	if out, err := w.command("adopt", "-f", file, "--undo").CombinedOutput(); err == nil || !strings.Contains(string(out), "cluster mine goes back to what ran it before") || !strings.Contains(string(out), "nobody can answer") {
		t.Errorf("undone without a question: %v\n%s", err, out)
	}
	story = w.run(t, "adopt", "-f", file, "--undo", "--yes")
	if !strings.Contains(story, "the old members of cluster mine serve again: ") || !strings.Contains(story, ", writes were refused for ") {
		t.Errorf("it says\n%s", story)
	}
	l.mustHaveAll(t)
}

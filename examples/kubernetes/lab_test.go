package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	labName   = "muster-lab-stacked"
	labSubnet = "10.79.0"
	pause     = "lab.local/pause:1" // as the lab's containerd is told
	apiImage  = "registry.k8s.io/kube-apiserver:" + kubernetesVersion
	podsDelay = 3 * time.Minute
)

// labKind says which container runtime the machines have.
type labKind string

const (
	withContainerd labKind = "kubernetes"
	withCRIO       labKind = "crio"
)

// importImage is the command that imports an image from an archive.
func (k labKind) importImage() string {
	if k == withCRIO {
		return "podman load -q -i"
	}
	return "ctr -n k8s.io images import"
}

func (k labKind) listImages() string {
	if k == withCRIO {
		return "podman images --format '{{.Repository}}:{{.Tag}}'"
	}
	return "ctr -n k8s.io images ls -q"
}

// run is a command that runs another one with an image's files.
func (k labKind) run(image, command string) string {
	if k == withCRIO {
		return "chroot $(podman image mount " + image + ") " + command + " && podman image unmount " + image + " >/dev/null"
	}
	return "ctr -n k8s.io run --rm " + image + " one " + command
}

// machines are hosts of the lab that are ready for kubeadm, and the computer from
// which they are administered.
type machines struct {
	t     *testing.T
	kind  labKind
	names []string
	// dir is where the administrator works: its commands find the programs and
	// the machines.
	dir string
	env []string
}

// startMachines makes n machines, with the programs of Kubernetes and the images
// that its pods need. They go when the test ends, unless it failed and -keep is
// set.
func startMachines(t *testing.T, kind labKind, n int) *machines {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Fatalf("the machines are containers: %v; run: make setup", err)
	}
	m := &machines{t: t, kind: kind, dir: t.TempDir()}
	for i := range n {
		name := "controlplane"
		if i > 0 {
			name = fmt.Sprintf("controlplane-%d", i)
		}
		m.names = append(m.names, name)
	}
	m.env = append(os.Environ(), "MUSTER_LAB_KIND="+string(kind), "MUSTER_LAB_NAME="+labName, "MUSTER_LAB_NET="+labSubnet)
	m.must(2*time.Minute, "../lab/down")
	t.Cleanup(func() {
		if t.Failed() && *keep {
			t.Logf("the machines are kept; remove them with MUSTER_LAB_NAME=%s examples/lab/down", labName)
			return
		}
		m.must(2*time.Minute, "../lab/down")
	})
	began := time.Now()
	m.must(10*time.Minute, "../lab/up", strconv.Itoa(n))

	images := t.TempDir()
	for archive, image := range map[string]struct{ name, program string }{
		"pause.tar":          {pause, "pause"},
		"kube-apiserver.tar": {apiImage, "kube-apiserver"},
	} {
		inside := "usr/local/bin/" + image.program
		from := map[string]string{inside: filepath.Join(programs, image.program)}
		if err := writeImage(filepath.Join(images, archive), image.name, from, "/"+inside); err != nil {
			t.Fatal(err)
		}
	}
	install := []string{"kubelet", "kubeadm", "kubectl"}
	if kind == withCRIO {
		install = append(install, "pinns", "crio")
	}
	for _, name := range m.names {
		for _, program := range install {
			m.docker("cp", "--quiet", filepath.Join(programs, program), m.container(name)+":/usr/bin/")
		}
		if kind == withCRIO {
			m.docker("exec", m.container(name), "systemctl", "enable", "--now", "crio")
		}
		m.load(name, filepath.Join(images, "pause.tar"))
		m.load(name, filepath.Join(images, "kube-apiserver.tar"))
	}
	m.administer()
	t.Logf("%d machines after %.1fs", n, time.Since(began).Seconds())
	return m
}

// administer makes the computer of the administrator: its programs, and an ssh
// that knows the machines.
func (m *machines) administer() {
	m.t.Helper()
	here, err := os.Getwd()
	if err != nil {
		m.t.Fatal(err)
	}
	config := filepath.Join(here, "..", "lab", ".state", labName, "ssh_config")
	m.write("home/.ssh/config", string(m.read(config)), 0o600) // muster reads it
	m.write("bin/ssh", fmt.Sprintf("#!/bin/sh\nexec %s -F '%s' \"$@\"\n", m.path("ssh"), config), 0o755)
	m.env = append(m.env, "HOME="+filepath.Join(m.dir, "home"),
		"PATH="+filepath.Join(m.dir, "bin")+":"+programs+":"+os.Getenv("PATH"))
}

// path is where a program of this computer is.
func (m *machines) path(program string) string {
	m.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machines) read(path string) []byte {
	m.t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	return content
}

// write makes a file of the administrator's.
func (m *machines) write(name, content string, mode os.FileMode) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		m.t.Fatal(err)
	}
}

// load has a machine's container runtime read an image.
func (m *machines) load(name, archive string) {
	m.t.Helper()
	inside := "/root/" + filepath.Base(archive)
	m.docker("cp", "--quiet", archive, m.container(name)+":"+inside)
	m.docker("exec", m.container(name), "sh", "-c", m.kind.importImage()+" "+inside)
	m.docker("exec", m.container(name), "rm", inside)
}

func (m *machines) address(i int) string { return fmt.Sprintf("%s.%d", labSubnet, 10+i) }

func (m *machines) container(name string) string { return labName + "-" + name }

// docker does to containers what hands do to machines.
func (m *machines) docker(args ...string) string {
	m.t.Helper()
	command := append([]string{"docker"}, args...)
	if os.Geteuid() != 0 {
		command = append([]string{"sudo", "-n"}, command...)
	}
	return m.must(2*time.Minute, command[0], command[1:]...)
}

// try runs a program and returns what it writes to standard output. The error
// has everything it wrote.
func (m *machines) try(limit time.Duration, dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.Dir, cmd.Env = dir, m.env
	var out, diagnostics bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), diagnostics.String())
	}
	return out.String(), nil
}

func (m *machines) must(limit time.Duration, name string, args ...string) string {
	m.t.Helper()
	out, err := m.try(limit, "", name, args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// administrator runs what the administrator types.
func (m *machines) administrator(limit time.Duration, script string) (string, error) {
	return m.try(limit, m.dir, "bash", "-euo", "pipefail", "-c", script)
}

// types is administrator for what has to work.
func (m *machines) types(limit time.Duration, script string) string {
	m.t.Helper()
	out, err := m.administrator(limit, script)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// on runs a command on a machine, as its root.
func (m *machines) on(name, script string) (string, error) {
	return m.try(time.Minute, "", m.dir+"/bin/ssh", name, script)
}

// mustOn is on for what has to work.
func (m *machines) mustOn(name, script string) string {
	m.t.Helper()
	out, err := m.on(name, script)
	if err != nil {
		m.t.Fatalf("%s: %v", name, err)
	}
	return out
}

// explain logs what a machine says when pods do not come.
func (m *machines) explain(name string) {
	out, err := m.on(name, "journalctl -u kubelet -n 40 --no-pager -o cat; for log in /var/log/pods/*/*/*.log; do echo \"== $log\"; tail -n 10 \"$log\"; done")
	m.t.Logf("%s: %v\n%s", name, err, out)
}

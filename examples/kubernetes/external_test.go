package kubernetes

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestExternal does what examples/kubernetes-external says, with practice hosts
// for its machines, and then what a person would do there with Kubernetes.
func TestExternal(t *testing.T) {
	w := openPage(t, "../kubernetes-external/README.md")
	master := func(n int, path string) string {
		return filepath.Join(w.dir, "hosts", w.hosts[fmt.Sprintf("10.0.0.2%d", n)].Name, "root", path)
	}
	var a *apiserver
	for w.next() {
		switch w.part.kind {
		case "yaml":
			w.install()
		case "console":
			w.run()
		case "kubeadm preflight":
			preflight(t, w.dir, func(path string) string { return master(0, path) })
		case "flags":
			w.comparesWithKubeadm()
			a = w.startAPIServer(func(path string) string { return master(0, path) })
			a.leaveTraces(t, "first")
		case "kubeadm reset":
			for _, name := range []string{"etcd", "apiserver-etcd-client.crt", "apiserver-etcd-client.key"} {
				if err := os.RemoveAll(master(1, "etc/kubernetes/pki/"+name)); err != nil {
					t.Fatal(err)
				}
			}
		case "restart of kube-apiserver":
			a.stop()
			a.start(t)
		case "kube-apiserver works":
			a.leaveTraces(t, "last")
		default:
			t.Fatalf("line %d: nothing is known about %q", w.part.line, w.part.kind)
		}
	}
}

// leaveTraces makes an event and something else.
func (a *apiserver) leaveTraces(t *testing.T, name string) {
	t.Helper()
	about := corev1.ObjectReference{Kind: "ConfigMap", Namespace: "default", Name: name}
	event := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: name}, InvolvedObject: about, Reason: "Test", Type: "Normal"}
	eventually(t, time.Minute, "the namespace default", func() error {
		_, err := a.clients.CoreV1().ConfigMaps("default").Create(t.Context(), configMap(name, nil), metav1.CreateOptions{})
		return err
	})
	if _, err := a.clients.CoreV1().Events("default").Create(t.Context(), event, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := a.clients.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 {
		t.Errorf("%d events about %s, want 1", len(list.Items), name)
	}
}

// startAPIServer starts a kube-apiserver with the flags of the part, and lets
// kubectl use it.
func (w *externalPage) startAPIServer(onMaster func(string) string) *apiserver {
	w.t.Helper()
	s := &store{t: w.t, name: "musterd", dir: w.dir, flags: []string{"--event-ttl=1h"}}
	for _, flag := range w.part.lines {
		s.flags = append(s.flags, kubernetesPath.ReplaceAllStringFunc(w.onPractice(flag), onMaster))
	}
	a := startAPIServer(w.t, s)
	config := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: test, contexts: [{name: test, context: {cluster: test, user: test}}], "+
		"clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}], users: [{name: test, user: {token: %q}}]}\n", a.config.Host, token)
	if err := os.WriteFile(filepath.Join(w.dir, "kubeconfig"), []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return a
}

var (
	kubernetesPath = regexp.MustCompile(`/etc/kubernetes/[^\s"]*`)
	failedCheck    = regexp.MustCompile(`\[ERROR (\S+)\]:`)
)

// initConfiguration writes what kubeadm init is given: what muster has printed,
// adapted, and what else it takes.
func initConfiguration(t *testing.T, dir string, adapt func(string) string) (file string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "kubeadm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// Without a version kubeadm would ask the Internet for one.
	config := adapt(string(text)) + "kubernetesVersion: " + kubernetesVersion + `
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 192.0.2.1}
nodeRegistration: {name: localhost, criSocket: "unix:///run/containerd/containerd.sock"}
`
	file = filepath.Join(dir, "init.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// comparesWithKubeadm has kubeadm write the manifest of a kube-apiserver, which
// must have the flags of the part, and no others that are about etcd.
func (w *externalPage) comparesWithKubeadm() {
	w.t.Helper()
	manifests := w.t.TempDir()
	cmd := exec.Command(filepath.Join(programs, "kubeadm"), "init", "phase", "control-plane", "apiserver", "--dry-run", "--config", initConfiguration(w.t, w.dir, w.renamed.Replace))
	cmd.Env = append(os.Environ(), "KUBEADM_INIT_DRYRUN_DIR="+manifests)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	manifest, err := os.ReadFile(filepath.Join(manifests, "kube-apiserver.yaml"))
	if err != nil {
		w.t.Fatal(err)
	}
	var flags []string
	for _, line := range strings.Split(string(manifest), "\n") {
		if flag := strings.TrimPrefix(strings.TrimSpace(line), "- "); strings.HasPrefix(flag, "--etcd-") {
			flags = append(flags, flag)
		}
	}
	want := slices.Sorted(slices.Values(w.part.lines))
	if slices.Sort(flags); !slices.Equal(flags, want) {
		w.t.Errorf("kubeadm gives kube-apiserver the flags\n%s\nwhere the page has\n%s", strings.Join(flags, "\n"), strings.Join(want, "\n"))
	}
}

// preflight has kubeadm look whether it can begin with the configuration that
// muster has printed. Of this machine it demands much that does not matter here:
// what it finds wrong then is ignored by name, but for the store.
func preflight(t *testing.T, dir string, onMaster func(string) string) {
	t.Helper()
	file := initConfiguration(t, dir, func(text string) string { return kubernetesPath.ReplaceAllStringFunc(text, onMaster) })
	check := func(ignored ...string) (failed []string) {
		cmd := exec.Command(filepath.Join(programs, "kubeadm"), "init", "phase", "preflight", "--dry-run", "--config", file, "--ignore-preflight-errors="+strings.Join(ignored, ","))
		cmd.Env = append(os.Environ(), "KUBEADM_INIT_DRYRUN_DIR="+dir)
		out, err := cmd.CombinedOutput()
		for _, m := range failedCheck.FindAllStringSubmatch(string(out), -1) {
			failed = append(failed, m[1])
		}
		if (err != nil) != (len(failed) > 0) {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		t.Logf("kubeadm, with %d ignored: %s", len(ignored), out)
		return failed
	}
	ofTheStore := func(name string) bool { return strings.HasPrefix(name, "ExternalEtcd") }
	others := check()
	if slices.ContainsFunc(others, ofTheStore) {
		t.Errorf("kubeadm does not accept the cluster: %q", others)
	}
	if failed := check(others...); len(failed) > 0 {
		t.Errorf("kubeadm finds %q", failed)
	}
	// It would have noticed.
	key := onMaster("/etc/kubernetes/pki/apiserver-etcd-client.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	if failed := check(others...); !slices.ContainsFunc(failed, ofTheStore) {
		t.Errorf("without the key kubeadm finds %q", failed)
	}
	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
}

// externalPage is the page that is followed, part by part.
type externalPage struct {
	t       *testing.T
	dir     string // the workstation's
	parts   []part
	part    part
	shell   *shell
	hosts   map[string]practiceHost // by the address on the page
	renamed *strings.Replacer       // practice addresses to the page's
}

// part is one fenced part of the page.
type part struct {
	kind  string // what is said behind the fence, or in a comment to the test
	line  int    // of its first line
	lines []string
}

// practiceHost is a practice host as its inventory names it.
type practiceHost struct {
	Name    string         `yaml:"name"`
	Address string         `yaml:"address"`
	SSH     map[string]any `yaml:"ssh"`
	Server  map[string]int `yaml:"server"`
}

func openPage(t *testing.T, page string) *externalPage {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	w := &externalPage{t: t, dir: t.TempDir()}
	var open *part
	for i, line := range strings.Split(string(text), "\n") {
		kind, fence := strings.CutPrefix(line, "```")
		aside, isAside := strings.CutPrefix(line, "<!-- test: ")
		switch {
		case isAside && open == nil:
			w.parts = append(w.parts, part{kind: strings.TrimSuffix(aside, " -->"), line: i + 1})
		case fence && open == nil:
			open = &part{kind: kind, line: i + 2}
		case fence:
			w.parts = append(w.parts, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, line)
		}
	}
	return w
}

func (w *externalPage) next() bool {
	if len(w.parts) == 0 {
		return false
	}
	w.part, w.parts = w.parts[0], w.parts[1:]
	return true
}

// install writes the inventory for as many practice hosts as the page has
// machines.
func (w *externalPage) install() {
	w.t.Helper()
	page := strings.Join(w.part.lines, "\n") + "\n"
	var documents []map[string]any
	for decoder := yaml.NewDecoder(strings.NewReader(page)); ; {
		var document map[string]any
		err := decoder.Decode(&document)
		if err == io.EOF {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		documents = append(documents, document)
	}
	machines := regexp.MustCompile(`10\.0\.0\.\d+`).FindAllString(page, -1)
	w.practice(machines)
	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	for _, document := range documents {
		document["practice"] = true
		document["ssh"] = map[string]any{"identityFile": filepath.Join(w.dir, "hosts", "id_ed25519")}
		w.place(document["controllers"].([]any), true)
		if k := document["kubernetes"].(map[string]any); k["apiservers"] != nil {
			w.place(k["apiservers"].([]any), false)
		}
		if err := encoder.Encode(document); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(w.dir, "muster.yaml"), text.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.shell = newShell(w.t, w.dir)
}

// practice starts practice hosts for machines of the page.
func (w *externalPage) practice(machines []string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, "hosts")
	start(w.t, exec.Command(filepath.Join(programs, "muster"), "practice", "--dir", dir, "--hosts", strconv.Itoa(len(machines))), filepath.Join(w.dir, "practice.log"), syscall.SIGINT)
	file := filepath.Join(dir, "inventory.yaml")
	eventually(w.t, time.Minute, "the inventory of the practice hosts", func() error {
		_, err := os.Stat(file)
		return err
	})
	text, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	var inventory struct {
		Hosts []practiceHost `yaml:"controllers"`
	}
	if err := yaml.Unmarshal(text, &inventory); err != nil {
		w.t.Fatal(err)
	}
	w.hosts = map[string]practiceHost{}
	var names []string
	for i, machine := range machines {
		h := inventory.Hosts[i]
		w.hosts[machine] = h
		names = append(names, net.JoinHostPort(h.Address, strconv.Itoa(h.Server["clientPort"])), machine+":2379")
	}
	for machine, h := range w.hosts {
		names = append(names, h.Address, machine)
	}
	w.renamed = strings.NewReplacer(names...)
}

// place puts practice hosts in the place of machines.
func (w *externalPage) place(list []any, member bool) {
	for i, item := range list {
		entry, ok := item.(map[string]any)
		if !ok {
			entry = map[string]any{"address": item}
		}
		h := w.hosts[entry["address"].(string)]
		entry["address"], entry["ssh"] = h.Address, h.SSH
		if member {
			entry["server"] = h.Server
		}
		list[i] = entry
	}
}

// run runs the commands of a part and compares what they print.
func (w *externalPage) run() {
	w.t.Helper()
	for i := 0; i < len(w.part.lines); {
		command, ok := strings.CutPrefix(w.part.lines[i], "$ ")
		if !ok {
			w.t.Fatalf("line %d: %q is no command", w.part.line+i, w.part.lines[i])
		}
		at := w.part.line + i
		for i++; strings.HasSuffix(command, "\\"); i++ {
			command = strings.TrimSuffix(command, "\\") + strings.TrimPrefix(w.part.lines[i], "> ")
		}
		var want []string
		for ; i < len(w.part.lines) && !strings.HasPrefix(w.part.lines[i], "$ "); i++ {
			want = append(want, w.part.lines[i])
		}
		got, status := w.shell.run(w.onPractice(command))
		got = w.renamed.Replace(got)
		w.t.Logf("$ %s\n%s", command, got)
		if status != 0 && status != 2 || !matches(want, got) { // 2: muster plan has changes
			w.t.Fatalf("line %d: %s: exit status %d, and it prints\n%s\nwhere the page has\n%s", at, command, status, got, strings.Join(want, "\n"))
		}
	}
}

var member = regexp.MustCompile(`10\.0\.0\.\d+(:2379)?`)

// onPractice puts practice hosts in the place of the machines that a text names.
func (w *externalPage) onPractice(text string) string {
	return member.ReplaceAllStringFunc(text, func(name string) string {
		address, port, _ := strings.Cut(name, ":")
		h, ok := w.hosts[address]
		if !ok {
			return name
		}
		if port != "" {
			return net.JoinHostPort(h.Address, strconv.Itoa(h.Server["clientPort"]))
		}
		return h.Address
	})
}

// matches compares lines with what was printed: "..." stands for anything, as a
// line of its own for any lines, and one space for several.
func matches(want []string, got string) bool {
	pattern := "^"
	for _, line := range want {
		if line == "..." {
			pattern += `(?:.*\n)*?`
			continue
		}
		line = strings.Join(strings.Fields(line), " ")
		line = strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`)
		pattern += ` *` + strings.ReplaceAll(line, " ", ` +`) + ` *\n`
	}
	return regexp.MustCompile(pattern + "$").MatchString(got)
}

// shell is a shell that keeps its variables from one command to the next.
type shell struct {
	t     *testing.T
	in    io.Writer
	lines *bufio.Reader
}

func newShell(t *testing.T, dir string) *shell {
	t.Helper()
	cmd := exec.Command("sh")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "HOME="+dir, "KUBECONFIG="+filepath.Join(dir, "kubeconfig"), "SSH_AUTH_SOCK=")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout // as on a terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.(io.Closer).Close()
		_ = cmd.Wait()
	})
	return &shell{t, in, bufio.NewReader(out)}
}

const endOfCommand = "the command has ended with "

// run runs one command and returns what it prints and its exit status.
func (s *shell) run(command string) (output string, status int) {
	s.t.Helper()
	fmt.Fprintf(s.in, "{ %s\n} </dev/null\necho '%s'$?\n", command, endOfCommand)
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%s: %v", command, err)
		}
		if before, code, ok := strings.Cut(line, endOfCommand); ok {
			status, err := strconv.Atoi(strings.TrimSpace(code))
			if err != nil {
				s.t.Fatal(err)
			}
			return output + before, status
		}
		output += line
	}
}

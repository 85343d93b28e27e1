package practice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
)

// HostOptions say what kind of host to start.
type HostOptions struct {
	// Name is the host's own name.
	Name string
	// Dir holds everything that outlives the host: root/ is its file system,
	// beside it lie its key, its journals and its table of owners. A host
	// that is started on the Dir of an earlier one is that host, rebooted.
	Dir string
	// Address is the loopback address it is reached at; default 127.0.0.1.
	// All of its ports are on 127.0.0.1 too.
	Address string
	// Ports are claimed anew when they are zero.
	Ports Ports
	// User may log in; default root. Another user becomes root by sudo or,
	// with Doas, by doas.
	User string
	Doas bool
	// AuthorizedKey is the key that may log in.
	AuthorizedKey ssh.PublicKey
	// Kubelet has the host run the static pods in /etc/kubernetes/manifests.
	Kubelet bool
	Log     *slog.Logger
}

// Host is one practice host. It runs until Close.
type Host struct {
	name    string
	address string
	ports   Ports
	doas    bool
	log     *slog.Logger

	files  *view // as root
	units  *supervisor
	ssh    *sshServer
	faults *faultBox

	hasKubelet bool

	kubeletMu sync.Mutex
	kubelet   *kubelet // nil while it does not run
}

// StartHost starts a host and everything that is enabled on it.
func StartHost(opts HostOptions) (*Host, error) {
	if opts.User == "" {
		opts.User = "root"
	}
	if opts.Address == "" {
		opts.Address = "127.0.0.1"
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{name: opts.Name, address: opts.Address, doas: opts.Doas, log: opts.Log.With("host", opts.Name), faults: &faultBox{noContainers: !opts.Kubelet}, hasKubelet: opts.Kubelet}
	h.ssh = &sshServer{host: h, user: opts.User, login: opts.AuthorizedKey, conns: map[net.Conn]struct{}{}}
	if err := h.prepare(opts); err != nil {
		return nil, fmt.Errorf("practice host %s: %w", h.name, err)
	}
	var err error
	if h.ports, h.ssh.listeners, err = claimPorts(h.address, opts.Ports); err != nil {
		return nil, fmt.Errorf("practice host %s: %w", h.name, err)
	}
	if err := h.boot(); err != nil {
		return nil, errors.Join(fmt.Errorf("practice host %s: %w", h.name, err), h.Close())
	}
	h.ssh.start()
	return h, nil
}

// prepare opens or makes the host's directory.
func (h *Host) prepare(opts HostOptions) error {
	if err := os.MkdirAll(filepath.Join(opts.Dir, "root"), 0o755); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(opts.Dir)
	if err != nil {
		return err
	}
	files, err := openTree(filepath.Join(dir, "root"), filepath.Join(dir, "owners.json"), h.faults)
	if err != nil {
		return err
	}
	h.files = &view{tree: files, accounts: accounts{root: files.root}, user: "root", umask: 0o022}
	h.units = newSupervisor(h.files, filepath.Join(dir, "journal"))
	if h.ssh.key, err = loadKey(filepath.Join(dir, "host_key")); err != nil {
		return err
	}
	if h.ssh.otherKey, err = newKey(nil); err != nil {
		return err
	}
	if _, ok := h.files.accounts.user("root"); !ok {
		if err := firstFiles(files, opts.User); err != nil {
			return err
		}
	}
	for name, mode := range machineDirs() {
		if err := h.files.ownDirectory(name, mode, owner{}); err != nil {
			return fmt.Errorf("lay out %s: %w", name, err)
		}
	}
	if opts.User == "root" {
		return nil
	}
	return h.files.ownDirectory("/home/"+opts.User, 0o755, owner{User: opts.User, Group: opts.User})
}

// firstFiles writes what a host keeps for life.
func firstFiles(t *tree, user string) error {
	passwd, group := "root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n"
	if user != "root" {
		passwd += user + ":x:1000:1000::/home/" + user + ":/bin/sh\n"
		group += user + ":x:1000:\n"
	}
	return errors.Join(t.put("/etc/machine-id", rand.Text()+"\n"), t.put("/etc/group", group), t.put("/etc/passwd", passwd))
}

// boot empties /run and starts what is enabled.
func (h *Host) boot() error {
	run := h.Path("/run")
	entries, err := os.ReadDir(run)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(run, e.Name())); err != nil {
			return err
		}
	}
	err = errors.Join(
		h.files.forget(run),
		h.files.ownDirectory("/run/systemd/system", 0o755, owner{}),
		h.files.put("/etc/hostname", h.name+"\n"),
		h.files.put("/etc/os-release", "PRETTY_NAME=\"muster practice host\"\nID=practice\n"),
		h.files.put("/proc/sys/kernel/random/boot_id", uuid.NewString()+"\n"),
	)
	if err != nil {
		return err
	}
	if err := h.units.boot(); err != nil {
		// A host with a broken unit is up all the same.
		h.log.Warn("not everything that is enabled was started", "error", err)
	}
	if h.hasKubelet {
		h.startKubelet()
	}
	return nil
}

func (h *Host) startKubelet() {
	h.kubeletMu.Lock()
	defer h.kubeletMu.Unlock()
	if h.kubelet == nil {
		h.kubelet = startKubelet(h)
	}
}

func (h *Host) stopKubelet() {
	h.kubeletMu.Lock()
	defer h.kubeletMu.Unlock()
	if h.kubelet != nil {
		h.kubelet.halt()
		h.kubelet = nil
	}
}

func (h *Host) runsKubelet() bool {
	h.kubeletMu.Lock()
	defer h.kubeletMu.Unlock()
	return h.kubelet != nil
}

// Name is the host's own name.
func (h *Host) Name() string { return h.name }

// Address is the loopback address the host is reached at.
func (h *Host) Address() string { return h.address }

// Ports are the ports that belong to the host.
func (h *Host) Ports() Ports { return h.ports }

// Fingerprint is that of the host's key, "SHA256:...".
func (h *Host) Fingerprint() string { return ssh.FingerprintSHA256(h.ssh.key.PublicKey()) }

// Path is where on this machine a path of the host is.
func (h *Host) Path(name string) string {
	p, err := h.files.real(name)
	if err != nil {
		return filepath.Join(h.files.root, name)
	}
	return p
}

// Inject puts faults in force, in place of those that were.
func (h *Host) Inject(f Faults) { h.faults.set(f) }

// UnitState is what systemctl show would say of a unit, by property.
func (h *Host) UnitState(name string) map[string]string { return h.units.properties(unitName(name)) }

// Journal returns the last n messages of a unit, oldest first.
func (h *Host) Journal(name string, n int) ([]string, error) {
	return h.units.journals.of(unitName(name)).tail(n, true)
}

// Console runs a script as root, as if typed at the host itself.
func (h *Host) Console(ctx context.Context, script string) (output string, status int) {
	var out bytes.Buffer
	status = newUserShell(h, "root").run(ctx, script, nil, "/", stdio{in: strings.NewReader(""), out: &out, err: &out})
	return out.String(), status
}

// rebootPause is how long a host that reboots stays away.
const rebootPause = 200 * time.Millisecond

// Reboot kills everything at once, drops all connections and comes back with
// what is enabled.
func (h *Host) Reboot() {
	h.ssh.setDown(true)
	defer h.ssh.setDown(false)
	h.stopKubelet()
	h.units.halt()
	<-time.After(rebootPause)
	if err := h.boot(); err != nil {
		h.log.Error("the host did not come back", "error", err)
	}
}

// Close stops the host: connections, units, sockets. Its directory stays.
func (h *Host) Close() error {
	h.ssh.setDown(true)
	err := h.ssh.stopListening()
	h.stopKubelet()
	h.units.halt()
	h.ssh.work.Wait()
	return errors.Join(err, h.units.journals.close())
}

// loadKey loads a private key, or makes it the first time.
func loadKey(file string) (ssh.Signer, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(func(pem []byte) error { return os.WriteFile(file, pem, 0o600) })
	}
	if err != nil {
		return nil, fmt.Errorf("read a private key: %w", err)
	}
	return ssh.ParsePrivateKey(data)
}

// newKey makes an ed25519 key and, unless save is nil, saves it in OpenSSH's
// form.
func newKey(save func([]byte) error) (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if save != nil {
		block, err := ssh.MarshalPrivateKey(private, "muster practice")
		if err != nil {
			return nil, fmt.Errorf("encode a key: %w", err)
		}
		if err := save(pem.EncodeToMemory(block)); err != nil {
			return nil, fmt.Errorf("save a key: %w", err)
		}
	}
	return ssh.NewSignerFromKey(private)
}

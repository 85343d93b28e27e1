package practice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"

	"muster/provision/inventory"
)

// ClusterOptions say what hosts to start.
type ClusterOptions struct {
	// Dir holds everything: the inventory, the key that logs in, one
	// directory for each host. Hosts that are started on the Dir of an
	// earlier cluster are those hosts, rebooted, with their addresses.
	Dir string
	// Hosts is how many to start, in [1, MaxHosts]. 0 is as many as Dir
	// holds, or 3.
	Hosts int
	// Name of the cluster in the inventory; default practice.
	Name string
	// User logs in to every host; default root.
	User string
	// Stacked gives every host a kubelet and containers, and the inventory that
	// topology.
	Stacked bool
	Log     *slog.Logger
}

// MaxHosts is the largest practice cluster: the addresses of one /24.
const MaxHosts = 200

const defaultHosts = 3

// Cluster is a number of practice hosts and the inventory that names them.
type Cluster struct {
	// Inventory is the path of an inventory that every command accepts.
	Inventory string
	// Hosts are in the order of the inventory.
	Hosts []*Host
}

// record is what is kept of a cluster between two lives of its hosts.
type record struct {
	Name string `json:"name"`
	User string `json:"user"`
	// Stacked says that the hosts have a kubelet.
	Stacked bool         `json:"stacked,omitempty"`
	Hosts   []hostRecord `json:"hosts"`
}

type hostRecord struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Ports   Ports  `json:"ports"`
}

// StartCluster starts the hosts, several at a time, and writes the inventory.
func StartCluster(opts ClusterOptions) (*Cluster, error) {
	if opts.Hosts < 0 || opts.Hosts > MaxHosts {
		return nil, fmt.Errorf("%d practice hosts cannot be started; ask for 1 to %d", opts.Hosts, MaxHosts)
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the practice hosts: %w", err)
	}
	r, err := loadRecord(dir, opts)
	if err != nil {
		return nil, err
	}
	login, err := loadKey(filepath.Join(dir, "id_ed25519"))
	if err != nil {
		return nil, fmt.Errorf("the key that logs in: %w", err)
	}
	c := &Cluster{Inventory: filepath.Join(dir, "inventory.yaml"), Hosts: make([]*Host, len(r.Hosts))}
	if err := c.start(dir, r, login.PublicKey(), opts.Log); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	for i, h := range c.Hosts {
		r.Hosts[i] = hostRecord{Name: h.name, Address: h.address, Ports: h.ports}
	}
	if err := errors.Join(r.save(dir), c.writeInventory(r)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) start(dir string, r record, login ssh.PublicKey, log *slog.Logger) error {
	failed := make([]error, len(r.Hosts))
	free := make(chan struct{}, runtime.NumCPU())
	var all sync.WaitGroup
	for i, h := range r.Hosts {
		all.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			c.Hosts[i], failed[i] = StartHost(HostOptions{
				Name: h.Name, Dir: filepath.Join(dir, h.Name), Address: h.Address, Ports: h.Ports,
				User: r.User, Kubelet: r.Stacked, AuthorizedKey: login, Log: log,
			})
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

const recordFile = "practice.json"

// loadRecord returns what is kept in dir, or what a new cluster starts from.
func loadRecord(dir string, opts ClusterOptions) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return newRecord(opts), nil
	case err != nil:
		return r, fmt.Errorf("read what is known of the practice hosts: %w", err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read %s: %w; remove the directory to start afresh", filepath.Join(dir, recordFile), err)
	}
	if opts.Hosts != 0 && opts.Hosts != len(r.Hosts) {
		return r, fmt.Errorf("%s holds %d practice hosts, not %d; leave the number out, or name another directory", dir, len(r.Hosts), opts.Hosts)
	}
	return r, nil
}

func newRecord(opts ClusterOptions) record {
	r := record{Name: opts.Name, User: opts.User, Stacked: opts.Stacked, Hosts: make([]hostRecord, opts.Hosts)}
	if r.Name == "" {
		r.Name = "practice"
	}
	if r.User == "" {
		r.User = "root"
	}
	if opts.Hosts == 0 {
		r.Hosts = make([]hostRecord, defaultHosts)
	}
	// A network of its own makes the addresses of two clusters differ.
	a, b := 1+rand.IntN(250), rand.IntN(250)
	for i := range r.Hosts {
		r.Hosts[i] = hostRecord{Name: fmt.Sprintf("controller-%d", i), Address: fmt.Sprintf("127.%d.%d.%d", a, b, 11+i)}
	}
	return r
}

func (r record) save(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode what is known of the practice hosts: %w", err)
	}
	next := filepath.Join(dir, recordFile+".next")
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return fmt.Errorf("keep what is known of the practice hosts: %w", err)
	}
	return os.Rename(next, filepath.Join(dir, recordFile))
}

// writeInventory writes the inventory anew, unless somebody has changed it.
func (c *Cluster) writeInventory(r record) error {
	if _, err := os.Stat(c.Inventory); err == nil {
		return nil
	}
	doc := inventory.Cluster{Name: r.Name, Practice: true, SSH: inventory.SSH{User: r.User, IdentityFile: "id_ed25519"}}
	if r.Stacked {
		doc.Topology = inventory.Stacked
	}
	for _, h := range c.Hosts {
		doc.Hosts = append(doc.Hosts, inventory.Host{
			Name: h.name, Address: h.address,
			SSH:    inventory.SSH{Port: h.ports.SSH, HostKey: h.Fingerprint()},
			Server: inventory.Server{ClientPort: h.ports.Client, PeerPort: h.ports.Peer, MetricsPort: h.ports.Metrics},
		})
	}
	text, err := yaml.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode the inventory: %w", err)
	}
	text = append([]byte("# Practice hosts on this machine, written when they were first started.\n"), text...)
	if err := os.WriteFile(c.Inventory, text, 0o600); err != nil {
		return fmt.Errorf("write the inventory: %w", err)
	}
	return nil
}

// Close stops every host. What they hold stays in the directory.
func (c *Cluster) Close() error {
	failed := make([]error, len(c.Hosts))
	var all sync.WaitGroup
	for i, h := range c.Hosts {
		if h != nil {
			all.Go(func() { failed[i] = h.Close() })
		}
	}
	all.Wait()
	return errors.Join(failed...)
}

package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kevinburke/ssh_config"
)

// maxHops bounds a chain of bastions, so that a ProxyJump that names itself
// ends in an error.
const maxHops = 8

const (
	defaultUser = "root"
	defaultPort = 22
)

// defaultIdentities are tried in ssh's own order when nothing else is said.
var defaultIdentities = []string{"id_ed25519", "id_ecdsa", "id_rsa"}

// clientConfig is the user's ssh_config, the user's own file before the
// system's: the first value found wins.
type clientConfig struct {
	home    string
	sshDir  string
	configs []*ssh_config.Config
}

// readClientConfig reads the files that exist. One that cannot be parsed (the
// library refuses "Match exec", for example) is left out with a warning: what
// the inventory says does not need it.
func readClientConfig(sshDir string, files []string, log *slog.Logger) clientConfig {
	c := clientConfig{sshDir: sshDir, home: filepath.Dir(sshDir)}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var config *ssh_config.Config
		if err == nil {
			config, err = ssh_config.Decode(bytes.NewReader(text))
		}
		if err != nil {
			log.Warn("ssh configuration left out; put what it says about the hosts into the inventory",
				"file", file, "reason", err)
			continue
		}
		c.configs = append(c.configs, config)
	}
	return c
}

func (c clientConfig) get(alias, key string) string {
	for _, config := range c.configs {
		if value, err := config.Get(alias, key); err == nil && value != "" {
			return value
		}
	}
	return ""
}

func (c clientConfig) all(alias, key string) []string {
	var values []string
	for _, config := range c.configs {
		if v, err := config.GetAll(alias, key); err == nil {
			values = append(values, v...)
		}
	}
	return values
}

// route returns the servers to go through, the target last.
func (c clientConfig) route(t Target) ([]hop, error) {
	return c.routeWithin(t, maxHops)
}

func (c clientConfig) routeWithin(t Target, limit int) ([]hop, error) {
	if limit == 0 {
		return nil, fmt.Errorf("%s: more than %d bastions in a row; look for a ProxyJump that leads back to itself", t.Name, maxHops)
	}
	last, err := c.hop(t)
	if err != nil {
		return nil, err
	}
	if t.Bastion != nil {
		before, err := c.routeWithin(*t.Bastion, limit-1)
		return append(before, last), err
	}
	jump := c.get(t.Address, "ProxyJump")
	if jump == "" || strings.EqualFold(jump, "none") {
		if command := c.get(t.Address, "ProxyCommand"); jump == "" && command != "" && !strings.EqualFold(command, "none") {
			return nil, fmt.Errorf("%s: ssh_config sets ProxyCommand for %s, which is not supported; use ProxyJump there or bastion in the inventory", t.Name, t.Address)
		}
		return []hop{last}, nil
	}
	var route []hop
	for i, text := range strings.Split(jump, ",") {
		via, err := parseJump(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%s: ProxyJump %q in ssh_config: %w", t.Name, jump, err)
		}
		if i > 0 { // the one before it is the way; its own ProxyJump is not asked
			h, err := c.hop(via)
			if err != nil {
				return nil, err
			}
			route = append(route, h)
			continue
		}
		if route, err = c.routeWithin(via, limit-1); err != nil {
			return nil, err
		}
	}
	return append(route, last), nil
}

// parseJump reads one element of ProxyJump: [user@]host[:port] or an ssh URI.
func parseJump(text string) (Target, error) {
	text = strings.TrimPrefix(text, "ssh://")
	var t Target
	if i := strings.LastIndex(text, "@"); i >= 0 {
		t.User, text = text[:i], text[i+1:]
	}
	t.Address = text
	if host, port, err := net.SplitHostPort(text); err == nil {
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 || n > 65535 {
			return Target{}, fmt.Errorf("port %q is not a number from 1 to 65535", port)
		}
		t.Address, t.Port = host, n
	}
	t.Address = strings.Trim(t.Address, "[]")
	if t.Address == "" {
		return Target{}, errors.New("no host")
	}
	t.Name = t.Address
	return t, nil
}

func (c clientConfig) hop(t Target) (hop, error) {
	h := hop{name: t.Name, host: t.Address, port: t.Port, user: t.User, hostKey: t.HostKey}
	if name := c.get(t.Address, "HostName"); name != "" {
		h.host = strings.ReplaceAll(name, "%h", t.Address)
	}
	if h.port == 0 {
		h.port = defaultPort
		if text := c.get(t.Address, "Port"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > 65535 {
				return hop{}, fmt.Errorf("%s: Port %q in ssh_config is not a number from 1 to 65535", t.Name, text)
			}
			h.port = n
		}
	}
	if h.user == "" {
		h.user = c.get(t.Address, "User")
	}
	if h.user == "" {
		h.user = defaultUser
	}
	h.identityFiles, h.identityGiven = c.identities(t, h)
	for _, key := range []string{"UserKnownHostsFile", "GlobalKnownHostsFile"} {
		files := c.get(t.Address, key)
		if files == "" {
			files = ssh_config.Default(key)
		}
		for _, file := range strings.Fields(files) {
			h.knownHosts = append(h.knownHosts, c.expand(file, t.Address, h))
		}
	}
	return h, nil
}

func (c clientConfig) identities(t Target, h hop) (files []string, given bool) {
	if t.IdentityFile != "" {
		return []string{c.expand(t.IdentityFile, t.Address, h)}, true
	}
	for _, file := range c.all(t.Address, "IdentityFile") {
		files = append(files, c.expand(file, t.Address, h))
	}
	if len(files) > 0 {
		return files, true
	}
	for _, name := range defaultIdentities {
		files = append(files, filepath.Join(c.sshDir, name))
	}
	return files, false
}

// expand replaces ~ and the tokens ssh_config(5) allows in file names, as far
// as they are known here.
func (c clientConfig) expand(file, alias string, h hop) string {
	file = strings.Trim(file, `"`)
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		file = filepath.Join(c.home, rest)
	}
	return strings.NewReplacer("%%", "%", "%d", c.home, "%h", h.host, "%n", alias,
		"%p", strconv.Itoa(h.port), "%r", h.user).Replace(file)
}

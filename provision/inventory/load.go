package inventory

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"
)

// MaxSize is the largest inventory accepted, in bytes. A hundred hosts with
// every field given take about 50 KiB.
const MaxSize = 1 << 20

// Option changes what Load accepts.
type Option func(*settings)

type settings struct {
	allowLoopback bool
	canPrompt     bool
	lookupEnv     func(string) (string, bool)
}

// AllowLoopback accepts loopback addresses in a cluster of several hosts, and
// hosts that share one as long as their ports differ. Practice hosts need it.
func AllowLoopback() Option { return func(s *settings) { s.allowLoopback = true } }

// CanPrompt says that the operator can be asked for the passphrase of a
// private key. Without it an encrypted key needs an ssh-agent.
func CanPrompt() Option { return func(s *settings) { s.canPrompt = true } }

// LookupEnv replaces os.LookupEnv as the source of ${NAME}, of the home
// directory (HOME) and of the ssh-agent's socket (SSH_AUTH_SOCK).
func LookupEnv(lookup func(string) (string, bool)) Option {
	return func(s *settings) { s.lookupEnv = lookup }
}

// Load reads one inventory of one cluster from r. The name is the file's and
// appears in problems; relative paths in the document start at its directory.
// A bad inventory yields an error of type Problems that holds every problem
// found; any other error means that r could not be read.
func Load(name string, r io.Reader, opts ...Option) (*Cluster, []Warning, error) {
	clusters, warnings, err := LoadAll(name, r, opts...)
	if err != nil {
		return nil, warnings, err
	}
	if len(clusters) > 1 {
		second := clusters[1].doc
		second.problem("", "a second document starts here", "write one cluster a file and remove the rest")
		return nil, warnings, second.failure()
	}
	return clusters[0], warnings, nil
}

// LoadAll is Load for an inventory that may hold several clusters, one in each
// YAML document. They are returned in the order of the documents; empty
// documents are passed over. What one cluster must not share with another is
// for Together to find.
func LoadAll(name string, r io.Reader, opts ...Option) ([]*Cluster, []Warning, error) {
	s := settings{lookupEnv: os.LookupEnv}
	for _, opt := range opts {
		opt(&s)
	}
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		return nil, nil, fmt.Errorf("find the directory of the inventory %s: %w", name, err)
	}
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the inventory %s: %w", name, err)
	}

	whole := &document{file: name, dir: dir, settings: s}
	roots := whole.parse(text)
	problems, warnings := whole.problems, whole.warnings
	var clusters []*Cluster
	for _, root := range roots {
		doc := &document{file: name, dir: dir, settings: s}
		clusters = append(clusters, doc.cluster(root))
		problems, warnings = append(problems, doc.problems...), append(warnings, doc.warnings...)
	}
	warnings.sort()
	if len(problems) > 0 {
		problems.sort()
		return nil, warnings, problems
	}
	for _, c := range clusters {
		for _, other := range clusters {
			if other != c && other.PKI.Dir == c.PKI.Dir {
				c.siblings = append(c.siblings, other)
			}
		}
	}
	return clusters, warnings, nil
}

// cluster decodes, completes and checks the cluster of one document.
func (d *document) cluster(root *yaml.Node) *Cluster {
	c := &Cluster{dir: d.dir, doc: d}
	d.decode(root, c)
	if !d.bad[""] {
		d.fillDefaults(c)
		d.check(c)
	}
	return c
}

// expandPath makes a path of the document absolute: "~/" is the home
// directory, any other relative path starts at the inventory.
func (d *document) expandPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, found := d.lookupEnv("HOME"); found {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(d.dir, path)
}

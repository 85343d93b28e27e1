package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

const (
	identityFile   = "member.json"
	identityFormat = 2
)

// ErrForeignData is returned when a data directory belongs to another member
// or another cluster than the one configured.
var ErrForeignData = errors.New("the data directory belongs to another member")

// ID is a cluster or member id; as text it is hexadecimal, as etcdctl prints it.
type ID uint64

// MarshalText implements encoding.TextMarshaler.
func (i ID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *ID) UnmarshalText(text []byte) error {
	id, err := strconv.ParseUint(string(text), 16, 64)
	*i = ID(id)
	return err
}

func (i ID) String() string { return strconv.FormatUint(uint64(i), 16) }

// Identity says whose data directory this is. It is written once, before the
// member takes part in anything, and kept outside the state machine's store,
// which can be replaced by a copy of another member's.
type Identity struct {
	Format  int    `json:"format"`
	Cluster ID     `json:"cluster"`
	Member  ID     `json:"member"`
	Name    string `json:"name"`
	Token   string `json:"token"`
	// Snapshot is the checksum of the snapshot that the cluster was founded
	// from, empty when there was none.
	Snapshot string `json:"snapshot,omitempty"`
	// Joined is set when the member came to a running cluster.
	Joined bool `json:"joined,omitempty"`
	// Removed is set when the member knows that it is none any more.
	Removed bool `json:"removed,omitempty"`
	// Founded is set once the member has a state: that which the cluster began
	// with, or, when it joined, what it was sent first.
	Founded bool `json:"founded"`
}

// LoadIdentity returns nil without an error when dir has no identity yet.
func LoadIdentity(dir string) (*Identity, error) {
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the data directory's identity: %w", err)
	}
	identity := &Identity{}
	if err := json.Unmarshal(data, identity); err != nil {
		return nil, fmt.Errorf("read the data directory's identity %s: %w", path, err)
	}
	if identity.Format != identityFormat {
		return nil, fmt.Errorf("%s has format %d, this musterd reads %d; use the musterd version that wrote the data directory", path, identity.Format, identityFormat)
	}
	return identity, nil
}

func (i Identity) save(dir string) error {
	i.Format = identityFormat
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFileSync(filepath.Join(dir, identityFile), data); err != nil {
		return fmt.Errorf("write the data directory's identity: %w", err)
	}
	return nil
}

// Check compares the directory's identity with what the flags ask for. Only
// the name and the token are compared with certainty: the peer URLs, and with
// them the derived ids, change legitimately over a cluster's life.
func (i Identity) Check(dir, name, token string) error {
	if i.Name != name {
		return fmt.Errorf("%w: %s was made by member %q, --name is %q; use that member's own directory, or an empty one", ErrForeignData, dir, i.Name, name)
	}
	if i.Token != token {
		return fmt.Errorf("%w: %s was made with --initial-cluster-token %q, now it is %q; the token never changes", ErrForeignData, dir, i.Token, token)
	}
	return nil
}

// checkSnapshot compares the snapshot that the directory's cluster is founded
// from with the one that the flags name, empty when they name none. Once the
// cluster is founded none has to be named any more.
func (i Identity) checkSnapshot(dir, snapshot string) error {
	switch {
	case snapshot == i.Snapshot, snapshot == "" && i.Founded:
		return nil
	case i.Founded:
		return fmt.Errorf("%w: %s holds a member that was not founded from this snapshot, and a snapshot is restored only into an empty directory; leave --restore-snapshot out to go on with the data, or give another --data-dir", ErrForeignData, dir)
	default:
		return fmt.Errorf("%w: an earlier start has begun to found the cluster in %s from another snapshot, or from none; start the member with the same --restore-snapshot as then, or remove the directory", ErrForeignData, dir)
	}
}

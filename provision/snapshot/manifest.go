package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// manifestFormat is the form of a Manifest this version writes and reads.
const manifestFormat = 1

// Manifest is what is recorded beside a snapshot. Its JSON form is stable.
type Manifest struct {
	Format int `json:"format"`
	// File is the name of the snapshot, in the directory of the manifest.
	File string    `json:"file"`
	Time time.Time `json:"time"` // when it was begun
	Origin
	Contents
	// Path of the snapshot; not recorded, since files move.
	Path string `json:"-"`
}

// Origin is where a snapshot comes from.
type Origin struct {
	Cluster string `json:"cluster"`
	// ClusterID and MemberID are hexadecimal, as etcd prints them.
	ClusterID string `json:"clusterID"`
	Member    string `json:"member"`
	MemberID  string `json:"memberID"`
	// ServerVersion is the version of etcd that the member says it is.
	ServerVersion string `json:"serverVersion"`
}

// ownName is the name of a snapshot in a directory that names them itself. It
// sorts by time.
func (m *Manifest) ownName() string {
	return fmt.Sprintf("%s-%s-r%d%s", m.Cluster, m.Time.UTC().Format("20060102T150405Z"), m.Revision, suffix)
}

// manifestPath is where the manifest of a snapshot is.
func manifestPath(file string) string { return file + ".json" }

// errNoManifest is wrapped for a file that is not a manifest of ours.
var errNoManifest = errors.New("not the record of a snapshot")

// ReadManifest returns what is recorded beside a snapshot; nil without an
// error when nothing is.
func ReadManifest(file string) (*Manifest, error) {
	text, err := os.ReadFile(manifestPath(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is recorded of a snapshot: %w", err)
	}
	m := &Manifest{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("%s is %w: %w", manifestPath(file), errNoManifest, err)
	}
	if m.Format != manifestFormat || m.File != filepath.Base(file) || m.SHA256 == "" {
		return nil, fmt.Errorf("%s is %w of this name and format %d", manifestPath(file), errNoManifest, manifestFormat)
	}
	m.Path = file
	return m, nil
}

// write places the manifest beside its snapshot, whole or not at all.
func (m *Manifest) write() error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("record the snapshot: %w", err)
	}
	path := manifestPath(m.Path)
	part := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+partSuffix)
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return fmt.Errorf("record the snapshot: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("record the snapshot: %w", errors.Join(err, os.Remove(part)))
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("record the snapshot: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

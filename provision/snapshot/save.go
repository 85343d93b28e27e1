package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// A snapshot holds every secret of the cluster.
	fileMode fs.FileMode = 0o600
	dirMode  fs.FileMode = 0o700

	// askTimeout bounds the questions before the snapshot itself, which has no
	// limit.
	askTimeout = 10 * time.Second

	partSuffix = ".part"
	suffix     = ".db"
)

// Place says where snapshots go: into a file, or into a directory that keeps
// the newest ones.
type Place struct {
	// Dir is made if it does not exist.
	Dir string
	// File is the name in Dir; empty for a name that says cluster, time and
	// revision.
	File string
	// Keep is how many snapshots of the cluster stay in Dir, this one
	// included; 0 keeps all. It has no effect with a File.
	Keep int
	// Progress, unless nil, is told how many bytes have come, of about how many.
	Progress func(done, total int64)
}

// PlaceFor understands the argument of a command: an existing directory, a
// path that ends in a separator and a name without an extension are
// directories, any other name is a file's.
func PlaceFor(path string, keep int) Place {
	info, err := os.Stat(path)
	dir := strings.HasSuffix(path, string(filepath.Separator)) || filepath.Ext(path) == ""
	if err == nil {
		dir = info.IsDir()
	}
	if dir {
		return Place{Dir: filepath.Clean(path), Keep: keep}
	}
	return Place{Dir: filepath.Dir(path), File: filepath.Base(path)}
}

// ErrPlace is wrapped by the errors of a Save that another member would not
// help against: the place cannot be written to, or is taken.
var ErrPlace = errors.New("the snapshot cannot be kept")

// Saved is the outcome of a Save.
type Saved struct {
	Manifest
	// Removed are the older snapshots that Keep has made room of, by path.
	Removed []string
}

// Save saves a snapshot of the member that the client talks to. Everything that
// any member of the cluster had acknowledged before Save was called is in it. The
// file appears under its name when it is complete, checked and on disk; whatever
// happens before leaves at most a hidden file that the next Save overwrites.
//
// The names of cluster and member are taken from the origin, the rest is asked.
// When an error comes with a snapshot, the snapshot is good and removing older
// ones failed. Errors of the place wrap ErrPlace.
func (p Place) Save(ctx context.Context, client *clientv3.Client, origin Origin) (*Saved, error) {
	saved, err := p.save(ctx, client, origin)
	var local *fs.PathError
	var renaming *os.LinkError
	if errors.As(err, &local) || errors.As(err, &renaming) || errors.Is(err, errTaken) {
		err = fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return saved, err
}

// errTaken is wrapped when somebody else has the place.
var errTaken = errors.New("it is taken")

func (p Place) save(ctx context.Context, client *clientv3.Client, origin Origin) (*Saved, error) {
	if err := os.MkdirAll(p.Dir, dirMode); err != nil {
		return nil, fmt.Errorf("make a directory for snapshots: %w", err)
	}
	if p.File != "" {
		if err := p.vacant(filepath.Join(p.Dir, p.File)); err != nil {
			return nil, err
		}
	}
	part, err := p.open(origin.Cluster)
	if err != nil {
		return nil, err
	}
	defer part.Close()
	m := Manifest{Format: manifestFormat, Time: time.Now().UTC().Truncate(time.Second), Origin: origin}
	if err := fetch(ctx, client, part.File, &m, p.Progress); err != nil {
		return nil, errors.Join(err, os.Remove(part.Name()))
	}
	m.File = p.File
	if m.File == "" {
		m.File = m.ownName()
	}
	m.Path = filepath.Join(p.Dir, m.File)
	err = p.vacant(m.Path)
	for p.File == "" && errors.Is(err, errTaken) { // in the same second: this one is called the next one's
		m.Time = m.Time.Add(time.Second)
		m.File = m.ownName()
		m.Path = filepath.Join(p.Dir, m.File)
		err = p.vacant(m.Path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(part.Name()))
	}
	if err := os.Rename(part.Name(), m.Path); err != nil {
		return nil, fmt.Errorf("give the snapshot its name: %w", err)
	}
	if err := m.write(); err != nil { // flushes the directory
		return nil, err
	}
	saved := &Saved{Manifest: m}
	if p.File == "" && p.Keep > 0 {
		saved.Removed, err = prune(p.Dir, origin.Cluster, p.Keep)
	}
	return saved, err
}

// vacant refuses to write over anything.
func (p Place) vacant(path string) error {
	for _, path := range []string{path, manifestPath(path)} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%w: %s exists; name another file, or a directory, where every snapshot gets a name of its own", errTaken, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for %s: %w", path, err)
		}
	}
	return nil
}

// open opens the hidden file that a snapshot is written to, and locks it.
func (p Place) open(cluster string) (*fileutil.LockedFile, error) {
	name := "." + cluster + partSuffix
	if p.File != "" {
		name = "." + p.File + partSuffix
	}
	path := filepath.Join(p.Dir, name)
	for range 10 { // the file that was opened may get its name before it is locked
		part, err := fileutil.TryLockFile(path, os.O_CREATE|os.O_RDWR, fileMode)
		if errors.Is(err, fileutil.ErrLocked) {
			return nil, fmt.Errorf("%w: another run is saving a snapshot of %s to %s; wait for it", errTaken, cluster, p.Dir)
		}
		if err != nil {
			return nil, fmt.Errorf("open a file for the snapshot: %w", err)
		}
		mine, err := part.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(mine, there) {
				if err := part.Truncate(0); err != nil {
					return nil, errors.Join(fmt.Errorf("empty the file for the snapshot: %w", err), part.Close())
				}
				return part, nil
			}
		}
		_ = part.Close() // it is another's by now
	}
	return nil, fmt.Errorf("%w: %s changes hands all the time", errTaken, path)
}

// fetch writes the member's snapshot to the file, flushes it, reads it back
// and completes the manifest.
func fetch(ctx context.Context, client *clientv3.Client, f *os.File, m *Manifest, progress func(done, total int64)) error {
	// A linearizable read makes the member catch up with what the cluster has
	// acknowledged; a snapshot is of what the member has.
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	read, err := client.Get(asking, "\x00", clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("ask %s for its revision: %w", m.Member, err)
	}
	status, err := client.Status(asking, client.Endpoints()[0])
	if err != nil {
		return fmt.Errorf("ask %s for its status: %w", m.Member, err)
	}
	m.ClusterID, m.MemberID = fmt.Sprintf("%x", read.Header.ClusterId), fmt.Sprintf("%x", read.Header.MemberId)
	m.ServerVersion = status.Version
	response, err := client.SnapshotWithVersion(ctx)
	if err != nil {
		return fmt.Errorf("ask %s for a snapshot: %w", m.Member, err)
	}
	_, err = io.Copy(&counter{f, 0, status.DbSize, progress}, response.Snapshot)
	if err := errors.Join(err, response.Snapshot.Close()); err != nil {
		return fmt.Errorf("receive the snapshot of %s: %w", m.Member, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write the snapshot to disk: %w", err)
	}
	if m.Contents, err = Check(ctx, f.Name()); err != nil {
		return fmt.Errorf("check what %s has sent: %w", m.Member, err)
	}
	if m.Revision < read.Header.Revision {
		return fmt.Errorf("check what %s has sent: it ends at revision %d, and the cluster had acknowledged %d before", m.Member, m.Revision, read.Header.Revision)
	}
	return nil
}

// counter passes on what is written, and tells how much that was.
type counter struct {
	io.Writer
	done, total int64
	tell        func(done, total int64) // may be nil
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	if c.done += int64(n); c.tell != nil {
		c.tell(c.done, max(c.done, c.total))
	}
	return n, err
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("write the directory %s to disk: %w", path, err)
	}
	return nil
}

package ctlv2

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

func (s *session) backupCommand() cli.Command {
	return cli.Command{
		Name: "backup", Usage: "backup an etcd directory", ArgsUsage: " ",
		Flags: []cli.Flag{
			cli.StringFlag{Name: "data-dir", Usage: "Path to the etcd data dir"},
			cli.StringFlag{Name: "wal-dir", Usage: "Path to the etcd wal dir"},
			cli.StringFlag{Name: "backup-dir", Usage: "Path to the backup dir"},
			cli.StringFlag{Name: "backup-wal-dir", Usage: "Path to the backup wal dir"},
			cli.BoolFlag{Name: "with-v3", Usage: "Backup v3 backend data"},
		},
		Action: func(c *cli.Context) error {
			b := backup{
				from: c.String("data-dir"), to: c.String("backup-dir"),
				log: c.String("wal-dir"), logTo: c.String("backup-wal-dir"),
			}
			if err := b.make(); err != nil {
				return plain("backup: %w", err)
			}
			return nil
		},
	}
}

// backup copies the data directory of a musterd that does not run. The copy is a
// data directory itself: musterd --data-dir COPY --force-new-cluster makes a
// cluster of one of it, as etcd does of what its etcdctl has copied. The keys of
// both versions are in the same store, so --with-v3 changes nothing.
type backup struct {
	from, to   string
	log, logTo string // where the logs are, if not in the directories
}

// What a data directory consists of; see DESIGN.md of kvserver/replica.
const (
	identityFile = "member.json"
	logDir       = "log"
	// lockFile is locked while a process uses the directory.
	lockFile = "kv/LOCK"
	// etcdsOwn is what etcd's have instead.
	etcdsOwn = "member"
)

func (b backup) make() (err error) {
	if b.from == "" || b.to == "" {
		return errors.New("--data-dir and --backup-dir are needed")
	}
	if _, err := os.Stat(filepath.Join(b.from, identityFile)); err != nil {
		if _, err := os.Stat(filepath.Join(b.from, etcdsOwn)); err == nil {
			return fmt.Errorf("%s is a data directory of etcd; ask that etcd for a snapshot (snapshot save), which musterd can begin with, or use its own etcdctl", b.from)
		}
		return fmt.Errorf("%s is not a data directory of musterd: %w", b.from, err)
	}
	log := filepath.Join(b.from, logDir)
	if b.log != "" {
		log = b.log
	}
	if _, err := os.Stat(log); err != nil {
		return fmt.Errorf("the raft log: %w; give --wal-dir", err)
	}
	if entries, err := os.ReadDir(b.to); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty", b.to)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(b.from, lockFile), os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock %s: %w; stop the musterd that runs on it, or save a snapshot of it while it runs (snapshot save)", b.from, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := copyTree(b.from, b.to, func(at string) bool { return at == logDir || at == filepath.FromSlash(lockFile) }); err != nil {
		return err
	}
	logTo := filepath.Join(b.to, logDir)
	if b.logTo != "" {
		elsewhere, err := filepath.Abs(b.logTo)
		if err != nil {
			return err
		}
		if err := os.Symlink(elsewhere, logTo); err != nil {
			return err
		}
		logTo = elsewhere
	}
	return copyTree(log, logTo, func(string) bool { return false })
}

// copyTree copies files and directories, and what they are is on the disk when
// it returns.
func copyTree(from, to string, skip func(at string) bool) error {
	root, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	var dirs []string
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := strings.TrimPrefix(strings.TrimPrefix(path, root), string(filepath.Separator))
		target := filepath.Join(to, at)
		switch {
		case skip(at) && entry.IsDir():
			return filepath.SkipDir
		case skip(at):
			return nil
		case entry.IsDir():
			dirs = append(dirs, target)
			return os.MkdirAll(target, 0o700)
		case entry.Type().IsRegular():
			return copyFile(path, target)
		default:
			return fmt.Errorf("%s is neither a file nor a directory", path)
		}
	})
	for _, dir := range dirs {
		if err == nil {
			err = syncDir(dir)
		}
	}
	return err
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// openLogDir makes the directory of the raft log, and returns its path within
// the data directory. A log that is elsewhere is linked from there: the data
// directory itself knows where its log is, whatever a later start says.
func openLogDir(dataDir, elsewhere string) (string, error) {
	inside := filepath.Join(dataDir, "log")
	if elsewhere == "" {
		if target, err := os.Readlink(inside); err == nil {
			if _, err := os.Stat(inside); err != nil {
				return "", fmt.Errorf("the raft log is in %s: %w; bring it back, for instance by mounting its disk", target, err)
			}
			return inside, nil
		}
		return inside, makeDir(inside)
	}
	elsewhere, err := filepath.Abs(elsewhere)
	if err != nil {
		return "", err
	}
	if err := makeDir(elsewhere); err != nil {
		return "", err
	}
	switch target, err := os.Readlink(inside); {
	case err == nil && target == elsewhere:
		return inside, nil
	case err == nil:
		return "", fmt.Errorf("the raft log is in %s, not in --wal-dir %s; give --wal-dir %s, or none", target, elsewhere, target)
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the raft log is in %s, not in --wal-dir %s; leave --wal-dir out, or move the directory there and put a link in its place", inside, elsewhere)
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) > 0 {
		return "", errors.Join(err, fmt.Errorf("--wal-dir %s is not empty; a new member needs an empty directory for its raft log", elsewhere))
	}
	if err := os.Symlink(elsewhere, inside); err != nil {
		return "", fmt.Errorf("link the raft log: %w", err)
	}
	return inside, syncDirectory(dataDir)
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the raft log directory: %w", err)
	}
	return nil
}

package pki

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

const (
	lockFile = ".lock"

	lockPatience = 10 * time.Second // far more than making certificates takes
	lockPoll     = 50 * time.Millisecond
	maxHolder    = 256
)

// lock excludes other runs from the directory until the returned function is
// called or the process ends, however it ends.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	path := filepath.Join(dir, lockFile)
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		f, err := fileutil.TryLockFile(path, os.O_CREATE|os.O_RDWR, secretMode)
		if err == nil {
			// The text helps the run that has to wait; the lock holds without.
			_ = f.Truncate(0)
			_, _ = f.WriteAt([]byte(holder()), 0)
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, fileutil.ErrLocked) {
			return nil, fmt.Errorf("lock the certificates in %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return nil, &Error{
				err:  fmt.Errorf("lock the certificates in %s: held by %s: %w", dir, readHolder(path), ctx.Err()),
				hint: "wait for that run to end, or end it",
			}
		case <-time.After(lockPoll):
		}
	}
}

// holder names this process for a person who looks for it.
func holder() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	machine, err := os.Hostname()
	if err != nil {
		machine = "this machine"
	}
	return fmt.Sprintf("process %d of %s on %s since %s\n", os.Getpid(), name, machine, time.Now().Format(time.RFC3339))
}

func readHolder(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "another process"
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHolder))
	line, _, _ := strings.Cut(string(text), "\n")
	if err != nil || line == "" {
		return "another process"
	}
	return line
}

package tlsfiles

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// settle is how long after its last change a file is read anew each time: the
// clock of a file system may not tell two changes apart that are this close.
const settle = time.Second

// reloaded is what a group of files says, read again when one of them changes.
type reloaded[T any] struct {
	what   string
	paths  []string
	parse  func(contents [][]byte) (T, error)
	logger *slog.Logger

	mu    sync.Mutex
	value T
	seen  []version // of the files that were read last
	fresh bool      // they had just changed then
	fault string    // of reading them; empty when they are good
}

// version tells one state of a file from another. Path, where it leads and the
// file's own identity are all in it, so that links may be exchanged.
type version struct {
	info fs.FileInfo
}

func (v version) same(w version) bool {
	return v.info != nil && w.info != nil && os.SameFile(v.info, w.info) && v.info.Size() == w.info.Size() && v.info.ModTime().Equal(w.info.ModTime())
}

func openReloaded[T any](what string, paths []string, parse func([][]byte) (T, error), logger *slog.Logger) (*reloaded[T], error) {
	r := &reloaded[T]{what: what, paths: paths, parse: parse, logger: logger}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r, r.read(r.versions())
}

// get returns what the files say now, or what they said when they were good
// last.
func (r *reloaded[T]) get() T {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.versions()
	if !r.fresh && slices.EqualFunc(now, r.seen, version.same) {
		return r.value
	}
	before := r.fault
	r.fault = ""
	if err := r.read(now); err != nil {
		if r.fault = err.Error(); r.fault != before {
			r.logger.Error("what was read before stays in use", "error", err)
		}
	} else if before != "" {
		r.logger.Info("read again " + r.what)
	}
	return r.value
}

func (r *reloaded[T]) versions() []version {
	all := make([]version, len(r.paths))
	for i, path := range r.paths {
		all[i].info, _ = os.Stat(path) // reading it will tell
	}
	return all
}

func (r *reloaded[T]) read(now []version) error {
	r.seen, r.fresh = now, slices.ContainsFunc(now, func(v version) bool {
		return v.info == nil || time.Since(v.info.ModTime()) < settle
	})
	contents := make([][]byte, len(r.paths))
	for i, path := range r.paths {
		var err error
		if contents[i], err = os.ReadFile(path); err != nil {
			return fmt.Errorf("read %s: %w", r.what, err)
		}
	}
	value, err := r.parse(contents)
	if err != nil {
		return fmt.Errorf("read %s (%s): %w", r.what, strings.Join(r.paths, ", "), err)
	}
	r.value = value
	return nil
}

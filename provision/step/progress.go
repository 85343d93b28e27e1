package step

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// progressInterval is the time between two events about one transfer. A quick
// one has none.
const progressInterval = time.Second

// progress returns a function to be told of a transfer how many bytes of about
// so many are done. It may be called from several goroutines.
func (h *Host) progress(what string) func(done, total int64) {
	var mu sync.Mutex
	begun, name := time.Now(), h.step
	last := begun
	return func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if now.Sub(last) < progressInterval {
			return
		}
		last = now
		rate := float64(done) / now.Sub(begun).Seconds()
		h.run.report(Progress, name, h.Name, fmt.Sprintf("%s: %s of %s, %s/s", what, size(done), size(total), size(int64(rate))))
	}
}

func size(bytes int64) string { return humanize.IBytes(uint64(max(0, bytes))) } //nolint:gosec // not negative

// counted is a reader that tells how much was read of so many bytes.
type counted struct {
	io.Reader
	done, total int64
	tell        func(done, total int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.done += int64(n)
	c.tell(c.done, c.total)
	return n, err
}

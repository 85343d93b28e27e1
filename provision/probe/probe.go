// Package probe measures, on a host, what a member will depend on there: who can
// be reached how fast, and how long the disk takes to flush a write. Several
// hosts measure at the same time and accept each other's connections; muster
// leads them over the standard streams, one line of JSON at a time.
package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Opening is what a host is asked first: to accept connections at these
// addresses until its input ends, where nobody else does.
type Opening struct {
	Listen []string `json:"listen"`
}

// Opened is the answer.
type Opened struct {
	// Taken are the addresses at which somebody listens already.
	Taken []string `json:"taken,omitempty"`
	// Failed says of the other addresses that cannot be listened at why.
	Failed map[string]string `json:"failed,omitempty"`
}

// Measuring is what a host is asked when all of them accept connections.
type Measuring struct {
	// Dial are the addresses to connect to.
	Dial []string `json:"dial"`
}

// Measured is the answer.
type Measured struct {
	Trips map[string]Trip `json:"trips"`
	Sync  Sync            `json:"sync"`
}

// Trip is how connecting to one address went. Opening a TCP connection takes
// one round trip.
type Trip struct {
	Median time.Duration `json:"median"` // nanoseconds
	Worst  time.Duration `json:"worst"`
	// Error says why it was not possible; it may be one of several attempts.
	Error string `json:"error,omitempty"`
}

// Sync is how long writing 4 KiB and flushing them to disk takes.
type Sync struct {
	Median time.Duration `json:"median"` // nanoseconds
	P99    time.Duration `json:"p99"`
	Worst  time.Duration `json:"worst"`
	// Error says why it was not measured.
	Error string `json:"error,omitempty"`
}

const (
	attempts    = 5
	dialTimeout = 2 * time.Second

	syncWrites = 200
	syncBytes  = 4 << 10
	// syncLimit ends the measurement on a slow disk.
	syncLimit = 2 * time.Second
)

// Serve answers on out what is asked on in. The disk is that of dir, where a
// file is made and removed again. It returns when in ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer, dir string) error {
	lines, answers := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	var opening Opening
	if err := lines.Decode(&opening); err != nil {
		return fmt.Errorf("read where to listen: %w", err)
	}
	opened, listeners := listen(ctx, opening.Listen)
	defer listeners.close()
	if err := answers.Encode(opened); err != nil {
		return err
	}
	var m Measuring
	if err := lines.Decode(&m); err != nil {
		return fmt.Errorf("read what to measure: %w", err)
	}
	// One after the other: flushing takes time away from connecting.
	result := Measured{Trips: connect(ctx, m.Dial)}
	result.Sync = flush(ctx, dir)
	if err := answers.Encode(result); err != nil {
		return err
	}
	if _, err := lines.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("nothing more was to come: %w", err)
	}
	return nil
}

type listeners []net.Listener

func (all listeners) close() {
	for _, l := range all {
		_ = l.Close() // nothing is lost
	}
}

func listen(ctx context.Context, addresses []string) (Opened, listeners) {
	opened := Opened{Failed: map[string]string{}}
	var all listeners
	var config net.ListenConfig
	for _, address := range addresses {
		l, err := config.Listen(ctx, "tcp", address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			opened.Taken = append(opened.Taken, address)
		case err != nil:
			opened.Failed[address] = err.Error()
		default:
			all = append(all, l)
			go accept(l)
		}
	}
	return opened, all
}

func accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.Close() // that it was opened is all
	}
}

// connect measures all addresses at the same time: they are few, and a host
// that does not answer takes its time.
func connect(ctx context.Context, addresses []string) map[string]Trip {
	trips := map[string]Trip{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, address := range addresses {
		wg.Go(func() {
			t := trip(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			trips[address] = t
		})
	}
	wg.Wait()
	return trips
}

func trip(ctx context.Context, address string) Trip {
	dialer := net.Dialer{Timeout: dialTimeout}
	var took []time.Duration
	for range attempts {
		begun := time.Now()
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return Trip{Error: err.Error()}
		}
		took = append(took, time.Since(begun))
		_ = conn.Close() // that it was opened is all
	}
	slices.Sort(took)
	return Trip{Median: took[len(took)/2], Worst: took[len(took)-1]}
}

func flush(ctx context.Context, dir string) (s Sync) {
	took, err := flushes(ctx, dir)
	if err != nil {
		return Sync{Error: err.Error()}
	}
	slices.Sort(took)
	return Sync{Median: took[len(took)/2], P99: took[len(took)*99/100], Worst: took[len(took)-1]}
}

func flushes(ctx context.Context, dir string) (took []time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".muster-probe-*")
	if err != nil {
		return nil, err
	}
	// Without a name from here on: a process that is killed leaves nothing.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	defer f.Close()
	block := make([]byte, syncBytes)
	for begun := time.Now(); len(took) < syncWrites && time.Since(begun) < syncLimit && ctx.Err() == nil; {
		at := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(at))
	}
	if len(took) == 0 {
		return nil, context.Cause(ctx)
	}
	return took, nil
}

// Near returns the closest directory that exists at a path or above: what is
// flushed there is flushed to the same disk.
func Near(path string) string {
	for path = filepath.Clean(path); ; path = filepath.Dir(path) {
		if info, err := os.Stat(path); err == nil && info.IsDir() || path == filepath.Dir(path) {
			return path
		}
	}
}

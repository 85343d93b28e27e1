package step

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"

	"muster/provision/remote"
)

// ErrLocked is wrapped when another run holds the lock of a host.
var ErrLocked = errors.New("another run of muster is at work on this host")

// lockScript holds the lock for as long as its standard input is alive: the
// lock goes with the SSH session, and cannot go stale. The client writes a
// line every lockBeat; when none has come for two minutes, the client's
// machine is gone and only TCP has not noticed. A client that lives has given
// up the connection by then: its keepalives want an answer within one. The
// wait of three seconds is for a host to notice that a killed run is gone.
const lockScript = `flock -w 3 "$1" sh -c '
	printf "%s\n" "$2" >"$1"
	echo locked
	while [ -n "$(timeout 120 head -n 1)" ]; do :; done
' muster "$1" "$2" && exit 0
echo "held by $(cat "$1")"
`

const lockBeat = 10 * time.Second

// Lock takes the lock of every host, so that two runs never work on one. The
// first host is locked before the others: it decides which of two runs that
// start together goes on. Hosts that give no root are left to Preflight.
func Lock(ctx context.Context, r *Run) error {
	who := holder(r.Operation)
	if err := r.Hosts[0].takeLock(ctx, who); err != nil {
		return &hostError{r.Hosts[0].Name, err}
	}
	return r.forAll(func(h *Host) *Error {
		if err := h.takeLock(ctx, who); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

// holder is what a second run is told about this one.
func holder(operation string) string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	machine, err := os.Hostname()
	if err != nil {
		machine = "an unnamed machine"
	}
	return fmt.Sprintf("%s@%s, muster %s, process %d, since %s", name, machine, operation, os.Getpid(), time.Now().Format(time.RFC3339))
}

func (h *Host) takeLock(ctx context.Context, who string) error {
	if h.lock != nil || h.Remote.Privilege().Problem != "" {
		return nil
	}
	p, err := h.Remote.Start(remote.Command{Label: "take the lock " + h.Want.Paths.Lock, Script: lockScript, Args: []string{h.Want.Paths.Lock, who}})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Close() })
	line, err := bufio.NewReader(p.Stdout).ReadString('\n')
	if !stop() {
		return fmt.Errorf("%s: take the lock %s: %w", h.Name, h.Want.Paths.Lock, context.Cause(ctx))
	}
	line = strings.TrimSpace(line)
	if line == "locked" {
		h.lock = holdLock(p)
		return nil
	}
	_ = p.Close()
	if by, ok := strings.CutPrefix(line, "held by "); ok {
		return &lockedError{host: h.Name, by: by}
	}
	if err == nil {
		err = fmt.Errorf("unexpected answer %q", line)
	}
	return fmt.Errorf("%s: take the lock %s: %w; is flock (util-linux) installed there?", h.Name, h.Want.Paths.Lock, err)
}

// heldLock is the process on a host that holds its lock, and the goroutine
// that keeps it alive.
type heldLock struct {
	process *remote.Process
	stop    chan struct{}
	stopped chan struct{}
}

func holdLock(p *remote.Process) *heldLock {
	l := &heldLock{process: p, stop: make(chan struct{}), stopped: make(chan struct{})}
	go l.beat()
	return l
}

// beat tells the host that this run is alive.
func (l *heldLock) beat() {
	defer close(l.stopped)
	ticker := time.NewTicker(lockBeat)
	defer ticker.Stop()
	for {
		if _, err := l.process.Stdin.Write([]byte("alive\n")); err != nil {
			return
		}
		select {
		case <-l.stop:
			return
		case <-ticker.C:
		}
	}
}

// release ends the process. Without it the lock ends with the connection.
func (l *heldLock) release() {
	close(l.stop)
	select {
	case <-l.stopped:
	case <-time.After(time.Second): // a write hangs: the connection is dead
	}
	_ = l.process.Close()
}

type lockedError struct{ host, by string }

func (e *lockedError) Error() string { return fmt.Sprintf("%s: %v: %s", e.host, ErrLocked, e.by) }
func (e *lockedError) Unwrap() error { return ErrLocked }
func (e *lockedError) Hint() string {
	return "wait for that run, or stop it; the lock is gone as soon as its SSH connection is"
}

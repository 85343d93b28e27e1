package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// ErrConnectionLost is wrapped by errors of operations that the connection did
// not survive. Whether the operation took effect is unknown.
var ErrConnectionLost = errors.New("the SSH connection was lost; run the same command again once the host is back")

// maxSessions is below sshd's default MaxSessions of 10, which counts the
// sessions of uploads and of started processes too.
const maxSessions = 6

// OutputLimit bounds what is kept of each of a command's two outputs, in bytes.
const OutputLimit = 4 << 20

// Host is one connection to one host. It may be used from many goroutines.
type Host struct {
	name      string
	client    *ssh.Client
	log       *slog.Logger
	privilege Privilege
	sessions  chan struct{}
	lost      chan struct{}
	stage     stage
	closeOnce sync.Once
}

func newHost(name string, client *ssh.Client, log *slog.Logger) *Host {
	h := &Host{
		name:     name,
		client:   client,
		log:      log.With("host", name),
		sessions: make(chan struct{}, maxSessions),
		lost:     make(chan struct{}),
	}
	go func() {
		_ = client.Wait()
		close(h.lost)
	}()
	return h
}

// Name is the name the host was dialled under.
func (h *Host) Name() string { return h.name }

// Lost is closed when the connection is gone, for whatever reason.
func (h *Host) Lost() <-chan struct{} { return h.lost }

// Close removes what uploads left behind and closes the connection.
func (h *Host) Close() error {
	var err error
	h.closeOnce.Do(func() {
		h.stage.remove(h)
		err = ignoreClosed(h.client.Close())
	})
	return err
}

// DialContext connects to an address as seen from the host.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := h.client.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%s: connect to %s through SSH: %w", h.name, address, h.diagnose(err))
	}
	return conn, nil
}

// Run runs a command to its end. A non-zero exit status is a *CommandError.
// When the context ends first, the session is closed; the command may or may
// not have finished.
func (h *Host) Run(ctx context.Context, c Command) (Result, error) {
	begin := time.Now()
	select {
	case h.sessions <- struct{}{}:
		defer func() { <-h.sessions }()
	case <-ctx.Done():
		return Result{}, h.commandError(ctx, c, ctx.Err(), "", "")
	}
	session, err := h.client.NewSession()
	if err != nil {
		return Result{}, h.commandError(ctx, c, err, "", "")
	}
	defer session.Close() //nolint:errcheck // it is closed already after a normal end
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()

	var stdout, stderr limitedBuffer
	session.Stdin, session.Stdout, session.Stderr = c.Stdin, &stdout, &stderr
	err = session.Run(c.line(h.privilege.Become))
	h.log.Debug("ran", "command", c.Label, "elapsed", time.Since(begin), "error", err)
	if err != nil {
		err := h.commandError(ctx, c, err, stdout.String(), stderr.String())
		var failed *CommandError
		if errors.As(err, &failed) {
			failed.Lost = stdout.lost + stderr.lost
		}
		return Result{}, err
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Lost: stdout.lost + stderr.lost, Elapsed: time.Since(begin)}, nil
}

// Process is a command that keeps running.
type Process struct {
	Stdin   io.WriteCloser
	Stdout  io.Reader
	session *ssh.Session
}

// Start begins a command that runs until its Process, or the connection, is
// closed.
func (h *Host) Start(c Command) (*Process, error) {
	ctx := context.Background()
	session, err := h.client.NewSession()
	if err != nil {
		return nil, h.commandError(ctx, c, err, "", "")
	}
	p := &Process{session: session}
	if p.Stdin, err = session.StdinPipe(); err == nil {
		if p.Stdout, err = session.StdoutPipe(); err == nil {
			err = session.Start(c.line(h.privilege.Become))
		}
	}
	if err != nil {
		_ = session.Close()
		return nil, h.commandError(ctx, c, err, "", "")
	}
	return p, nil
}

// Close ends the command by closing its standard input, and waits until the
// host has seen it.
func (p *Process) Close() error {
	_ = p.Stdin.Close()
	done := make(chan struct{})
	go func() {
		_ = p.session.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second): // it does not react: the channel closes anyway
	}
	return ignoreClosed(p.session.Close())
}

func (h *Host) commandError(ctx context.Context, c Command, err error, stdout, stderr string) error {
	c.Stdin = nil
	out := &CommandError{Host: h.name, Command: c, ExitStatus: -1, Stdout: stdout, Stderr: stderr}
	var exit *ssh.ExitError
	switch {
	case ctx.Err() != nil:
		out.Err = context.Cause(ctx)
	case errors.As(err, &exit) && exit.Signal() != "":
		out.Err = fmt.Errorf("killed by signal %s", exit.Signal())
	case errors.As(err, &exit):
		out.ExitStatus = exit.ExitStatus()
	default:
		out.Err = h.diagnose(err)
	}
	return out
}

// diagnose replaces the many faces of a lost connection with one.
func (h *Host) diagnose(err error) error {
	var noStatus *ssh.ExitMissingError
	if errors.As(err, &noStatus) {
		return fmt.Errorf("%w (%w)", ErrConnectionLost, err)
	}
	for _, face := range []error{io.EOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET, sftp.ErrSSHFxConnectionLost} {
		if errors.Is(err, face) {
			return fmt.Errorf("%w (%w)", ErrConnectionLost, err)
		}
	}
	select {
	case <-h.lost:
		return fmt.Errorf("%w (%w)", ErrConnectionLost, err)
	default:
		return err
	}
}

// limitedBuffer keeps the first OutputLimit bytes and counts the rest.
type limitedBuffer struct {
	b    bytes.Buffer
	lost int64
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	n, _ := l.b.Write(p[:min(len(p), max(0, OutputLimit-l.b.Len()))]) // never fails
	l.lost += int64(len(p) - n)
	return len(p), nil
}

func (l *limitedBuffer) String() string { return l.b.String() }

// Privilege says who logged in and how that user becomes root.
type Privilege struct {
	User string
	Root bool
	// Become goes before a command to run it as root; empty for root.
	Become []string
	// Problem says why the user cannot become root without being asked for a
	// password; empty when it can.
	Problem string
}

// Privilege returns who logged in and how that user becomes root.
func (h *Host) Privilege() Privilege { return h.privilege }

const privilegeScript = `id -un
if [ "$(id -u)" = 0 ]; then
	echo root
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
	echo sudo
elif command -v doas >/dev/null 2>&1 && doas -n true 2>/dev/null; then
	echo doas
elif command -v sudo >/dev/null 2>&1; then
	sudo -n true 2>&1 | head -n 1
elif command -v doas >/dev/null 2>&1; then
	doas -n true 2>&1 | head -n 1
else
	echo "neither sudo nor doas is installed"
fi`

func (h *Host) findPrivilege(ctx context.Context) (Privilege, error) {
	result, err := h.Run(ctx, Command{Label: "find out who logged in", Script: privilegeScript, AsLogin: true})
	if err != nil {
		return Privilege{}, err
	}
	user, how, _ := strings.Cut(strings.TrimSpace(result.Stdout), "\n")
	p := Privilege{User: user}
	switch how {
	case "root":
		p.Root = true
	case "sudo", "doas":
		p.Become = []string{how, "-n"}
	case "":
		p.Problem = "cannot become root"
	default:
		p.Problem = how
	}
	return p, nil
}

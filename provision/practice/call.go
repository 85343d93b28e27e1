package practice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"mvdan.cc/sh/v3/interp"
)

// call is one run of a tool.
type call struct {
	*userShell
	stdio
	ctx  context.Context
	name string
	args []string
	dir  string
	env  []string // exported variables, NAME=VALUE
}

// tool is a command of a practice host.
type tool func(*call) error

// errReported is returned by a tool that has said what is wrong already.
type errReported struct{ status int }

func (e errReported) Error() string { return fmt.Sprintf("exit status %d", e.status) }

func exitStatus(status int) error {
	if status == 0 {
		return nil
	}
	return errReported{status}
}

// fail says what is wrong, as the tool, and returns the status.
func (c *call) fail(status int, format string, args ...any) error {
	fmt.Fprintf(c.err, "%s: %s\n", c.name, fmt.Sprintf(format, args...))
	return errReported{status}
}

// finish turns a tool's error into an exit status.
func (c *call) finish(err error) error {
	var reported errReported
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case errors.As(err, &reported):
		return interp.ExitStatus(uint8(reported.status))
	case errors.Is(err, pflag.ErrHelp):
		return interp.ExitStatus(exitUsage)
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		fmt.Fprintf(c.err, "%s: %s: %s\n", c.name, c.onHost(pathErr.Path), reason(pathErr.Err))
	} else {
		fmt.Fprintf(c.err, "%s: %v\n", c.name, err)
	}
	return interp.ExitStatus(1)
}

// onHost is the path on the host of a path on this machine. Paths of the host
// stay as they are.
func (c *call) onHost(name string) string {
	if strings.HasPrefix(name, c.files.root) {
		return c.files.virtual(name)
	}
	return name
}

// reason is strerror(3) for what scripts and people look for.
func reason(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

// path makes a path argument absolute.
func (c *call) path(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(c.dir, name)
}

// flags is a flag set for c, which knows short and long options alike.
func (c *call) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.SetInterspersed(true)
	return f
}

// parse parses the options; a wrong one is the tool's error.
func (c *call) parse(f *pflag.FlagSet) error {
	if err := f.Parse(c.args); err != nil {
		return fmt.Errorf("practice host: %w", err)
	}
	return nil
}

func (c *call) readFile(name string) ([]byte, error) {
	f, err := c.files.open(c.path(name))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	return data, errors.Join(err, f.Close())
}

// eachInput calls f with every named file, or with standard input when none
// is named or the name is "-".
func (c *call) eachInput(names []string, f func(name string, r io.Reader) error) error {
	if len(names) == 0 {
		names = []string{"-"}
	}
	var failed error
	for _, name := range names {
		if name == "-" {
			if err := f(name, c.in); err != nil {
				return err
			}
			continue
		}
		file, err := c.files.open(c.path(name))
		if err == nil {
			err = errors.Join(f(name, file), file.Close())
		}
		if err != nil {
			failed = exitStatusOf(c.finish(err))
		}
	}
	return failed
}

func exitStatusOf(err error) error {
	var status interp.ExitStatus
	if errors.As(err, &status) {
		return exitStatus(int(status))
	}
	return err
}

func (c *call) environment() map[string]string {
	env := map[string]string{}
	for _, e := range c.env {
		k, v, _ := strings.Cut(e, "=")
		env[k] = v
	}
	return env
}

// runProgram runs an installed program as a child process, with the paths in
// its arguments mapped to this machine.
func (c *call) runProgram(program string) error {
	p, err := c.files.real(program)
	if err != nil {
		return err
	}
	if err := c.files.check("exec", p, mayExecute); err != nil {
		return err
	}
	dir, err := c.files.real(c.dir)
	if err != nil {
		return err
	}
	// A process that this one is just forking may still hold the file open that
	// was written; on a machine of its own an upload has no such company.
	for deadline := time.Now().Add(busyLimit); ; {
		err = c.execute(p, program, dir)
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(deadline) {
			break
		}
	}
	var exitErr *exec.ExitError
	switch {
	case errors.As(err, &exitErr) && exitErr.ExitCode() >= 0:
		return exitStatus(exitErr.ExitCode())
	case errors.As(err, &exitErr):
		return exitStatus(128 + int(exitErr.Sys().(syscall.WaitStatus).Signal()))
	case errors.Is(err, syscall.ENOEXEC):
		return c.fail(126, "%s: Exec format error", program)
	}
	return err
}

// busyLimit is how long a program may be busy that was just written.
const busyLimit = 5 * time.Second

func (c *call) execute(path, program, dir string) error {
	cmd := exec.CommandContext(c.ctx, path)
	cmd.Args = []string{program}
	for _, a := range c.args {
		cmd.Args = append(cmd.Args, c.files.mapArgument(a))
	}
	cmd.Env = childEnvironment()
	for _, e := range c.env {
		cmd.Env = append(cmd.Env, c.files.mapArgument(e))
	}
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, c.in, c.out, c.err
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = time.Second
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd.Run()
}

// stat is files.stat for an argument.
func (c *call) stat(name string, follow bool) (os.FileInfo, error) {
	return c.files.stat(c.path(name), follow)
}

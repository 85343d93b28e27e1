package practice

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a child in its own process group.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the child was reaped
	err  error         // what Wait returned; valid after done
}

// startProcess starts the program at the real path with the arguments argv
// (argv[0] included). The child dies when this process does.
func startProcess(path string, argv, env []string, dir string, out io.Writer) (*process, error) {
	p := &process{done: make(chan struct{}), cmd: &exec.Cmd{
		Path: path, Args: argv, Env: env, Dir: dir, Stdout: out, Stderr: out, SysProcAttr: ownGroup(),
		// A grandchild that keeps the output open does not keep the unit alive.
		WaitDelay: time.Second,
	}}
	started := make(chan error)
	go func() {
		// The signal that follows the parent's death follows that of the
		// thread which forked, so the thread must last as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// signal sends sig to the child and all it has started.
func (p *process) signal(sig syscall.Signal) error {
	err := syscall.Kill(-p.pid(), sig)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// exit describes how the child ended: its status or the signal that killed
// it, in systemd's words. Valid after done.
func (p *process) exit() (result, status string, clean bool) {
	if p.err == nil {
		return "success", "0", true
	}
	var exitErr *exec.ExitError
	if !errors.As(p.err, &exitErr) {
		return "resources", p.err.Error(), false
	}
	ws, ok := exitErr.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		sig := ws.Signal()
		return "signal", fmt.Sprint(int(sig)), sig == syscall.SIGTERM || sig == syscall.SIGINT || sig == syscall.SIGHUP || sig == syscall.SIGPIPE
	}
	return "exit-code", fmt.Sprint(exitErr.ExitCode()), false
}

// childEnvironment is what every unit gets, systemd.exec(5).
func childEnvironment(extra ...string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	// A binary built with coverage writes where the test says.
	if dir, ok := os.LookupEnv("GOCOVERDIR"); ok {
		env = append(env, "GOCOVERDIR="+dir)
	}
	return append(env, extra...)
}

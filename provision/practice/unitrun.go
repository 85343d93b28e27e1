package practice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// unitRun is one life of a unit, from start to stop, across its restarts.
type unitRun struct {
	supervisor *supervisor
	unit       *unitState
	journal    *journal

	stop    context.CancelFunc
	settled chan struct{} // closed when the unit became active or failed
	once    sync.Once
	result  string        // how the first start ended; valid once settled
	done    chan struct{} // closed when nothing of it runs any more
}

// newUnitRun starts a unit that does not run. Call with the supervisor's lock
// held.
func newUnitRun(s *supervisor, u *unitState) *unitRun {
	ctx, stop := context.WithCancel(context.Background())
	r := &unitRun{
		supervisor: s, unit: u, journal: s.journals.of(u.name),
		stop: stop, settled: make(chan struct{}), done: make(chan struct{}),
	}
	u.run, u.restarts, u.active, u.sub, u.result = r, 0, "activating", "start", "success"
	go r.live(ctx, u.service)
	return r
}

// wait returns once nothing of the run is left.
func (r *unitRun) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// settle decides the start job, the first time it is called.
func (r *unitRun) settle(result string) {
	r.once.Do(func() {
		r.result = result
		close(r.settled)
	})
}

// say writes a message of systemd's to the unit's journal.
func (r *unitRun) say(format string, args ...any) {
	r.journal.add("systemd", 1, fmt.Sprintf(format, args...))
}

// change changes the unit's state.
func (r *unitRun) change(f func(*unitState)) { r.supervisor.locked(func() { f(r.unit) }) }

// end is the last change of a run.
func (r *unitRun) end(active, sub, result string) {
	r.change(func(u *unitState) { u.active, u.sub, u.result, u.pid, u.run = active, sub, result, 0, nil })
}

// live runs one unit until it is stopped, ends or fails for good.
func (r *unitRun) live(ctx context.Context, def *service) {
	defer close(r.done)
	defer r.settle("canceled")
	name := r.unit.name
	for {
		r.change(func(u *unitState) {
			// A restart follows the file as of the last daemon-reload.
			if _, err := r.supervisor.load(name); err == nil {
				def = u.service
			}
		})
		if !r.mayStart(def) {
			r.say("%s: Start request repeated too quickly.", name)
			r.end("failed", "failed", "start-limit-hit")
			r.say("%s: Failed with result 'start-limit-hit'.", r.unit.name)
			return
		}
		r.say("Starting %s - %s...", r.unit.name, def.Description)
		result, clean := r.runOnce(ctx, def)
		r.settle(result)
		if ctx.Err() != nil {
			r.end("inactive", "dead", "success")
			r.say("Stopped %s - %s.", r.unit.name, def.Description)
			return
		}
		if clean && def.Restart != "always" {
			r.end("inactive", "dead", "success")
			r.say("%s: Deactivated successfully.", r.unit.name)
			return
		}
		if !clean {
			r.say("%s: Failed with result '%s'.", r.unit.name, result)
		}
		if def.Restart != "always" && def.Restart != "on-failure" {
			r.end("failed", "failed", result)
			return
		}
		r.change(func(u *unitState) { u.active, u.sub, u.result, u.pid = "activating", "auto-restart", result, 0 })
		select {
		case <-time.After(def.RestartSec):
		case <-ctx.Done():
			r.end("inactive", "dead", "success")
			return
		}
		r.change(func(u *unitState) { u.restarts++; u.sub = "start" })
	}
}

// mayStart counts a start against StartLimitBurst=.
func (r *unitRun) mayStart(def *service) bool {
	r.supervisor.mu.Lock()
	defer r.supervisor.mu.Unlock()
	u, now := r.unit, time.Now()
	recent := u.starts[:0]
	for _, t := range u.starts {
		if now.Sub(t) < def.BurstWindow {
			recent = append(recent, t)
		}
	}
	u.starts = recent
	if def.Burst > 0 && len(recent) >= def.Burst {
		return false
	}
	u.starts = append(u.starts, now)
	return true
}

// runOnce runs the unit's process until it ends. It reports how it ended and
// whether that counts as a success.
func (r *unitRun) runOnce(ctx context.Context, def *service) (result string, clean bool) {
	if def.Type == timerType {
		r.change(func(u *unitState) { u.active, u.sub, u.since = "active", "waiting", time.Now() })
		r.settle("success")
		<-ctx.Done()
		return "success", true
	}
	notify, err := listenNotify(func(text string) { r.change(func(u *unitState) { u.text = text }) })
	if err != nil {
		r.say("%v", err)
		return "resources", false
	}
	defer func() {
		if err := notify.close(); err != nil {
			r.say("%v", err)
		}
	}()
	p, out, err := r.spawn(def, notify.env)
	if err != nil {
		r.say("%s: Failed at step EXEC spawning %s: %v", r.unit.name, strings.Join(def.Exec, " "), err)
		r.change(func(u *unitState) { u.exitInfo = "203" })
		return "exit-code", false
	}
	defer out.flush()
	r.change(func(u *unitState) { u.pid = p.pid() })

	activate := func() {
		r.change(func(u *unitState) { u.active, u.sub, u.since = "active", "running", time.Now() })
		r.say("Started %s - %s.", r.unit.name, def.Description)
		r.settle("success")
	}
	ready := notify.ready
	var timeout <-chan time.Time
	if def.Type == "oneshot" {
		ready = nil // it is started when it has ended
	} else if !strings.HasPrefix(def.Type, "notify") {
		ready = nil
		activate()
	} else if def.StartTimeout > 0 {
		timeout = time.After(def.StartTimeout)
	}
	for {
		select {
		case <-ready:
			ready, timeout = nil, nil
			activate()
		case <-timeout:
			r.say("%s: start operation timed out. Terminating.", r.unit.name)
			r.terminate(p, def)
			return "timeout", false
		case <-ctx.Done():
			r.change(func(u *unitState) { u.active, u.sub = "deactivating", "stop-sigterm" })
			r.say("Stopping %s - %s...", r.unit.name, def.Description)
			r.terminate(p, def)
			return "success", true
		case <-p.done:
			result, status, clean := p.exit()
			if ready != nil && clean {
				result, clean = "protocol", false // it ended before it was ready
			}
			r.change(func(u *unitState) { u.exitInfo = status })
			if !clean {
				r.say("%s: Main process exited, result=%s, status=%s", r.unit.name, result, status)
			}
			// What the process has started goes with it.
			if err := p.signal(syscall.SIGKILL); err != nil {
				r.say("%v", err)
			}
			return result, clean
		}
	}
}

// terminate is systemd's way to stop: SIGTERM, patience, SIGKILL.
func (r *unitRun) terminate(p *process, def *service) {
	if err := p.signal(syscall.SIGTERM); err != nil {
		r.say("%v", err)
	}
	var timeout <-chan time.Time
	if def.StopTimeout > 0 {
		timeout = time.After(def.StopTimeout)
	}
	select {
	case <-p.done:
	case <-timeout:
		r.say("State 'stop-sigterm' timed out. Killing.")
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		r.say("%v", err)
	}
	<-p.done
}

// spawn prepares what the unit asks for and starts its process.
func (r *unitRun) spawn(def *service, notifyEnv string) (*process, *journalWriter, error) {
	if err := r.prepare(def); err != nil {
		return nil, nil, err
	}
	env, err := def.environment(func(name string) (io.ReadCloser, error) { return r.supervisor.files.open(name) })
	if err != nil {
		return nil, nil, err
	}
	program := def.Exec[0]
	binary, err := r.supervisor.files.real(program)
	if err != nil {
		return nil, nil, err
	}
	argv := []string{program}
	for _, a := range def.Exec[1:] {
		argv = append(argv, r.supervisor.files.mapArgument(a))
	}
	for i, e := range env {
		env[i] = r.supervisor.files.mapArgument(e)
	}
	out := &journalWriter{journal: r.journal, identifier: path.Base(program)}
	if def.PodLogs != "" {
		if out.also, err = r.supervisor.files.podLog(def.PodLogs); err != nil {
			return nil, nil, err
		}
	}
	p, err := startProcess(binary, argv, childEnvironment(append(env, notifyEnv)...), r.supervisor.files.root, out)
	if err != nil {
		return nil, nil, r.supervisor.files.onHost(err)
	}
	out.pid.Store(int64(p.pid()))
	return p, out, nil
}

// prepare checks the account and makes the directories the unit names.
func (r *unitRun) prepare(def *service) error {
	o := rootOwner
	if def.User != "" {
		account, ok := r.supervisor.files.accounts.user(def.User)
		if !ok {
			return fmt.Errorf("failed to determine user credentials: no such user %q", def.User)
		}
		o = owner{User: def.User, Group: r.supervisor.files.accounts.groupName(account.GID)}
	}
	if def.Group != "" {
		if _, ok := r.supervisor.files.accounts.group(def.Group); !ok {
			return fmt.Errorf("failed to determine group credentials: no such group %q", def.Group)
		}
		o.Group = def.Group
	}
	mode, err := strconv.ParseUint(def.StateMode, 8, 12)
	if err != nil {
		return fmt.Errorf("StateDirectoryMode=%s: %w", def.StateMode, err)
	}
	var failed []error
	for _, d := range def.StateDirs {
		failed = append(failed, r.supervisor.files.ownDirectory(path.Join("/var/lib", d), fs.FileMode(mode), o))
	}
	return errors.Join(failed...)
}

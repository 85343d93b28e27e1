package practice

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	// errJobFailed is returned by a start whose unit failed.
	errJobFailed = errors.New("job failed")
	// errOff is returned by a start while the host is down.
	errOff = errors.New("the host is shutting down")
)

// supervisor plays systemd for one host.
type supervisor struct {
	files     *view // as root
	installed unitFiles
	journals  *journals

	mu    sync.Mutex
	off   bool // the host is down; nothing starts
	units map[string]*unitState
}

// unitState is a loaded unit. All fields are guarded by supervisor.mu.
type unitState struct {
	name     string
	service  *service
	sum      [sha256.Size]byte // of the file when it was loaded
	loadErr  error
	active   string // ActiveState: inactive, activating, active, deactivating, failed
	sub      string // SubState
	result   string // Result
	exitInfo string // ExecMainStatus
	text     string // StatusText
	pid      int    // MainPID
	restarts int    // NRestarts
	starts   []time.Time
	since    time.Time
	run      *unitRun // nil when nothing runs
}

func newSupervisor(files *view, journalDir string) *supervisor {
	return &supervisor{
		files: files, installed: unitFiles{files}, journals: newJournals(journalDir), units: map[string]*unitState{},
	}
}

// unitName completes "musterd" to "musterd.service".
func unitName(name string) string {
	if path.Ext(name) == "" {
		return name + ".service"
	}
	return name
}

// load returns the unit as it is in memory; the file is read the first time
// only, as systemd does until the next daemon-reload. Call with mu held.
func (s *supervisor) load(name string) (*unitState, error) {
	if u, ok := s.units[name]; ok && (u.service != nil || u.loadErr != nil) {
		return u, u.loadErr
	}
	data, err := s.installed.read(name)
	if err != nil {
		return nil, err
	}
	u := s.units[name]
	if u == nil {
		u = &unitState{name: name, active: "inactive", sub: "dead", result: "success", exitInfo: "0"}
		s.units[name] = u
	}
	u.sum = sha256.Sum256(data)
	u.service, u.loadErr = parseUnit(name, data)
	if u.loadErr != nil {
		u.service = nil
	}
	return u, u.loadErr
}

// find is load for a unit that may have lost its file while it runs.
func (s *supervisor) find(name string) (*unitState, error) {
	if u, ok := s.units[name]; ok && u.run != nil {
		return u, nil
	}
	return s.load(name)
}

// locked changes units under the supervisor's lock.
func (s *supervisor) locked(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// reload forgets every unit file, so that each is read anew on its next use.
func (s *supervisor) reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, u := range s.units {
		if u.run == nil && u.active != "failed" {
			delete(s.units, name)
			continue
		}
		u.service, u.loadErr = nil, nil
	}
}

// start starts a unit and, with wait, returns once it is active or has failed.
func (s *supervisor) start(ctx context.Context, name string, wait bool) error {
	s.mu.Lock()
	u, err := s.load(name)
	if s.off {
		err = errOff
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	run := u.run
	if run != nil && u.active == "deactivating" {
		s.mu.Unlock()
		if err := run.wait(ctx); err != nil {
			return err
		}
		return s.start(ctx, name, wait)
	}
	if run == nil {
		run = newUnitRun(s, u)
	}
	s.mu.Unlock()
	if !wait {
		return nil
	}
	select {
	case <-run.settled:
	case <-ctx.Done():
		return ctx.Err()
	}
	if run.result == "success" {
		return nil
	}
	return fmt.Errorf("%w because the control process exited with %s", errJobFailed, run.result)
}

// stop stops a unit and returns once nothing of it runs.
func (s *supervisor) stop(ctx context.Context, name string) error {
	s.mu.Lock()
	u, err := s.find(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	run := u.run
	s.mu.Unlock()
	if run == nil {
		return nil
	}
	run.stop()
	return run.wait(ctx)
}

// restart stops and starts a unit; without wait it returns at once.
func (s *supervisor) restart(ctx context.Context, name string, wait bool) error {
	if wait {
		if err := s.stop(ctx, name); err != nil {
			return err
		}
		return s.start(ctx, name, true)
	}
	s.mu.Lock()
	_, err := s.load(name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	go func() {
		if err := s.restart(context.WithoutCancel(ctx), name, true); err != nil {
			s.journals.of(name).add("systemd", 1, err.Error())
		}
	}()
	return nil
}

// restartAll restarts every unit that runs, and waits until it runs again.
func (s *supervisor) restartAll(ctx context.Context) error {
	var names []string
	s.locked(func() {
		for name, u := range s.units {
			if u.run != nil {
				names = append(names, name)
			}
		}
	})
	for _, name := range names {
		if err := s.restart(ctx, name, true); err != nil {
			return err
		}
	}
	return nil
}

// kill sends a signal to the unit's processes.
func (s *supervisor) kill(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, err := s.find(name)
	if err != nil {
		return err
	}
	if u.pid == 0 {
		return fmt.Errorf("unit %s has no process", name)
	}
	return syscall.Kill(-u.pid, sig)
}

// resetFailed makes a failed unit inactive and forgets its restarts.
func (s *supervisor) resetFailed(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, ok := s.units[name]; ok && u.run == nil {
		u.active, u.sub, u.result, u.starts, u.restarts = "inactive", "dead", "success", nil, 0
	}
}

// halt kills everything at once, the way a power cut does.
func (s *supervisor) halt() {
	s.mu.Lock()
	s.off = true
	var runs []*unitRun
	for _, u := range s.units {
		if u.run == nil {
			continue
		}
		runs = append(runs, u.run)
		u.run.stop()
		if u.pid != 0 {
			// The process may be gone already; waiting below covers both.
			_ = syscall.Kill(-u.pid, syscall.SIGKILL)
		}
	}
	s.mu.Unlock()
	for _, run := range runs {
		<-run.done
	}
	s.locked(func() { s.units = map[string]*unitState{} })
}

// boot starts every enabled unit.
func (s *supervisor) boot() error {
	s.locked(func() { s.off = false })
	names, err := s.installed.enabled()
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		if err := s.start(context.Background(), name, false); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// properties are what systemctl show prints, by name.
func (s *supervisor) properties(name string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := map[string]string{
		"Id": name, "Names": name, "LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "Result": "success",
		"MainPID": "0", "ExecMainPID": "0", "ExecMainStatus": "0", "NRestarts": "0", "StatusText": "", "NeedDaemonReload": "no",
		"UnitFileState": "disabled", "FragmentPath": path.Join(unitDir, name), "Description": name,
	}
	if s.installed.isEnabled(name) {
		p["UnitFileState"] = "enabled"
	}
	data, err := s.installed.read(name)
	if err != nil {
		p["UnitFileState"], p["FragmentPath"], p["LoadState"] = "", "", "not-found"
	}
	u, loadErr := s.load(name)
	if u == nil {
		return p
	}
	if loadErr != nil {
		p["LoadState"] = "bad-setting"
	} else {
		p["Description"] = u.service.Description
		p["User"], p["Group"], p["Type"] = u.service.User, u.service.Group, u.service.Type
	}
	if err == nil && sha256.Sum256(data) != u.sum {
		p["NeedDaemonReload"] = "yes"
	}
	p["ActiveState"], p["SubState"], p["Result"], p["StatusText"] = u.active, u.sub, u.result, u.text
	p["MainPID"], p["ExecMainPID"] = fmt.Sprint(u.pid), fmt.Sprint(u.pid)
	p["ExecMainStatus"], p["NRestarts"] = u.exitInfo, fmt.Sprint(u.restarts)
	if !u.since.IsZero() && u.active == "active" {
		p["ActiveEnterTimestamp"] = u.since.UTC().Format("Mon 2006-01-02 15:04:05 MST")
	}
	return p
}

// pids maps the processes of the units to the unit's name without ending.
func (s *supervisor) pids() map[int]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := map[int]string{}
	for name, u := range s.units {
		if u.pid != 0 {
			pids[u.pid] = strings.TrimSuffix(name, ".service")
		}
	}
	return pids
}

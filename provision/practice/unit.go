package practice

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"mvdan.cc/sh/v3/shell"
)

// service is what the unit runner understands of a .service file. The rest,
// the sandbox above all, is accepted and has no effect on a practice host.
type service struct {
	Description string
	Type        string // simple, exec, notify or oneshot; timer for a timer, which runs nothing
	Exec        []string
	Restart     string // no, always, on-failure
	RestartSec  time.Duration
	Environment []string
	EnvFiles    []string // a leading "-" means it may be missing
	User, Group string
	// StateDirs are below /var/lib and made before the start with StateMode.
	StateDirs    []string
	StateMode    string
	StartTimeout time.Duration
	StopTimeout  time.Duration
	Burst        int // starts allowed within BurstWindow; 0 is any number
	BurstWindow  time.Duration
	WantedBy     []string
	PodLogs      string // directory of a container's output; empty for a unit
}

// systemd's own defaults, systemd.service(5) and systemd-system.conf(5).
const (
	defaultRestartSec  = 100 * time.Millisecond
	defaultTimeout     = 90 * time.Second
	defaultBurst       = 5
	defaultBurstWindow = 10 * time.Second
)

var serviceTypes = []string{"simple", "exec", "notify", "notify-reload", "oneshot"}

// timerType is the type of a timer. It is active until it is stopped, and never
// elapses: whoever wants to see what it starts, starts that.
const timerType = "timer"

// parseUnit reads a unit file, of a service or a timer.
func parseUnit(name string, data []byte) (*service, error) {
	if path.Ext(name) != ".timer" {
		return parseService(data)
	}
	options, err := unit.DeserializeOptions(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s, elapses := &service{Type: timerType, Restart: "no"}, false
	for _, o := range options {
		if err := s.set(o); err != nil {
			return nil, fmt.Errorf("%s=: %w", o.Name, err)
		}
		elapses = elapses || o.Section == "Timer" && strings.HasPrefix(o.Name, "On") && o.Value != ""
	}
	if !elapses {
		return nil, errors.New("timer unit lacks value setting, refusing")
	}
	return s, nil
}

// parseService reads a unit file. Every problem is a line of the error.
func parseService(data []byte) (*service, error) {
	options, err := unit.DeserializeOptions(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := &service{
		Type: "simple", Restart: "no", RestartSec: defaultRestartSec,
		StartTimeout: defaultTimeout, StopTimeout: defaultTimeout,
		Burst: defaultBurst, BurstWindow: defaultBurstWindow, StateMode: "0755",
	}
	var problems []error
	for _, o := range options {
		if err := s.set(o); err != nil {
			problems = append(problems, fmt.Errorf("%s=: %w", o.Name, err))
		}
	}
	if len(s.Exec) == 0 {
		problems = append(problems, errors.New("service has no ExecStart=, refusing"))
	}
	if !slices.Contains(serviceTypes, s.Type) {
		problems = append(problems, fmt.Errorf("failed to parse service type: %s", s.Type))
	}
	return s, errors.Join(problems...)
}

func (s *service) set(o *unit.UnitOption) (err error) {
	switch o.Section + "." + o.Name {
	case "Unit.Description":
		s.Description = o.Value
	case "Unit.StartLimitBurst":
		_, err = fmt.Sscan(o.Value, &s.Burst)
	case "Unit.StartLimitIntervalSec":
		s.BurstWindow, err = parseTimespan(o.Value)
		if s.BurstWindow == 0 {
			s.Burst = 0
		}
	case "Install.WantedBy":
		s.WantedBy = append(s.WantedBy, strings.Fields(o.Value)...)
	case "Service.Type":
		s.Type = o.Value
	case "Service.ExecStart":
		s.Exec, err = splitCommand(o.Value)
	case "Service.Restart":
		s.Restart = o.Value
	case "Service.RestartSec":
		s.RestartSec, err = parseTimespan(o.Value)
	case "Service.TimeoutStartSec":
		s.StartTimeout, err = parseTimespan(o.Value)
	case "Service.TimeoutStopSec":
		s.StopTimeout, err = parseTimespan(o.Value)
	case "Service.Environment":
		var words []string
		words, err = splitCommand(o.Value)
		s.Environment = append(s.Environment, words...)
	case "Service.EnvironmentFile":
		s.EnvFiles = append(s.EnvFiles, o.Value)
	case "Service.User":
		s.User = o.Value
	case "Service.Group":
		s.Group = o.Value
	case "Service.X-PodLogs":
		s.PodLogs = o.Value
	case "Service.StateDirectory":
		s.StateDirs = strings.Fields(o.Value)
	case "Service.StateDirectoryMode":
		s.StateMode = o.Value
	}
	return err
}

// splitCommand splits a command line into words. systemd's quoting is close
// enough to the shell's; its prefixes (systemd.service(5), "Command lines")
// change rights that a practice host does not have.
func splitCommand(line string) ([]string, error) {
	return shell.Fields(strings.TrimLeft(line, "@-:+!"), func(string) string { return "" })
}

// parseTimespan reads systemd.time(7): a bare number is seconds, 0 and
// infinity are no limit.
func parseTimespan(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if text == "infinity" {
		return 0, nil
	}
	if strings.Trim(text, "0123456789.") == "" {
		text += "s"
	}
	text = strings.NewReplacer(" ", "", "min", "m", "sec", "s").Replace(text)
	return time.ParseDuration(text)
}

// environment is Environment= and the files of EnvironmentFile=, read by open.
func (s *service) environment(open func(string) (io.ReadCloser, error)) ([]string, error) {
	env := slices.Clone(s.Environment)
	for _, name := range s.EnvFiles {
		optional := strings.HasPrefix(name, "-")
		f, err := open(strings.TrimPrefix(name, "-"))
		if err != nil {
			if optional {
				continue
			}
			return nil, fmt.Errorf("failed to load environment file: %w", err)
		}
		data, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			words, err := shell.Fields(line, func(string) string { return "" })
			if err != nil {
				return nil, fmt.Errorf("environment file %s: %w", name, err)
			}
			env = append(env, words...)
		}
	}
	return env, nil
}

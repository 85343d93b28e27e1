package step

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"

	"muster/provision/observed"
	"muster/provision/probe"
	"muster/provision/remote"
)

// Mesh is what the hosts have measured of each other.
type Mesh struct {
	// Hosts is what each host has measured, by name. Those that could not are
	// in Failed, with the reason.
	Hosts  map[string]probe.Measured
	Failed map[string]error
}

// Ports are the addresses at which a host's member is reached from the others.
func (h *Host) Ports() (peer, client string) {
	return address(h.Want.Member.PeerURL), address(h.Want.Member.ClientURL)
}

func address(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text // it is made of an address and a port
	}
	return u.Host
}

// MeasureMesh has all connected hosts that may measure do so, at the same time.
// Each accepts connections at its member's ports meanwhile unless its member
// does. On a host that has no program that can measure, one is placed in a
// temporary directory, which is removed again.
func MeasureMesh(ctx context.Context, r *Run) *Mesh {
	m := &Mesh{Hosts: map[string]probe.Measured{}, Failed: map[string]error{}}
	var hosts []*Host
	var addresses []string
	for _, h := range r.Hosts {
		if h.Remote != nil {
			hosts = append(hosts, h)
		}
		peer, client := h.Ports() // also of those that cannot be reached from here
		addresses = append(addresses, peer, client)
	}
	var mu sync.Mutex
	fail := func(h *Host, err error) {
		mu.Lock()
		defer mu.Unlock()
		m.Failed[h.Name] = err
	}
	// Nobody begins before everybody listens.
	var listening sync.WaitGroup
	listening.Add(len(hosts))
	var all sync.WaitGroup
	done := make(chan struct{})
	var measuring sync.WaitGroup
	measuring.Add(len(hosts))
	for _, h := range hosts {
		all.Go(func() {
			s, err := h.openProbe(ctx)
			listening.Done()
			if err != nil {
				measuring.Done()
				fail(h, err)
				return
			}
			defer s.close()
			listening.Wait()
			var result probe.Measured
			err = s.ask(probe.Measuring{Dial: addresses}, &result)
			measuring.Done()
			if err != nil {
				fail(h, err)
				return
			}
			mu.Lock()
			m.Hosts[h.Name] = result
			mu.Unlock()
			<-done // others may still be connecting
		})
	}
	measuring.Wait()
	close(done)
	all.Wait()
	return m
}

// probeSession is a probe that runs on a host.
type probeSession struct {
	host    *Host
	process *remote.Process
	lines   *bufio.Reader
	stop    func() bool
	cleanUp func()
}

const probeDir = "/var/tmp/muster-doctor"

// openProbe starts the probe on the host; it accepts connections when it is
// returned.
func (h *Host) openProbe(ctx context.Context) (_ *probeSession, err error) {
	s := &probeSession{host: h, cleanUp: func() {}}
	defer func() {
		if err != nil {
			s.cleanUp()
		}
	}()
	program, err := s.program(ctx)
	if err != nil {
		return nil, err
	}
	s.process, err = h.Remote.Start(remote.Command{
		Label: "measure", Script: `"$1" probe "$2" 2>&1`, Args: []string{program, h.Want.Member.DataDir},
		AsLogin: h.Remote.Privilege().Problem != "",
	})
	if err != nil {
		return nil, err
	}
	s.stop = context.AfterFunc(ctx, func() { _ = s.process.Close() })
	s.lines = bufio.NewReader(s.process.Stdout)
	var opening probe.Opening
	if !h.Facts.Unit.Running() {
		opening.Listen = []string{address(h.PeerListenURL())}
		for _, u := range h.ClientListenURLs() {
			opening.Listen = append(opening.Listen, address(u))
		}
	}
	var opened probe.Opened
	if err := s.ask(opening, &opened); err != nil {
		_ = s.process.Close()
		return nil, err
	}
	for at, text := range opened.Failed {
		h.run.Log.Debug("the probe does not listen", "host", h.Name, "address", at, "error", text)
	}
	return s, nil
}

// program returns the path of a program on the host that can measure: the
// installed one, if it is the one that is to be installed.
func (s *probeSession) program(ctx context.Context) (string, error) {
	h := s.host
	for _, b := range h.Want.Binaries {
		if b.Program != clientProgram {
			continue
		}
		payload, err := h.program(ctx, b)
		if err != nil {
			return "", err
		}
		if h.Facts.Files[b.Path].SHA256 == payload.SHA256() {
			return b.Path, nil
		}
		result, err := h.Remote.Run(ctx, remote.Command{
			Label: "make a directory for the probe", Script: `rm -rf "$1".*; mktemp -d "$1.XXXXXX"`, Args: []string{probeDir},
			AsLogin: h.Remote.Privilege().Problem != "",
		})
		if err != nil {
			return "", err
		}
		dir := strings.TrimSpace(result.Stdout)
		s.cleanUp = func() {
			_, err := h.Remote.Run(context.WithoutCancel(ctx), remote.Command{
				Label: "remove the probe", Script: `rm -rf "$1"`, Args: []string{dir}, AsLogin: h.Remote.Privilege().Problem != "",
			})
			if err != nil {
				h.warn("left behind: " + dir)
			}
		}
		owner := "root"
		if h.Remote.Privilege().Problem != "" {
			return "", errors.New("without root nothing can be placed there")
		}
		file := remote.File{Path: path.Join(dir, b.Program), Mode: 0o700, Owner: owner, Group: owner}
		return file.Path, h.Remote.Upload(ctx, file, payload, nil)
	}
	return "", errors.New("no program that can measure is to be installed there")
}

// ask sends one line and reads one. A line that is no JSON is an error's text.
func (s *probeSession) ask(question, answer any) error {
	err := json.NewEncoder(s.process.Stdin).Encode(question)
	if err == nil {
		var line string
		line, err = s.lines.ReadString('\n')
		if err == nil && json.Unmarshal([]byte(line), answer) != nil {
			err = errors.New(strings.TrimSpace(line))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: measure: %w", s.host.Name, err)
	}
	return nil
}

func (s *probeSession) close() {
	if s.stop() {
		_ = s.process.Close() // the answers are in
	}
	s.cleanUp()
}

// Holder says who holds the lock of a host; empty when nobody does.
func (h *Host) Holder(ctx context.Context) (string, error) {
	result, err := h.Remote.Run(ctx, remote.Command{
		Label:  "look at the lock",
		Script: `[ -e "$1" ] || exit 0; flock -n "$1" true || head -n 1 "$1"`, Args: []string{h.Want.Paths.Lock},
		AsLogin: h.Remote.Privilege().Problem != "",
	})
	return strings.TrimSpace(result.Stdout), err
}

// Examine returns every reason that Preflight would give not to begin, for the
// hosts that are connected.
func Examine(r *Run) ([]Problem, error) {
	found, err := examine(r, slices.DeleteFunc(slices.Clone(r.Hosts), func(h *Host) bool { return h.Remote == nil }))
	if err != nil {
		return nil, err
	}
	return found.Problems, nil
}

// Low says that a member's disk has less room than a new member is given.
func (h *Host) Low() (free int64, low bool) {
	free, known := h.Facts.Free["data"]
	return free, known && free < dataMinimum && h.Facts.Data == observed.DataFilled
}

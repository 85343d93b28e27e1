package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// clockTicks per second is what Linux reports CPU times in, on every
// architecture Go runs on.
const clockTicks = 100

const startTimeout = time.Minute

type member struct {
	name, dir          string
	clientURL, peerURL string
	process            *exec.Cmd
	exited             chan struct{}
}

// cluster is some members of one kind on loopback.
type cluster struct {
	kind    kind
	members []*member
	initial string
}

// startCluster founds a cluster in an empty directory and waits until every
// member answers a linearizable read.
func startCluster(ctx context.Context, dir string, kind kind, size int) (*cluster, error) {
	c := &cluster{kind: kind}
	var initial []string
	for i := range size {
		name := fmt.Sprintf("%s-%d", kind.name, i)
		m := &member{name: name, dir: filepath.Join(dir, name)}
		if err := os.RemoveAll(m.dir); err != nil {
			return nil, err
		}
		for _, place := range []*string{&m.clientURL, &m.peerURL} {
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			*place = fmt.Sprintf("http://127.0.0.1:%d", port)
		}
		c.members = append(c.members, m)
		initial = append(initial, name+"="+m.peerURL)
	}
	c.initial = strings.Join(initial, ",")
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// freePort is below the ephemeral range, so that no outgoing connection takes it.
func freePort() (int, error) {
	for range 100 {
		port := 10000 + rand.IntN(20000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, listener.Close()
		}
	}
	return 0, errors.New("no free port between 10000 and 30000")
}

// start runs all members at once and waits for a linearizable read from each.
func (c *cluster) start(ctx context.Context) error {
	for _, m := range c.members {
		log, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		m.process = exec.Command(c.kind.binary, "--name", m.name, "--data-dir", m.dir,
			"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
			"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.peerURL,
			"--initial-cluster", c.initial, "--initial-cluster-token", c.kind.name,
			"--log-level", "warn")
		m.process.Stdout, m.process.Stderr = log, log
		m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := m.process.Start(); err != nil {
			return err
		}
		m.exited = make(chan struct{})
		go func() { _ = m.process.Wait(); _ = log.Close(); close(m.exited) }()
	}
	for _, m := range c.members {
		if err := m.await(ctx); err != nil {
			return fmt.Errorf("%s does not answer: %w; its log is %s.log", m.name, err, m.dir)
		}
	}
	return nil
}

// await returns when the member has answered a linearizable read.
func (m *member) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	address := strings.TrimPrefix(m.clientURL, "http://")
	for ctx.Err() == nil { // a client's own back-off would hide how fast the member is back
		if connection, err := net.Dial("tcp", address); err == nil {
			_ = connection.Close()
			break
		}
		select {
		case <-m.exited:
			return errMemberDied
		case <-time.After(5 * time.Millisecond):
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.clientURL}})
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Get(ctx, "none")
	return err
}

func (c *cluster) endpoints() []string {
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, strings.TrimPrefix(m.clientURL, "http://"))
	}
	return endpoints
}

func (c *cluster) signal(signal os.Signal) error {
	var errs []error
	for _, m := range c.members {
		if m.process != nil && m.process.Process != nil {
			errs = append(errs, m.process.Process.Signal(signal))
		}
	}
	for _, m := range c.members {
		if m.exited != nil {
			<-m.exited
		}
	}
	return errors.Join(errs...)
}

// stop ends every member and removes its data.
func (c *cluster) stop() error {
	errs := []error{c.signal(syscall.SIGKILL)}
	for _, m := range c.members {
		errs = append(errs, os.RemoveAll(m.dir))
	}
	return errors.Join(errs...)
}

// cpu is the processor time of all members since they started.
func (c *cluster) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, m := range c.members {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.process.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errMemberDied, err)
		}
		// Fields 14 and 15; the second is a name in parentheses.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(ticks) * time.Second / clockTicks
		}
	}
	return sum, nil
}

// memory is the resident memory of all members in bytes.
func (c *cluster) memory() (float64, error) {
	var sum float64
	for _, m := range c.members {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.process.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errMemberDied, err)
		}
		for _, line := range strings.Split(string(status), "\n") {
			var kib float64
			if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
				sum += kib * 1024
			}
		}
	}
	return sum, nil
}

// disk is the size of all members' data directories in bytes.
func (c *cluster) disk() (float64, error) {
	var sum float64
	for _, m := range c.members {
		err := filepath.WalkDir(m.dir, func(_ string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return ignoreMissing(err)
			}
			info, err := entry.Info()
			if err == nil {
				sum += float64(info.Sys().(*syscall.Stat_t).Blocks) * 512
			}
			return ignoreMissing(err)
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil // compacted away meanwhile
	}
	return err
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	valueSize   = 256
	manyClients = 1000
	manyConns   = 100
	keySpace    = 100_000
	rangedKey   = "/one/of/the/keys"
)

// measureRequests measures single requests on a fresh cluster.
func measureRequests(ctx context.Context, t tools, kind kind, size int, o options, results table) (err error) {
	c, err := startCluster(ctx, t.dir, kind, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	leader, follower, err := c.leaderAndFollower(ctx)
	if err != nil {
		return err
	}
	put := []string{"put", "--key-size", "16", "--val-size", strconv.Itoa(valueSize), "--key-space-size", strconv.Itoa(keySpace)}
	if err := c.put(ctx, rangedKey); err != nil {
		return err
	}
	get := []string{"range", rangedKey}
	type load struct {
		name    string
		through []string
		clients int
		total   int
		args    []string
	}
	loads := []load{{"put, 1 client", leader, 1, o.single, put}}
	if follower != nil {
		loads = []load{{"put, 1 client, through the leader", leader, 1, o.single, put}, {"put, 1 client, through a follower", follower, 1, o.single, put}}
	}
	loads = append(loads,
		load{"put, 1000 clients", c.endpoints(), manyClients, o.puts, put},
		load{"linearizable range, 1000 clients", c.endpoints(), manyClients, o.ranges, get})
	puts := 1
	for _, load := range loads {
		if load.args[0] == "put" {
			puts += load.total
		}
		before, err := c.cpu()
		if err != nil {
			return err
		}
		rate, err := t.drive(ctx, load.through, load.clients, load.total, load.args)
		if err != nil {
			return fmt.Errorf("%s: %w", load.name, err)
		}
		after, err := c.cpu()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%d member(s): %s", size, load.name)
		results.add(name, "/s", higherIsBetter, kind.name, rate)
		results.add(name+", server CPU", "us", lowerIsBetter, kind.name, float64((after-before).Microseconds())/float64(load.total))
	}
	memory, err := c.memory()
	if err != nil {
		return err
	}
	results.add(fmt.Sprintf("%d member(s): resident memory after that", size), "MiB", lowerIsBetter, kind.name, memory/(1<<20))
	return c.checkRevision(ctx, int64(puts)+1)
}

// put writes one key with a value of the usual size.
func (c *cluster) put(ctx context.Context, key string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints()})
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Put(ctx, key, strings.Repeat("v", valueSize))
	return err
}

// leaderAndFollower are the endpoints of the leader and of another member, nil
// when there is none.
func (c *cluster) leaderAndFollower(ctx context.Context) (leader, follower []string, err error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints()})
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	for _, endpoint := range c.endpoints() {
		status, err := client.Status(ctx, endpoint)
		if err != nil {
			return nil, nil, err
		}
		if status.Leader == status.Header.MemberId {
			leader = []string{endpoint}
		} else {
			follower = []string{endpoint}
		}
	}
	if leader == nil {
		return nil, nil, errors.New("no member says that it leads")
	}
	return leader, follower, nil
}

// checkRevision refuses numbers that were not work: every put is in every
// member's store.
func (c *cluster) checkRevision(ctx context.Context, want int64) error {
	for _, endpoint := range c.endpoints() {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
		if err != nil {
			return err
		}
		answer, err := client.Get(ctx, "none")
		_ = client.Close()
		if err != nil {
			return err
		}
		if answer.Header.Revision != want {
			return fmt.Errorf("%s is at revision %d, the load makes it %d", endpoint, answer.Header.Revision, want)
		}
	}
	return nil
}

// drive runs etcd's benchmark tool and returns its requests per second.
func (t tools) drive(ctx context.Context, through []string, clients, total int, args []string) (float64, error) {
	conns := min(clients, manyConns)
	args = append(slices.Clone(args), "--total", strconv.Itoa(total), "--clients", strconv.Itoa(clients), "--conns", strconv.Itoa(conns),
		"--endpoints", strings.Join(through, ","))
	var output bytes.Buffer
	command := exec.CommandContext(ctx, t.benchmark, args...)
	command.Stdout, command.Stderr = &output, &output
	if err := command.Run(); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, output.String())
	}
	if strings.Contains(output.String(), "Error distribution") {
		return 0, fmt.Errorf("some requests failed:\n%s", output.String())
	}
	lines := bufio.NewScanner(&output)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "Requests/sec:"); ok {
			return strconv.ParseFloat(strings.TrimSpace(text), 64)
		}
	}
	return 0, errors.New("the benchmark tool printed no rate")
}

// measureLarge measures a member that holds many keys.
func measureLarge(ctx context.Context, t tools, kind kind, o options, results table) (err error) {
	c, err := startCluster(ctx, t.dir, kind, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	begun := time.Now()
	if err := c.fill(ctx, o.keys); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	name := fmt.Sprintf("%d keys: ", o.keys)
	results.add(name+"load, 100 puts a transaction", "s", lowerIsBetter, kind.name, time.Since(begun).Seconds())
	for _, restart := range []struct {
		name   string
		signal syscall.Signal
	}{{"restart after SIGTERM, to the first linearizable read", syscall.SIGTERM}, {"restart after SIGKILL, to the first linearizable read", syscall.SIGKILL}} {
		begun = time.Now()
		if err := c.signal(restart.signal); err != nil {
			return err
		}
		if err := c.start(ctx); err != nil {
			return err
		}
		results.add(name+restart.name, "s", lowerIsBetter, kind.name, time.Since(begun).Seconds())
	}
	if err := c.measureList(ctx, name, results); err != nil {
		return err
	}
	memory, err := c.memory()
	if err != nil {
		return err
	}
	results.add(name+"resident memory", "MiB", lowerIsBetter, kind.name, memory/(1<<20))
	disk, err := c.disk()
	if err != nil {
		return err
	}
	results.add(name+"disk", "MiB", lowerIsBetter, kind.name, disk/(1<<20))
	return nil
}

// measureList times what a list in pages asks: some keys of a prefix and how
// many there are.
func (c *cluster) measureList(ctx context.Context, name string, results table) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints()})
	if err != nil {
		return err
	}
	defer client.Close()
	const lists = 5
	for i := range lists + 1 {
		begun := time.Now()
		answer, err := client.Get(ctx, "/", clientv3.WithPrefix(), clientv3.WithLimit(500))
		if err != nil {
			return err
		}
		if len(answer.Kvs) != 500 {
			return fmt.Errorf("a list with limit 500 has %d keys", len(answer.Kvs))
		}
		which := "get --prefix --limit 500, the first since the start"
		if i > 0 {
			which = "get --prefix --limit 500, later ones"
		}
		results.add(name+which, "ms", lowerIsBetter, c.kind.name, float64(time.Since(begun).Microseconds())/1000)
	}
	return nil
}

// fill writes keys of 16 bytes with values of 256, 100 a transaction.
func (c *cluster) fill(ctx context.Context, keys int) error {
	const perTxn, writers = 100, 32
	client, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints()})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	value := strings.Repeat("v", valueSize)
	batches := make(chan int)
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for first := range batches {
				var puts []clientv3.Op
				for i := first; i < min(first+perTxn, keys); i++ {
					puts = append(puts, clientv3.OpPut(fmt.Sprintf("/%015x", i), value))
				}
				if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
					cancel(err)
				}
			}
		})
	}
	for first := 0; first < keys && ctx.Err() == nil; first += perTxn {
		batches <- first
	}
	close(batches)
	writing.Wait()
	return context.Cause(ctx)
}

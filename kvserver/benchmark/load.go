package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
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
)

// measureRequests measures single requests on a fresh cluster.
func measureRequests(ctx context.Context, t tools, kind kind, size int, o options, results table) (err error) {
	c, err := startCluster(ctx, t.dir, kind, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	put := []string{"put", "--key-size", "16", "--val-size", strconv.Itoa(valueSize), "--key-space-size", strconv.Itoa(keySpace)}
	loads := []struct {
		name    string
		clients int
		total   int
		args    []string
	}{
		{"put, 1 client", 1, o.single, put},
		{"put, 1000 clients", manyClients, o.puts, put},
		{"linearizable range, 1000 clients", manyClients, o.ranges, []string{"range", "foo"}},
	}
	puts := 0
	for _, load := range loads {
		if load.args[0] == "put" {
			puts += load.total
		}
		before, err := c.cpu()
		if err != nil {
			return err
		}
		rate, err := t.drive(ctx, c, load.clients, load.total, load.args)
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
func (t tools) drive(ctx context.Context, c *cluster, clients, total int, args []string) (float64, error) {
	conns := min(clients, manyConns)
	args = append(args, "--total", strconv.Itoa(total), "--clients", strconv.Itoa(clients), "--conns", strconv.Itoa(conns),
		"--endpoints", strings.Join(c.endpoints(), ","))
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
